"""The fused network alone: output, or input-gradient, of all rows in one launch.

    out = net(z, condition)          grad_z = (∂net/∂z)ᵀ grad          a program owns BLOCK_B rows of z
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layers import Memory
from .layers import network_forward as forward_rows
from .layers import network_vjp as vjp_rows
from .packing import PackedNetwork, round_to_tf32_
from .tiling import H200, Tile, fits, limits_of, tiles


@triton.jit(do_not_specialize=["rows_total", "condition_stride"])
def network_kernel(
    z_ptr, grad_ptr, out_ptr, weights_ptr, vectors_ptr, condition_ptr, zero_ptr, scratch_ptr, scratch32_ptr, rows_total,
    condition_stride,
    NET: tl.constexpr, TILE: tl.constexpr, VJP: tl.constexpr, NZ: tl.constexpr, NOUT: tl.constexpr, SCRATCH: tl.constexpr,
    SCRATCH32: tl.constexpr,
):  # fmt: skip
    """Output `[rows, NOUT]`, or with VJP the input-gradient `[rows, NZ]`, of `z [rows, NZ]`."""
    pid = tl.program_id(0).to(tl.int64)
    rows = pid * TILE.block_b + tl.arange(0, TILE.block_b)
    inside = (rows < rows_total)[:, None]
    zcols = tl.arange(0, NET.columns)[None, :]
    ocols = tl.arange(0, NET.out_columns)[None, :]
    first = pid * TILE.block_b
    condition_at = condition_ptr + first * condition_stride
    mem = Memory(
        weights_ptr, vectors_ptr, scratch_ptr + pid * SCRATCH, scratch32_ptr + pid * SCRATCH32,
        scratch_ptr + pid * SCRATCH + 2 * TILE.block_b * NET.widest,
        scratch32_ptr + pid * SCRATCH32 + 2 * TILE.block_b * NET.stream_columns,
        condition_at, condition_stride, zero_ptr,
    )  # fmt: skip
    z = tl.load(z_ptr + rows[:, None] * NZ + zcols, mask=inside & (zcols < NZ), other=0.0).to(tl.float32)
    out = forward_rows(z, mem, NET, TILE, VJP)
    if VJP:
        g = tl.load(grad_ptr + rows[:, None] * NOUT + ocols, mask=inside & (ocols < NOUT), other=0.0).to(tl.float32)
        g = vjp_rows(g, mem, NET, TILE)
        tl.store(out_ptr + rows[:, None] * NZ + zcols, g, mask=inside & (zcols < NZ))
    else:
        tl.store(out_ptr + rows[:, None] * NOUT + ocols, out, mask=inside & (ocols < NOUT))


def network_forward(
    packed: PackedNetwork, z: Tensor, condition: Tensor | None = None, *, out: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """Output of the network, float32 `[..., outputs]`, for inputs `z [..., inputs]`; `network_forward_ref` is its twin.

    packed     the network's weights (`PackedNetwork.of`), whose dtype and input_precision are those of the products;
               written-to weights are copied in first
    condition  `[condition_width]` for all rows or `[..., condition_width]`, a row each: see `reference.condition_ref`
    out        contiguous float32 tensor to write to. Then scratch is kept with `packed`, for each thread and stream that
               uses it (the last few), and from the second call on nothing is allocated unless there are more rows than
               before; a graph that is captured has scratch of its own
    tile       how the work is divided; by default a tile that suits the network and the number of rows

    Raises ValueError for tensors of a wrong shape, dtype or device, and for strides that are not contiguous.
    """
    return _run(packed, z, None, condition, out, tile)


def network_vjp(
    packed: PackedNetwork, z: Tensor, grad: Tensor, condition: Tensor | None = None, *, out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Input-gradient `(∂net/∂z)ᵀ grad`, float32 `[..., inputs]`, at `z` for cotangents `grad [..., outputs]`.

    The forward pass is part of the launch; `network_vjp_ref` is its twin. Arguments are those of `network_forward`.
    """
    return _run(packed, z, grad, condition, out, tile)


def is_interpreted() -> bool:
    """Whether Triton interprets the kernels, on the CPU: decided when they were imported."""
    return type(network_kernel).__name__ == "InterpretedFunction"


