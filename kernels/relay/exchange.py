"""Words that the programs of one launch hand to one another: two numbers, and the stamp by which their reader knows them.

    ┌ number ── 24 bits ┬ 8 ┐┌ number ── 24 bits ┬ 8 ┐
    │ sign, exponent, 15│   ││ of fraction       │   │   one access of 64 bits, which is whole wherever it is seen
    └───────────────────┴ ┼ ┘└───────────────────┴ ┼ ┘
                          └──────── stamp ─────────┘

A reader asks for a word until it has the stamp that it waits for. Nothing else orders the two: no barrier, no fence, no
counter, so that a word is on its way for one store and one load. The stamp takes the place of a number's last eight bits,
which no product of 16-bit numbers would notice. What must hold, and `tests/protocol` holds the protocol to: every word that
is waited for is written with that stamp, and none is written over before all have read it. Programs that wait for one
another must be resident at once; the launch has to see to that. A word that does not come in some seconds stops the kernel.

A word's numbers are neighbours in the registers of a thread, and so are those of words that it reads together: what a
`half` is, 0 or 1, follows from that on a device, and only the interpreter has to be told.
"""

# To the type checker a jit function that is called by another never returns, and of two definitions one is a rival.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportAssignmentType=false

import triton.language as tl

from ..gluon import INTERPRETED, gl, jit

__all__ = ["MOST_STAMPS", "gather", "peek", "publish", "settle", "shortened"]

MOST_STAMPS = (1 << 16) - 1  # from 1 on; memory is zero before

if not INTERPRETED:

    @jit
    def publish(at, half, values, stamp, there, threads):
        """Write words where they are `there`, of float32 `values` and one stamp; `at` points to int64 ones.

        The first `threads` of the program have all of them: the others hold copies.
        """
        gl.inline_asm_elementwise(
            """
            {
                .reg .pred on, has;
                .reg .b64 word;
                .reg .b32 a, b, mark;
                setp.ne.s32 on, $8, 0;
                mov.u32 mark, %tid.x;
                setp.lt.u32 has, mark, $10;
                and.pred on, on, has;
                and.b32 a, $4, 0xffffff00;
                and.b32 b, $5, 0xffffff00;
                and.b32 mark, $6, 255;
                or.b32 a, a, mark;
                shr.u32 mark, $6, 8;
                or.b32 b, b, mark;
                mov.b64 word, {a, b};
                @on st.relaxed.gpu.global.b64 [$2], word;
                mov.b32 $0, 0;
                mov.b32 $1, 0;
            }
            """,
            "=r,=r,l,l,r,r,r,r,r,r,r,r,~{memory}",
            [at.to(gl.uint64, bitcast=True), values.to(gl.int32, bitcast=True), stamp, there.to(gl.int32), threads],
            dtype=gl.int32, is_pure=False, pack=2,
        )  # fmt: skip

    @jit
    def peek(at, half, TOGETHER: tl.constexpr):
        """Words as they are, number by number; all loads of a thread are on their way at once.

        TOGETHER words of a thread, one or two, lie one behind the other in memory.
        """
        at = at.to(gl.uint64, bitcast=True)
        if TOGETHER == 1:
            return gl.inline_asm_elementwise(
                """
                {
                    .reg .b64 word;
                    ld.relaxed.gpu.global.b64 word, [$2];
                    mov.b64 {$0, $1}, word;
                }
                """,
                "=r,=r,l,l,~{memory}", [at], dtype=gl.int32, is_pure=False, pack=2,
            )  # fmt: skip
        else:
            return gl.inline_asm_elementwise(
                """
                {
                    .reg .b64 one, two;
                    ld.relaxed.gpu.global.v2.b64 {one, two}, [$4];
                    mov.b64 {$0, $1}, one;
                    mov.b64 {$2, $3}, two;
                }
                """,
                "=r,=r,=r,=r,l,l,l,l,~{memory}", [at], dtype=gl.int32, is_pure=False, pack=4,
            )  # fmt: skip

    @jit
    def settle(seen, at, half, stamp, TOGETHER: tl.constexpr):
        """The numbers of words that were `seen` at a peek, looked at again until they have the stamp."""
        at = at.to(gl.uint64, bitcast=True)
        if TOGETHER == 1:
            numbers = gl.inline_asm_elementwise(
                """
                {
                    .reg .pred late, lost;
                    .reg .b64 word;
                    .reg .b32 a, b, high, off, more, polls;
                    shr.u32 high, $6, 8;
                    mov.b64 word, {$2, $3};
                    mov.b32 polls, 0;
                    setp.ne.s32 late, 0, 0;
                    again:
                    @late ld.relaxed.gpu.global.b64 word, [$4];
                    mov.b64 {a, b}, word;
                    xor.b32 off, a, $6;
                    xor.b32 more, b, high;
                    or.b32 off, off, more;
                    and.b32 off, off, 255;
                    setp.ne.u32 late, off, 0;
                    add.u32 polls, polls, 1;
                    setp.gt.u32 lost, polls, 0x1000000;
                    @lost trap;
                    @late bra again;
                    and.b32 $0, a, 0xffffff00;
                    and.b32 $1, b, 0xffffff00;
                }
                """,
                "=r,=r,r,r,l,l,r,r,~{memory}", [seen, at, stamp], dtype=gl.int32, is_pure=False, pack=2,
            )  # fmt: skip
        else:
            numbers = gl.inline_asm_elementwise(
                """
                {
                    .reg .pred late, lost;
                    .reg .b64 one, two;
                    .reg .b32 a, b, c, d, high, off, more, polls;
                    shr.u32 high, $12, 8;
                    mov.b64 one, {$4, $5};
                    mov.b64 two, {$6, $7};
                    mov.b32 polls, 0;
                    setp.ne.s32 late, 0, 0;
                    again:
                    @late ld.relaxed.gpu.global.v2.b64 {one, two}, [$8];
                    mov.b64 {a, b}, one;
                    mov.b64 {c, d}, two;
                    xor.b32 off, a, $12;
                    xor.b32 more, b, high;
                    or.b32 off, off, more;
                    xor.b32 more, c, $12;
                    or.b32 off, off, more;
                    xor.b32 more, d, high;
                    or.b32 off, off, more;
                    and.b32 off, off, 255;
                    setp.ne.u32 late, off, 0;
                    add.u32 polls, polls, 1;
                    setp.gt.u32 lost, polls, 0x1000000;
                    @lost trap;
                    @late bra again;
                    and.b32 $0, a, 0xffffff00;
                    and.b32 $1, b, 0xffffff00;
                    and.b32 $2, c, 0xffffff00;
                    and.b32 $3, d, 0xffffff00;
                }
                """,
                "=r,=r,=r,=r,r,r,r,r,l,l,l,l,r,r,r,r,~{memory}", [seen, at, stamp], dtype=gl.int32, is_pure=False, pack=4,
            )  # fmt: skip
        return numbers.to(gl.float32, bitcast=True)
else:
    from ..gluon_interpreted import peek, publish, settle


@jit
def gather(at, half, stamp, TOGETHER: tl.constexpr):
    """Numbers of words, once they have the stamp."""
    return settle(peek(at, half, TOGETHER), at, half, stamp, TOGETHER)


@jit
def shortened(x):
    """A number as a word holds it: what is left of it fits another one."""
    return (x.to(gl.int32, bitcast=True) & -256).to(gl.float32, bitcast=True)
