"""Networks, and the passes over them that a plan is made of: plain PyTorch first, fast kernels beside it.

    tile, ring/, relay/, grid/, layered/    the regimes of whole plans; `layers`, `update` and others are of several
    network_op, rollout, refit              a network alone; candidates of sampling planners
    cpu/, traced/                           native code; costs that are functions of the user's

Installed as `sgp_fast.kernels`. Nothing here imports the rest of `sgp_fast`, and `reference`, `network`, `packing` and
`tiling` import no triton, so they run anywhere that PyTorch does.

No device code reads a constant of its module: it is given it, or calls a `constexpr_function` that says it. The key of a
compiled kernel in Triton's cache holds no plain constant, and a callee's constexpr only where the callee was hashed first:
what one process had compiled another would compile again, or go on with after the constant had changed.

    packed = PackedNetwork.of(spec, weights, torch.bfloat16)    or torch.float32, "tf32"
    out = network_forward(packed, z)                        one launch
    grad_z = network_vjp(packed, z, grad)                   one launch, the forward pass included
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .packing import PackedNetwork

if TYPE_CHECKING:
    from .network_op import network_forward, network_vjp

__all__ = ["PackedNetwork", "network_forward", "network_vjp"]


def __getattr__(name: str) -> Any:
    """The kernels, loaded when they are first used: they need triton."""
    if name in ("network_forward", "network_vjp"):
        return getattr(import_module(".network_op", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
