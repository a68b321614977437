"""From a PyTorch cost to an `Expression`: the cost is run once, for one row, and what it does is recorded.

    value_and_grad(x, u, goal, t, params)  →  graph of aten operators  →  program of numbers, gradient included

The gradient is autograd's own, or the cost's: it is in the graph, and so are its conventions where a function has no
derivative. What depends on the row decides nothing: a Python `if` on it, an index by it, or an operator without a twin make
a cost untraceable, and `Untraceable` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .expression import Expression, Recorder, TooLong
from .operators import Array, Operators, Unsupported, array_of

# A kernel of more would compile for minutes, and a cost of more is a network, which has kernels of its own.
MOST_OPERATIONS = 4096

Params = Tensor | dict[str, Tensor] | None


class Untraceable(Exception):
    """The function cannot be made part of a kernel; the message says why."""


@dataclass(frozen=True)
class Features:
    """What a row of a traced cost holds, in order: x, u, goal, t, params flattened. A terminal cost has no u and no t.

    `params` are names and shapes of one problem's parameters; the name is "" for a single tensor. Without `gradient` the
    program gives the value alone.
    """

    nx: int
    nu: int
    goal: bool
    params: tuple[tuple[str, tuple[int, ...]], ...] = ()
    terminal: bool = False
    gradient: bool = True

    @property
    def params_width(self) -> int:
        return sum(torch.Size(shape).numel() for _, shape in self.params)

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Names and widths of what the row is made of."""
        own = (("x", self.nx),) if self.terminal else (("x", self.nx), ("u", self.nu))
        step = () if self.terminal else (("t", 1),)
        return (*own, ("goal", self.nx if self.goal else 0), *step, ("params", self.params_width))

    @property
    def width(self) -> int:
        return sum(width for _, width in self.groups)

    def place(self, name: str) -> int:
        """Where a group begins."""
        place = 0
        for group, width in self.groups:
            if group == name:
                return place
            place += width
        raise KeyError(name)

    def group_of(self, place: int) -> tuple[str, int]:
        """The group that holds a place of the row, and the place within it."""
        for group, width in self.groups:
            if place < width:
                return group, place
            place -= width
        raise IndexError(f"a row has {self.width} features")

    @property
    def outputs(self) -> int:
        """The value, then the gradient in x and u where there is one."""
        if not self.gradient:
            return 1
        return 1 + self.nx + (0 if self.terminal else self.nu)

    @classmethod
    def of(cls, nx: int, nu: int, goal: Tensor | None, params: Params, terminal: bool = False) -> Features:
        """Of the rows that a plan has: `goal [B, nx]` and `params [B, …]`, a tensor or a dictionary of such."""
        named = params if isinstance(params, dict) else {} if params is None else {"": params}
        shapes = tuple((name, tuple(p.shape[1:])) for name, p in named.items())
        return cls(nx, nu, goal is not None, shapes, terminal)


def pack_params(params: Params, features: Features) -> Tensor | None:
    """Parameters as the kernels read them, `[B, params_width]` of float32; None where there are none."""
    if params is None or not features.params:
        return None
    named = params if isinstance(params, dict) else {"": params}
    return torch.cat([named[name].float().reshape(len(named[name]), -1) for name, _ in features.params], 1)


def trace(
    value_and_grad: Callable[..., Any], features: Features, dtype: torch.dtype, params: Params = None, device: Any = None
) -> Expression:
    """The program of a cost's `value_and_grad`, as `costs.Cost` has it (or `costs.TerminalCost`); without its gradients
    where `features` have none.

    dtype    of states and controls while it is recorded: that of the planner, so that types meet as they will; likewise
             `device`
    params   of the problems, of which only types are read

    Raises Untraceable.
    """
    inputs = {name: t.to(device) for name, t in _examples(features, dtype, params).items()}
    names = list(inputs)

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(value_and_grad(*_arguments(features, dict(zip(names, tensors, strict=True)))))

    graph = _recorded(flat, list(inputs.values()))
    recorder = Recorder(MOST_OPERATIONS)
    try:
        outputs = _replay(graph, recorder, _terms(features, recorder, inputs))
    except Unsupported as why:
        raise Untraceable(str(why)) from why
    except TooLong as why:
        raise Untraceable(f"{why}, which is a network's work: a LearnedCost has kernels of its own") from why
    values = [value for out in outputs for value in out.reshape(-1)]
    if len(values) != features.outputs:
        raise Untraceable(f"it gives {len(values)} numbers a row; expected a value and {features.outputs - 1} gradients")
    return recorder.expression(features.width, [float(v) if isinstance(v, bool) else v for v in values])


