"""Networks as the engine reads them: weights in panels, everything else padded, behind the structures of the engine.

`network.h` and `products.h` say what the layout is for; the structures below mirror those of the headers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_double, c_float, c_int32, c_int64, c_long, c_void_p
from typing import Literal, get_args

import torch
from torch import Tensor

from ..network import Activation, Layer, NetworkSpec
from .build import Engine

Products = Literal["fp32", "bf16", "bf16x6"]
# In the order of the enumerations in products.h, activations.h and network.h.
PRODUCTS: tuple[Products, ...] = get_args(Products)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
CONDITIONS = ("none", "multiply", "add")
# What the engine's clock tells apart, in the order of plan.h; the last is the pass after all iterations.
STAGES = ("rollout", "cost", "score", "adjoint", "update", "last pass")
# Rows are padded to this: a multiple of every vector and of the pairs of a bfloat16 product.
PAD = 64
HUGE_PAGE = 2 << 20
# Matrices from so many bytes on may be whole numbers: a network of such ones is read from beyond the second-level cache,
# where fewer bytes count. One plan took 0.77 of the time at 4×1024 and 0.9 at 4×512; at 4×256 it gained nothing.
INTEGERS_FROM = 1 << 20
# How many times their mean size the largest weight of a column may be: rounding all to one step must not cost the others
# more than float32 does. At 32 it is some 13 units of 2⁻²⁴, and so much costs the sum of a thousand products in float32, one
# after the other. Normal weights have 4; the columns of trained networks mostly below 10, seldom above 16.
INTEGERS_SPREAD = 32


class CPanels(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("scale", c_void_p), ("columns", c_int32), ("width", c_int32)]


class CLayer(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ("inputs", "width", "activation", "condition", "residual", "reserved")),
        ("weight", CPanels),
        ("transposed", CPanels),
        *((name, c_void_p) for name in ("bias", "gamma", "beta")),
    ]


class CNetwork(ctypes.Structure):
    _fields_ = [
        ("layers", c_void_p),
        *((name, c_int32) for name in ("count", "table_stride")),
        *((name, c_void_p) for name in ("table", "shift", "scale")),
    ]


class CQuadratic(ctypes.Structure):
    _fields_ = [("matrix", c_void_p), ("goal", c_void_p), ("n", c_int32), ("goal_stride", c_int32)]


class CCost(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("network", "function", "goal", "params")),
        ("x", CQuadratic),
        ("u", CQuadratic),
        ("sign", c_float),
        *((name, c_int32) for name in ("present", "goal_stride", "params_stride")),
    ]


# `CostFunction` of problem.h: z, ldz, goal, ldgoal, params, ldparams, step, steps, count, first, value, gradient, ldg.
COST_FUNCTION = ctypes.CFUNCTYPE(
    None, *(c_void_p, c_long) * 3, c_int32, c_int32, c_int32, c_int32, c_void_p, c_void_p, c_long
)


class CProblem(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ("rows", "samples", "horizon", "nx", "nu", "products", "threads")),
        *((name, c_int32) for name in ("block_rows", "pass_rows", "bound_stride")),
        *((name, c_void_p) for name in ("x0", "low", "high", "dynamics", "score", "dynamics_scale", "score_sigma")),
        ("running", CCost),
        ("terminal", CCost),
        ("control_change", c_float),
        ("reserved", c_float),
    ]


class CPlan(ctypes.Structure):
    _fields_ = [
        ("problem", CProblem),
        *((name, c_int32) for name in ("iterations", "settled", "by_columns", "tanh_bounds")),
        *((name, c_void_p) for name in ("beta", "step_size", "level")),
        ("adam", c_double * 3),
        *((name, c_double) for name in ("clip", "tolerance", "seconds")),
        ("penalty", c_float),
        ("look", c_int32),
        *((name, c_void_p) for name in ("v", "m", "s", "count", "active", "diverged", "converged", "taken", "history")),
        *((name, c_void_p) for name in ("x", "costate", "grad_u", "running_cost", "terminal_cost", "change_cost")),
        ("score_value", c_void_p),
        ("clock", c_void_p),
    ]


class CCandidates(ctypes.Structure):
    _fields_ = [
        ("problem", CProblem),
        *((name, c_void_p) for name in ("mean", "std", "keys")),
        ("seed", c_int64),
        *((name, c_int32) for name in ("iteration", "level")),
        *((name, c_float) for name in ("penalty", "effort")),
        *((name, c_void_p) for name in ("u", "value", "x", "running_cost", "terminal_cost", "change_cost", "distance")),
    ]


def check_layout(engine: Engine) -> None:
    """Raise where the structures here are not those of the library."""
    kinds = (CLayer, CNetwork, CCost, CProblem, CPlan, CCandidates)
    theirs = (c_int32 * len(kinds))()
    engine.library.sgp_sizes(theirs)
    ours = [ctypes.sizeof(kind) for kind in kinds]
    if list(theirs) != ours:
        raise RuntimeError(f"structures of {ours} bytes here and {list(theirs)} in {engine.path}; delete that file")


def uncovered(spec: NetworkSpec, table: bool = False) -> str | None:
    """Why the engine does not cover a network, or None. `table`: it may be conditioned, by its own table."""
    if spec.time is not None:
        return "a network with a time embedding"
    if any(not isinstance(layer, Layer) for layer in spec.layers):
        return "a network with pre-norm blocks"
    if any(isinstance(layer, Layer) and layer.condition != "none" for layer in spec.layers) and not (table and spec.levels):
        return "a network that is conditioned by something else than a score's own table"
    return None


class Store:
    """Memory for the weights of a problem, side by side on huge pages.

    The weights of a small network span hundreds of ordinary pages, more than the processor keeps addresses of, and one plan
    reads them all again for every step: with pages of 2 MiB one plan at 4×256 took 8 ms, with ordinary ones 12.
    """

    CHUNK = 16 << 20

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._chunks: list[Tensor] = []
        self._next = self._end = 0

    def put(self, t: Tensor) -> int:
        """Copy a tensor in; its address, at the start of a page, stays valid for as long as this store is."""
        t = t.contiguous()
        size = -(-t.numel() * t.element_size() // 4096) * 4096
        if self._next + size > self._end:
            chunk = torch.empty(max(self.CHUNK, size) + HUGE_PAGE, dtype=torch.uint8)
            self._chunks.append(chunk)
            self._next = -(-chunk.data_ptr() // HUGE_PAGE) * HUGE_PAGE
            self._end = chunk.data_ptr() + len(chunk)
            self.engine.library.sgp_prefer_huge_pages(self._next, self._end - self._next)
        address, self._next = self._next, self._next + size
        ctypes.memmove(address, t.data_ptr(), t.numel() * t.element_size())
        return address


class PackedNetwork:
    """A network's weights in panels for `products`, with its normaliser `z̄ = (z − shift)/scale`; `struct` is the C view.

    `wide` panels are for few rows, whose products are bound by reading the weights in order; see `_panel_width`. `integers`:
    float32 products may take big matrices as whole numbers of 24 bits; see `pack_integers`. `self.integers`: some do.
    """

    def __init__(
        self, store: Store, spec: NetworkSpec, weights: Mapping[str, Tensor], shift: Tensor, scale: Tensor,
        products: Products, wide: bool, integers: bool,
    ) -> None:  # fmt: skip
        self._store = store
        self.integers, self.widths = False, spec.widths
        layers = (CLayer * len(spec.layers))()
        for index, (layer, c) in enumerate(zip(spec.layers, layers, strict=True)):
            assert isinstance(layer, Layer)
            name = f"layers.{index}"
            w = weights[f"{name}.weight"].float()
            c.width, c.inputs = w.shape
            c.activation, c.condition = ACTIVATIONS.index(layer.activation), CONDITIONS.index(layer.condition)
            c.residual = layer.residual
            c.weight, c.transposed = (self._panels(m, products, wide, integers) for m in (w.T, w))
            c.bias = self._row(weights[f"{name}.bias"])
            if layer.norm:
                c.gamma, c.beta = self._row(weights[f"{name}.norm.weight"]), self._row(weights[f"{name}.norm.bias"])
        self.struct = CNetwork(layers=ctypes.addressof(layers), count=len(layers))
        self.struct.shift, self.struct.scale = self._row(shift), self._row(scale)
        if spec.levels:
            table = weights["embedding"]
            self.struct.table_stride = -(-table.shape[-1] // PAD) * PAD
            self.struct.table = self._row(table)
        self._layers = layers  # the structure points to them

    @property
    def address(self) -> int:
        return ctypes.addressof(self.struct)

    def _row(self, t: Tensor) -> int:
        """Vectors, padded with zeros to whole `PAD`."""
        return self._store.put(torch.nn.functional.pad(t.float(), (0, -t.shape[-1] % PAD)))

    def _panels(self, matrix: Tensor, products: Products, wide: bool, integers: bool) -> CPanels:
        engine = self._store.engine
        width = _panel_width(engine, matrix.shape[1], products, wide)
        whole = width if products == "fp32" else max(width, 32)
        columns = -(-matrix.shape[1] // whole) * whole
        big = 4 * matrix.numel() >= INTEGERS_FROM and width == engine.lanes * engine.vectors
        made = pack_integers(matrix, width) if integers and engine.integers and products == "fp32" and big else None
        if made is not None:
            self.integers = True
            return CPanels(*(self._store.put(t) for t in made), columns, width)
        return CPanels(self._store.put(pack(matrix, products, width)), None, columns, width)


def pack(matrix: Tensor, products: Products, width: int) -> Tensor:
    """A matrix `[K, N]` in panels of `width` columns: `[panel, K, width]` in float32.

    In bfloat16 `[plane, panel, K/2, width, 2]`, where the planes (one, or three for six products) add up to the matrix.
    """
    K, N = matrix.shape
    whole = width if products == "fp32" else max(width, 32)
    depth = K if products == "fp32" else -(-K // 32) * 32
    padded = torch.zeros(depth, -(-N // whole) * whole, dtype=torch.float32)
    padded[:K, :N] = matrix
    if products == "fp32":
        return padded.view(K, -1, width).permute(1, 0, 2).contiguous()
    planes = []
    for _ in range(1 if products == "bf16" else 3):
        half = padded.bfloat16()
        padded = padded - half.float()
        planes.append(half.view(len(padded) // 2, 2, -1, width).permute(2, 0, 3, 1))
    return torch.stack(planes)


def pack_integers(matrix: Tensor, width: int) -> tuple[Tensor, Tensor] | None:
    """A matrix `[K, N]` as whole numbers n of 24 bits, and the scale of each column.

        w = 256 n · scale + error,   |n| < 2²³,   |error| ≤ 2⁻²⁴ max |w| of its column

    The numbers are bytes in panels `[panel, K, width, 3]`, flat and padded; 256 n is what the engine makes of them. None
    where that would blur weights: a column's largest is more than `INTEGERS_SPREAD` times their mean size, or is not finite,
    or is so small that its scale is no normal float.
    """
    most = 2**23 - 1
    padded = torch.nn.functional.pad(matrix.double(), (0, -matrix.shape[1] % width))
    size = padded.abs()
    largest = size.amax(0)
    scale = torch.where(largest > 0, largest / (256 * most), 1.0).float()
    even = (largest <= INTEGERS_SPREAD * size.mean(0)) & largest.isfinite() & (scale >= torch.finfo(torch.float32).tiny)
    if not even.all():
        return None
    n = (padded / (256 * scale.double())).round()
    panels = n.to(torch.int32).view(len(n), -1, width).permute(1, 0, 2).contiguous()
    three = panels.view(torch.uint8).view(-1, 4)[:, :3].flatten()
    return torch.nn.functional.pad(three, (0, 16)), scale  # the engine reads 64 bytes where it needs 48


def _panel_width(engine: Engine, columns: int, products: Products, wide: bool) -> int:
    """Columns of a panel.

    A full panel fills the registers of the micro-kernel. A matrix of few columns (the last layer of a network) takes narrow
    ones, of one vector, so that less is multiplied by padding. Matrix tiles want 32, two tiles side by side: panels of 64
    were 4 to 16% slower there, at 32 rows and more. For a few rows, which go without tiles, panels are full.
    """
    full = engine.lanes * engine.vectors
    if products == "fp32":
        return full if columns >= 2 * full else engine.lanes
    narrow = max(32, engine.lanes) if engine.tiles else min(full, 32)
    return full if wide and columns >= 2 * full else narrow
