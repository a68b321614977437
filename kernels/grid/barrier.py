"""A barrier of all programs of a launch: none goes on before every one has arrived.

One counter in memory, zero when the kernel starts, that only grows. At its n-th barrier (n = 1, 2, …) a program adds one and
waits until the counter is at least n·P, P the number of programs:

    every program waits behind each arrival, so none can arrive an (n+1)-th time before the counter was n·P:
    a count of n·P therefore means that each has arrived n times, and the counter is never reset while anyone looks at it

`tests/protocol` holds the protocol to this for two to four programs, with every interleaving of their steps. That no program
waits for one that was not started is another matter: all of them must be resident at once, which the launch has to see to.

Memory. What the threads of a program wrote is ordered before its arrival by the barrier inside the program and the release
of the addition, at the scope of the device; the acquire of the read that ends the wait, and the second barrier inside the
program, order it before everything that the threads of another read then. The first thread alone arrives and waits.
"""

# To the type checker, a jit function that is called by another never returns.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def grid_barrier(counter_ptr, target):
    """Wait until `target` = n·P arrivals were counted, this one among them; every thread of the program calls it."""
    tl.debug_barrier()
    tl.inline_asm_elementwise(
        """
        {
            .reg .pred other, early;
            .reg .u32 thread, seen;
            mov.u32 thread, %tid.x;
            setp.ne.u32 other, thread, 0;
            @other bra passed;
            red.release.gpu.global.add.u32 [$1], 1;
            waiting:
            ld.acquire.gpu.global.u32 seen, [$1];
            setp.lt.u32 early, seen, $2;
            @early bra waiting;
            passed:
            mov.u32 $0, 0;
        }
        """,
        "=r,l,r,~{memory}", [counter_ptr.to(tl.uint64, bitcast=True), target], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    tl.debug_barrier()