def _examples(features: Features, dtype: torch.dtype, params: Params) -> dict[str, Tensor]:
    """One row of each input, in the shapes that a cost meets: one step of one problem."""
    lead = (1,) if features.terminal else (1, 1)
    out = {"x": torch.full((*lead, features.nx), 0.5, dtype=dtype)}
    if not features.terminal:
        out["u"] = torch.full((*lead, features.nu), 0.25, dtype=dtype)
    if features.goal:
        out["goal"] = torch.full((1, features.nx), 0.125, dtype=dtype)
    if not features.terminal:
        out["t"] = torch.zeros(1, 1, dtype=torch.int64)
    named = params if isinstance(params, dict) else {"": params}
    for name, shape in features.params:
        given = named.get(name)
        kind = dtype if given is None or given.is_floating_point() else given.dtype
        out[f"params.{name}"] = torch.ones(1, *shape, dtype=kind)
    return out


def _arguments(features: Features, inputs: dict[str, Tensor]) -> tuple[Any, ...]:
    """The arguments of `value_and_grad`, from the inputs by name."""
    params: Any = {name: inputs[f"params.{name}"] for name, _ in features.params}
    if not features.params:
        params = None
    elif features.params[0][0] == "":
        params = params[""]
    goal = inputs.get("goal")
    return (inputs["x"], goal, params) if features.terminal else (inputs["x"], inputs["u"], goal, inputs["t"], params)


def _recorded(function: Callable[..., Any], inputs: list[Tensor]) -> torch.fx.GraphModule:
    from torch._decomp import core_aten_decompositions, get_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    aten = torch.ops.aten
    further = [
        aten._softmax, aten._log_softmax, aten.native_layer_norm, aten.native_layer_norm_backward, aten.native_group_norm,
        aten.std, aten.addmv, aten.leaky_relu, aten.hardtanh, aten.celu, aten.softplus, aten.silu,
        aten.mish, aten.hardswish, aten.hardsigmoid, aten.prelu, aten.logsumexp, aten.dist, aten.logaddexp,
    ]  # fmt: skip
    table: Any = {**core_aten_decompositions(), **get_decompositions(further)}
    try:
        # With fake tensors, what looks at numbers of a row fails, where else it would be recorded as a constant.
        return make_fx(function, decomposition_table=table, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    except Exception as why:
        told = " ".join(str(why).split("\n\n")[0].split())[:300]
        if any(word in told.lower() for word in ("data-dependent", "_local_scalar_dense", ".numpy()", "tolist")):
            told = "Python reads a number of the row (an if, .item() or NumPy); torch.where chooses in a kernel"
        raise Untraceable(f"it cannot be recorded for one row: {told or type(why).__name__}") from why


def _terms(features: Features, recorder: Recorder, inputs: dict[str, Tensor]) -> list[Array]:
    """An array of terms for each input."""
    place, arrays = {name: features.place(name) for name, _ in features.groups}, []
    for name, tensor in inputs.items():
        group = name.split(".")[0]
        array = array_of(tensor)
        for i in range(array.size):
            term = recorder.input(place[group] + i)
            array.flat[i] = recorder.apply("not", recorder.apply("eq", term, 0.0)) if tensor.dtype == torch.bool else term
        place[group] += array.size
        arrays.append(array)
    return arrays


def _replay(graph: torch.fx.GraphModule, recorder: Recorder, inputs: Sequence[Array]) -> list[Array]:
    """The graph's outputs, as arrays of terms."""
    operators, results, waiting = Operators(recorder), {}, iter(inputs)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            results[node] = next(waiting)
        elif node.op == "get_attr":
            results[node] = array_of(getattr(graph, node.target))
        elif node.op == "output":
            found = (results[out] if isinstance(out, torch.fx.Node) else out for out in node.args[0])
            return [array_of(torch.as_tensor(out)) if isinstance(out, float | Tensor) else out for out in found]
        else:
            args = torch.fx.map_arg(node.args, results.__getitem__)
            kwargs = torch.fx.map_arg(node.kwargs, results.__getitem__)
            if getattr(node.target, "__name__", "") == "getitem":
                results[node] = args[0][args[1]]
                continue
            packet = getattr(node.target, "overloadpacket", None)
            if packet is None or node.target.namespace != "aten":
                raise Unsupported(f"{node.target} has no twin in the kernels")
            results[node] = operators.call(packet.__name__, node.target._overloadname, args, dict(kwargs))
    raise AssertionError("a graph has an output")
