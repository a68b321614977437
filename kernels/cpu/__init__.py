"""The engine for CPUs: whole plans in C++ with hand-packed weights, compiled on first use and called through ctypes.

    plan.cpp        what Python calls; how blocks of problems, or columns of products, go to threads (threads.h)
    block.h         the planner for a block of problems: rollout, costs, adjoint, Adam; memory.h where it lies
    network.h       a network's value and input-gradient for a block of rows
    products.h      products with packed weights; tiles.h the same on AMX
    activations.h   activations and their derivatives; simd.h vectors and elementary functions
    plan.h          the structure that is passed; pack.py mirrors it and packs weights; build.py compiles
"""

from .build import BuildError, Engine, engine, function, load, why_unavailable
from .pack import COST_FUNCTION, CCost, CPlan, CQuadratic, PackedNetwork, Products, Store, check_layout, pack, uncovered

__all__ = [
    "COST_FUNCTION", "BuildError", "CCost", "CPlan", "CQuadratic", "Engine", "PackedNetwork", "Products", "Store",
    "check_layout", "engine", "function", "load", "pack", "uncovered", "why_unavailable",
]  # fmt: skip
