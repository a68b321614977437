"""Launches that begin before the one before them has ended: most of the way from one short kernel to the next.

With `launch_pdl=True` a kernel may be put on the device as soon as all programs of the kernel before it have called
`step_in` (CUDA's programmatic dependent launch, sm_90 and later). There it waits, until that kernel has ended and what it
wrote can be seen. Every kernel that is launched so calls it before it reads or writes anything.
"""

# To the type checker, a jit function that is called by another never returns.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def step_in(EARLY: tl.constexpr):
    """Wait for the kernel before this one, if this one was launched early, and let the next come."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
