"""Small kernels whose programs hand words to one another, compiled for sm_90 and emulated.

    python -m tests.ptx.exchanges '{"programs": 2, "schedule": "last"}'

prints what was found in each launch that is given, as a line of JSON. The process must be one without TRITON_INTERPRET.
"""

# In device code a constant is what it holds, and to the type checker a jit function is called as it is defined.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl

from sgp_fast.kernels.gluon import gl, jit, mma_v2
from sgp_fast.kernels.grid.barrier import grid_barrier
from tests.ptx.launching import Found, emulating
from tests.ptx.schedules import Schedule

ROWS, INPUTS, WARPS = 8, 32, 8


@dataclass(frozen=True)
class Exchange:
    """A launch of `exchange_kernel`: so many rounds of y ← W y, whose columns the programs share.

    together  words that a thread reads one behind the other: one or two
    slots     for the words of a round, which are written in turn
    schedule  by which the programs take turns
    changes   what is replaced in the compiled PTX before it runs: a regular expression, and what stands there instead
    barrier   a launch of `barrier_kernel` instead, which has only programs
    """

    programs: int = 2
    width: int = 128
    rounds: int = 6
    together: int = 2
    slots: int = 2
    schedule: Schedule = "in turn"
    changes: tuple[str, str] | None = None
    barrier: bool = False


