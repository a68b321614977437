"""The engine for CPUs: whole plans in C++ with hand-packed weights, compiled on first use and called through ctypes.

    plan.cpp        what Python calls; how blocks of problems, or columns of products, go to threads (threads.h)
    rollout.h       a block of rows: its states, and their costs; memory.h where it lies
    block.h         the planner for such a block: adjoint, Adam
    candidates.h    what sampling planners ask of it: candidates drawn, rolled out and costed; draws.h their numbers
    network.h       a network's value and input-gradient for a block of rows
    products.h      products with packed weights; tiles.h the same on AMX
    activations.h   activations and their derivatives; simd.h vectors and elementary functions
    problem.h       what is passed of any plan, plan.h of this one; pack.py mirrors them and packs weights; build.py compiles
"""

from .build import BuildError, Engine, engine, function, load, why_unavailable
from .pack import (
    COST_FUNCTION,
    CCandidates,
    CCost,
    CPlan,
    CProblem,
    CQuadratic,
    PackedNetwork,
    Products,
    Store,
    check_layout,
    pack,
    uncovered,
)

__all__ = [
    "COST_FUNCTION", "BuildError", "CCandidates", "CCost", "CPlan", "CProblem", "CQuadratic", "Engine", "PackedNetwork",
    "Products", "Store", "check_layout", "engine", "function", "load", "pack", "uncovered", "why_unavailable",
]  # fmt: skip