def _run(
    packed: PackedNetwork, z: Tensor, grad: Tensor | None, condition: Tensor | None, out: Tensor | None, tile: Tile | None
) -> Tensor:
    if not isinstance(packed, PackedNetwork):
        raise TypeError(
            f"packed is a {type(packed).__name__}; expected a PackedNetwork: of a Network net, give "
            "PackedNetwork.of(net.spec, net.weights)"
        )
    program, spec, device = packed.program, packed.spec, packed.weights.device
    if not is_interpreted() and device.type != "cuda":
        raise ValueError(f"packed is on {device}; the kernels run on CUDA devices (or interpreted, with TRITON_INTERPRET=1)")
    rows = _rows(packed, "z", z, spec.inputs)
    lead = z.shape[:-1]
    if grad is not None and (_rows(packed, "grad", grad, spec.outputs) != rows or grad.shape[:-1] != lead):
        raise ValueError(f"grad has shape {tuple(grad.shape)}; expected {(*lead, spec.outputs)}, a cotangent a row of z")
    columns, kept = spec.outputs if grad is None else spec.inputs, out is not None
    if out is None:
        out = torch.empty(*lead, columns, dtype=torch.float32, device=device)
    elif _rows(packed, "out", out, columns) != rows or out.dtype != torch.float32:
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)}; expected torch.float32 {(*lead, columns)}")
    tile = tile or tile_of(packed, rows)
    if tile.input_precision != packed.input_precision:
        raise ValueError(
            f"tile multiplies in {tile.input_precision!r} and packed was made for {packed.input_precision!r}; give both the "
            "same input_precision"
        )
    blocks = -(-rows // tile.block_b)
    workspace = _workspace(packed, kept)
    row, stride = _condition(packed, condition, lead, blocks * tile.block_b, workspace)
    packed.follow()
    scratch = tile.block_b * (2 * program.widest + program.saved)
    scratch32 = -(-tile.block_b * (2 * program.stream_columns + program.moments + 1) // 16) * 16
    network_kernel[(blocks,)](
        z, grad, out, packed.weights, packed.vectors, row, workspace.get("zero", 1, torch.int32, zeros=True),
        workspace.get("scratch", blocks * scratch, packed.weights.dtype),
        workspace.get("scratch32", blocks * scratch32, torch.float32), rows, stride,
        NET=replace(program, shared_condition=stride == 0), TILE=tile, VJP=grad is not None, NZ=spec.inputs,
        NOUT=spec.outputs, SCRATCH=scratch, SCRATCH32=scratch32, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def tile_of(packed: PackedNetwork, rows: int) -> Tile:
    """The tile for a network alone: the one that `tiling` expects to be fastest, or a small one where it knows none."""
    program, weights = packed.program, packed.weights
    limits = limits_of(weights.device) if weights.is_cuda else H200
    found = tiles(
        program.widest_whole_row, program.widest, weights.dtype, rows, input_precision=packed.input_precision,
        streams=program.stream_columns > 0, limits=limits, interpreted=is_interpreted(),
    )  # fmt: skip
    serving = [tile for tile in found if fits(tile, (program,), weights.dtype, limits.shared)]
    return serving[0] if serving else Tile(16, 128, 16, 8, 2, packed.input_precision)


def _rows(packed: PackedNetwork, name: str, t: Tensor, columns: int) -> int:
    """The number of rows, once the tensor is what the kernel takes."""
    if t.ndim < 1 or t.shape[-1] != columns:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; the network makes it [..., {columns}]")
    if t.device != packed.weights.device:
        raise ValueError(f"{name} is on {t.device} and the packed network on {packed.weights.device}; move one of them")
    if not t.is_floating_point():
        raise ValueError(f"{name} is {t.dtype}; expected floating-point numbers, convert it with .float()")
    if not t.is_contiguous():
        raise ValueError(f"{name} has strides {t.stride()}; expected a contiguous tensor, pass {name}.contiguous()")
    return t.numel() // columns


class Workspace:
    """Tensors by name, each as large as it was ever asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: dict[str, Tensor] = {}

    def get(self, name: str, numbers: int, dtype: torch.dtype, zeros: bool = False) -> Tensor:
        """Of `numbers` numbers at least; with `zeros` that is what they are until they are written to."""
        found = self._tensors.get(name)
        if found is None or len(found) < numbers:
            make = torch.zeros if zeros else torch.empty
            self._tensors[name] = found = make(numbers, dtype=dtype, device=self._device)
        return found


# Threads and streams whose scratch is kept with a network. One thread's calls on one stream run one after the other.
_USERS = 8
_workspaces: weakref.WeakKeyDictionary[PackedNetwork, OrderedDict[Hashable, Workspace]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _workspace(packed: PackedNetwork, kept: bool) -> Workspace:
    device = packed.weights.device
    on_gpu = device.type == "cuda"
    # What a capture allocates is the graph's own, and what a graph uses must not be replaced.
    if not kept or (on_gpu and torch.cuda.is_current_stream_capturing()):
        return Workspace(device)
    user = threading.get_ident(), torch.cuda.current_stream(device).cuda_stream if on_gpu else None
    with _lock:
        users = _workspaces.setdefault(packed, OrderedDict())
        users.setdefault(user, Workspace(device))
        users.move_to_end(user)
        while len(users) > _USERS:
            users.popitem(last=False)
        return users[user]


def _condition(
    packed: PackedNetwork, condition: Tensor | None, lead: torch.Size, rows: int, workspace: Workspace
) -> tuple[Tensor, int]:
    """The condition as the kernel reads it, padded, and its stride; 0 where one row serves all."""
    spec, program = packed.spec, packed.program
    if (condition is None) != (spec.condition_width == 0):
        wants = f"one of width {spec.condition_width}" if spec.condition_width else "none"
        given = "None" if condition is None else f"of shape {tuple(condition.shape)}"
        raise ValueError(f"condition is {given}; the network takes {wants}")
    if condition is None:
        return packed.vectors, 0
    if condition.shape not in ((spec.condition_width,), (*lead, spec.condition_width)):
        raise ValueError(
            f"condition has shape {tuple(condition.shape)}; expected [{spec.condition_width}] or "
            f"{[*lead, spec.condition_width]}"
        )
    shared = condition.ndim == 1 and len(lead) > 0
    dtype = packed.weights.dtype if spec.time else torch.float32
    numbers = (1 if shared else rows) * program.condition_columns
    padded = workspace.get("condition", numbers, dtype, zeros=True)[:numbers].view(-1, program.condition_columns)
    given = condition.reshape(-1, spec.condition_width)
    padded[: len(given), : spec.condition_width].copy_(given)  # what lies beside and beyond is zeros, or rows of nobody
    if spec.time and packed.input_precision == "tf32":
        round_to_tf32_(padded)
    return padded, 0 if shared else program.condition_columns