@jit(do_not_specialize=["rounds"])
def exchange_kernel(
    words, first, weights, z_ptr, out, rounds, N: tl.constexpr, PROGRAMS: tl.constexpr, TOGETHER: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    OWN: tl.constexpr = N // PROGRAMS
    WARPS: tl.constexpr = gl.num_warps()
    DEPTH: tl.constexpr = N // WARPS  # of a warp
    own = gl.program_id(0).to(gl.int64) * OWN
    y = gl.allocate_shared_memory(weights.dtype.element_ty, [8, N], gl.SwizzledSharedLayout(32, 1, 8, [1, 0]))

    SHALLOW: tl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, WARPS], [16, 8])
    a = gl.load(first + own * 32 + _places(OWN, 32, 32, 1, gl.DotOperandLayout(0, SHALLOW, 2)))
    z = gl.load(z_ptr + _places(32, 8, 1, 32, gl.DotOperandLayout(1, SHALLOW, 2)))
    h = mma_v2(a, z, gl.zeros([OWN, 8], gl.float32, layout=SHALLOW))
    publish(words + own + _places(OWN, 8, 1, N, SHALLOW), h, 1)

    DEEP: tl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    w = gl.load(weights + own * N + _places(OWN, N, N, 1, gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])))
    w = gl.convert_layout(w.reshape([OWN, WARPS, DEPTH]).permute((1, 0, 2)), gl.DotOperandLayout(0, DEEP, 2))
    ROW: tl.constexpr = gl.BlockedLayout([1, TOGETHER], [1, 32], [WARPS, 1], [1, 0])
    ALL: tl.constexpr = gl.BlockedLayout([WARPS, 1, 1], [1, 16, 2], [1, WARPS // 4, 4], [1, 2, 0])
    for i in range(1, rounds):
        slot, behind = words + i % SLOTS * (8 * N), words + (i - 1) % SLOTS * (8 * N)
        y.store(gather(behind + _places(8, N, N, 1, ROW), i, TOGETHER).to(y.dtype))
        right = y.load(ROW).reshape([8, WARPS, DEPTH]).permute((1, 2, 0))
        right = gl.convert_layout(right, gl.DotOperandLayout(1, DEEP, 2))
        sums = mma_v2(w, right, gl.zeros([WARPS, OWN, 8], gl.float32, layout=DEEP))
        sums = gl.sum(gl.convert_layout(sums, ALL), 0)
        publish(slot + own + _places(OWN, 8, 1, N, gl.SliceLayout(0, ALL)), sums, i + 1)
    last = gather(words + (rounds - 1) % SLOTS * (8 * N) + _places(8, N, N, 1, ROW), rounds, TOGETHER)
    gl.store(out + gl.program_id(0) * (8 * N) + _places(8, N, N, 1, ROW), last)


@jit
def publish(at, numbers, stamp):
    """Words of a number and a stamp."""
    gl.inline_asm_elementwise(
        """
        {
            .reg .pred on;
            .reg .b64 word;
            setp.ne.s32 on, $3, 0;
            mov.b64 word, {$2, $3};
            @on st.relaxed.gpu.global.b64 [$1], word;
            mov.b32 $0, 0;
        }
        """,
        "=r,l,f,r,~{memory}", [at.to(gl.uint64, bitcast=True), numbers, stamp], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@jit
def gather(at, stamp, TOGETHER: tl.constexpr):
    """Numbers of words, once they have the stamp; of two, those that are late are asked for again."""
    at = at.to(gl.uint64, bitcast=True)
    if TOGETHER == 1:
        return gl.inline_asm_elementwise(
            """
            {
                .reg .pred late;
                .reg .b64 word;
                .reg .b32 found;
                again:
                ld.relaxed.gpu.global.b64 word, [$1];
                mov.b64 {$0, found}, word;
                setp.ne.s32 late, found, $2;
                @late bra again;
            }
            """,
            "=&f,l,r,~{memory}", [at, stamp], dtype=gl.float32, is_pure=False, pack=1,
        )  # fmt: skip
    seen = gl.inline_asm_elementwise(
        "ld.relaxed.gpu.global.v2.b64 {$0, $1}, [$2];", "=l,=l,l,l,~{memory}", [at], dtype=gl.int64, is_pure=False, pack=2
    )
    return gl.inline_asm_elementwise(
        """
        {
            .reg .pred late, more;
            .reg .b64 one, two;
            .reg .b32 first, second;
            mov.b64 one, $2;
            mov.b64 two, $3;
            setp.ne.s32 late, 0, 0;
            again:
            @late ld.relaxed.gpu.global.v2.b64 {one, two}, [$4];
            mov.b64 {$0, first}, one;
            mov.b64 {$1, second}, two;
            setp.ne.s32 late, first, $6;
            setp.ne.s32 more, second, $6;
            or.pred late, late, more;
            @late bra again;
        }
        """,
        "=&f,=&f,l,l,l,l,r,r,~{memory}", [seen, at, stamp], dtype=gl.float32, is_pure=False, pack=2,
    )  # fmt: skip


@jit
def _places(ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr, LAYOUT: tl.constexpr):
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    return rows * DOWN + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))[None, :] * RIGHT


@triton.jit
def barrier_kernel(values, counter, out, programs, PROGRAMS: tl.constexpr):
    """Each program adds up what all have left."""
    i, number = tl.arange(0, 256), tl.program_id(0)
    tl.store(values + number * 256 + i, i + number)
    grid_barrier(counter, programs)
    total = tl.zeros([256], tl.int32)
    for other in range(PROGRAMS):
        total += tl.load(values + other * 256 + i)
    tl.store(out + number * 256 + i, total)


def exchanged(given: Exchange) -> Found:
    """Numbers are small and whole, so that what comes out is exact."""
    draw, n = torch.Generator().manual_seed(0), given.width
    first, z = (torch.randint(-1, 2, shape, generator=draw).float() for shape in ((n, INPUTS), (ROWS, INPUTS)))
    weights = sum((torch.eye(n)[torch.randperm(n, generator=draw)] * sign for sign in (1, -1)), torch.zeros(n, n))
    y = z @ first.mT
    for _ in range(given.rounds - 1):
        y = y @ weights.mT
    words = torch.full((given.slots * ROWS * n,), -1)  # no round's stamp
    out = torch.full((given.programs, ROWS, n), float("nan"))
    with emulating(given.changes, given.schedule) as found:
        exchange_kernel[(given.programs,)](
            words, first.bfloat16(), weights.bfloat16(), z.bfloat16(), out, given.rounds, n, given.programs, given.together,
            given.slots, num_warps=WARPS, launch_cooperative_grid=True,
        )  # fmt: skip
    found.wrong = _difference(out, y)
    return found


def met(given: Exchange) -> Found:
    values, counter = torch.full((given.programs, 256), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    out = torch.full_like(values, -1)
    with emulating(given.changes, given.schedule) as found:
        barrier_kernel[(given.programs,)](values, counter, out, given.programs, given.programs, num_warps=WARPS)
    found.wrong = _difference(out, values.sum(0))
    return found


def _difference(out: torch.Tensor, exact: torch.Tensor) -> str:
    return "" if (out == exact).all() else f"{int((out != exact).sum())} numbers"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for options in sys.argv[1:]:
        asked = Exchange(**json.loads(options))
        print(json.dumps(asdict(met(asked) if asked.barrier else exchanged(asked))))
