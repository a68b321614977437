"""The layered regime over one bucket: matrix products, and fused pointwise kernels between them.

For wide networks and many problems, where the product is the cost: a step of the rollout is a network over R rows, score and
cost are networks over all T·R rows at once, and the adjoint is swept back over what the rollout kept of every step. Products
are the library's; and ours where a launch is what costs: to width 256, or of few rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels.function import function_kernel
from ...kernels.layered.linear_columns import ONE_ROW, SOME_ROWS, ColumnCut
from ...kernels.layered.linear_rows import INTERPRETED, RowCut
from ...kernels.layered.linear_steps import step_backward, step_forward
from ...kernels.layered.network import LayeredNetwork, Scratch, divides_columns, holds_rows
from ...kernels.layered.pointwise import division, grid, row_stride
from ...kernels.layered.sweeps import adjoint_kernel, cost_kernel, inputs_kernel, score_kernel
from ...kernels.network_op import is_interpreted
from ...kernels.packing import Program, lay_out, padded
from ...planner import SGP
from ...problem import Problem
from ..products import products_of
from ..stages import stage
from .buffers import Buffers
from .functions import own
from .packed import PackedModel, PackedProblem
from .updating import update
from .work import Make

# How a network's products of so many rows are cut; None leaves them to the library.
Cuts = Callable[[Program, int], RowCut | ColumnCut | None]
# Those of whole rows, by the name of the way to plan.
ROW_CUTS = {f"layered with products of {cut.block_b} rows": cut for cut in (RowCut(64, 64, 16, 3), RowCut(32, 64, 8, 3))}
# Rows to which products of some columns serve: one a program, and more of them. Past that every program of a row makes the
# operand for itself at a price.
FEW, SOME = 8, 128
# Rows of a program of a traced cost, a row a lane.
FUNCTION_PROGRAM = 32


class Layered:
    """All iterations of a bucket. Allocates its workspace once; `iterate` and `evaluate` only enqueue.

    Networks' products of float32 are IEEE or tf32, and those of half precision may be summed in it across blocks, as
    `torch.backends.cuda.matmul` says; how rows become tf32 is the library's business. Those of costs are IEEE.
    """

    name = "layered"

    def __init__(
        self, packed: PackedProblem, planner: SGP, buffers: Buffers, settled: int, cuts: Cuts = lambda program, rows: None
    ) -> None:
        """`settled` is the iteration from which the schedules no longer change."""
        self.packed, self.buffers, self.settled, self.iterations = packed, buffers, settled, planner.iterations
        T, R, columns = buffers.horizon, buffers.rows, packed.columns
        self._T, self._R = T, R
        self._ending = T if packed.has_terminal else T - 1  # the last state that a cost is of
        self._bounding = "none" if buffers.low is None else planner.bounding
        self._planner = planner

        rows = {"dynamics": R, "score": T * R, "cost": T * R, "terminal": R}
        passes = {"dynamics": T, "score": 0, "cost": 1, "terminal": 1}
        users: list[tuple[Program, int]] = [(m.network.program, rows[name]) for name, m in packed.models.items()]
        self._scratch = Scratch.allocate(users, packed.dtype, packed.device)
        self._networks = {
            name: LayeredNetwork(
                model.network, rows[name], self._scratch, passes[name], cuts(model.network.program, rows[name])
            )
            for name, model in packed.models.items()
        }

        def floats(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=packed.device)

        self._pull = floats(T + 1, R, columns)  # of the costs, less β s; the terminal cost's comes last
        self._cotangent = floats(R, columns)
        learned = packed.curvature is None and packed.last_curvature is None and not packed.functions.present
        self._from_goal = floats(0 if learned else T * R, columns)
        self._origin = torch.zeros(1, columns, dtype=torch.float32, device=packed.device)
        self._steps = torch.arange(T, device=packed.device)[:, None]
        self._seed = floats(1, max(net.program.out_columns for net in self._networks.values()))
        self._seed.zero_()[0, 0] = 1.0
        score = packed.score
        self._level_row = None
        if score is not None and score.network.spec.levels:
            self._level_row = floats(1, score.network.program.condition_columns)

    def iterate(self, first: int, last: int) -> None:
        """Enqueue iterations `first … last−1`."""
        self._begin()
        for i in range(first, last):
            self._evaluate(i)
            with stage("update"):
                self._update(i, i >= self.settled, moves=True)

    def evaluate(self, settled: bool) -> None:
        """Enqueue the evaluation and judgement of the last iterate; what diverges is evaluated where it was good."""
        with stage("last pass"):
            self._begin()
            for _ in range(2):
                self._evaluate(self.iterations - 1, last_state=True)
                self._update(self.iterations - 1, settled, moves=False)

    @property
    def bytes(self) -> int:
        """Of the workspace."""
        return sum(t.numel() * t.element_size() for t in self.workspace)

    @property
    def workspace(self) -> tuple[Tensor, ...]:
        """What is written before it is read in every iteration."""
        own = (self._pull, self._cotangent, self._from_goal, *self._scratch.tensors)
        kept = (t for net in self._networks.values() for t in (net.saved, net.moments))
        return (*own, *kept) if self._level_row is None else (*own, *kept, self._level_row)

    def _begin(self) -> None:
        b = self.buffers
        b.x[:, 0].copy_(b.x0)
        if not self.packed.has_terminal:
            b.terminal.zero_()
            b.costate[:, -1].zero_()

    def _evaluate(self, i: int, last_state: bool = False) -> None:
        """One pass of the planner at the level and β of iteration i: see `backends.eager.evaluate`."""
        with stage("rollout"):
            self._rollout(self._T if last_state else self._ending)
        with stage("cost"):
            self._costs()
        with stage("score"):
            self._score(i)
        with stage("adjoint"):
            self._adjoint()

    def _rollout(self, steps: int) -> None:
        """`x_{t+1} = x_t + scale ⊙ net(z̄_t)`, so many times."""
        net, out = self._networks["dynamics"], None
        if net.columns_divided:
            for t in range(steps):
                out = net.forward_step(functools.partial(self._begin_step, t), out, keep=t)
            out = None if out is None else net.finish(out, keep=steps - 1)
        else:
            for t in range(steps):
                self._inputs(net.inputs, t, self.packed.dynamics, out=out)
                out = net.forward(keep=t)
        if steps:
            self._inputs(None, steps, self.packed.dynamics, out=out)

    def _begin_step(self, t: int, *given: Any, **kind: Any) -> None:
        p, b = self.packed, self.buffers
        step_forward(
            *given, x=b.x, v=b.v, low=b.low, high=b.high, scale=p.scale, b=p.dynamics.b, inv_k=p.dynamics.inv_k, t=t,
            T=self._T, NX=p.nx, NU=p.nu, BOUNDING=self._bounding, **kind,
        )  # fmt: skip

    def _costs(self) -> None:
        """Values and gradients of the costs of all steps at once, and of the terminal cost."""
        p, b, T = self.packed, self.buffers, self._T
        running, last = self._pull[:T].flatten(0, 1), self._pull[T]
        if p.curvature is not None:
            self._quadratic(p.curvature, p.goal, 0, b.running, running)
        if p.cost is not None:
            self._learned("cost", p.cost, 0, b.running, running)
        if p.last_curvature is not None:
            self._quadratic(p.last_curvature, p.last_goal, T, b.terminal, last)
        if p.terminal is not None:
            self._learned("terminal", p.terminal, T, b.terminal, last)
        if p.functions.costs.running is not None:
            self._function(p.functions.running, p.functions.calls, 0, b.running, running)
        if p.functions.costs.terminal is not None:
            self._function(p.functions.terminal, p.functions.last_calls, T, b.terminal, last)

    def _function(self, function: Any, calls: Callable[..., Any] | None, t: int, value: Tensor, pull: Tensor) -> None:
        """A cost that is not of ours: traced, in a kernel of its own; else the cost itself, in PyTorch."""
        p, b, rows = self.packed, self.buffers, len(pull)
        z = self._from_goal[:rows]
        self._inputs(z, t, None, goal=self._origin)
        pull.zero_()
        if calls is None:
            kernel: Any = function_kernel  # to the type checker it has no num_warps
            kernel[(-(-rows // FUNCTION_PROGRAM),)](
                z, b.goal, p.functions.params, value, pull, t, rows, self._R, FUNCTION=function, STEPS=rows // self._R,
                COLUMNS=p.columns, NX=p.nx, PARAMS=p.functions.params_width, BLOCK_B=FUNCTION_PROGRAM,
                num_warps=1,
            )  # fmt: skip
            return
        x, u = z[:, : p.nx], z[:, p.nx : p.nx + p.nu]
        with products_of("float32", p.device):
            if t == self._T:
                values, *grads = calls(x, b.goal, p.functions.given)
                value.copy_(values)
            else:
                x, u = x.view(self._T, self._R, -1), u.view(self._T, self._R, -1)
                values, *grads = calls(x, u, b.goal, self._steps, p.functions.given)
                value.copy_(values.T)
        pull[:, : p.nx + p.nu * (len(grads) - 1)].copy_(torch.cat(grads, -1).flatten(0, -2))

    def _quadratic(self, curvature: Tensor, own_goal: Tensor, t: int, value: Tensor, pull: Tensor) -> None:
        """`½ dᵀ S d` and `S d`, in float32 whatever the networks' products are in."""
        d = self._from_goal[: len(pull)]
        self._inputs(d, t, None, goal=own_goal if self.buffers.goal is None else self.buffers.goal)
        with products_of("float32", self.packed.device):
            torch.mm(d, curvature, out=pull)  # S is symmetric
        self._value(pull, d, None, value, pull, OUT_COLUMNS=1, SIGN=1)

    def _learned(self, name: str, model: PackedModel, t: int, value: Tensor, pull: Tensor) -> None:
        """A network's output and input-gradient; as a terminal cost, of what it values, taken off."""
        net = self._networks[name]
        self._inputs(net.inputs, t, model)
        out = net.forward(keep=0)
        grad = net.vjp(self._seed[:, : net.program.out_columns])
        sign = -1 if name == "terminal" else 1
        self._value(grad, out, model.inv_k, value, pull, OUT_COLUMNS=net.program.out_columns, SIGN=sign)

    def _score(self, i: int) -> None:
        """Scores of all steps at once."""
        model = self.packed.score
        if model is None:
            return
        b, net, T, R = self.buffers, self._networks["score"], self._T, self._R
        if self._level_row is not None:
            table = model.network.vectors[net.program.embedding :][: model.network.spec.levels * self._level_row.shape[1]]
            torch.index_select(table.view(-1, self._level_row.shape[1]), 0, b.level[i : i + 1], out=self._level_row)
        self._inputs(net.inputs, 0, model)
        out = net.forward(self._level_row)
        self._launch(
            score_kernel, T * R, out, model.inv_k, self.packed.gain, b.level, b.beta, b.score, self._pull, i, T * R, R,
            T=T, NZ=self.packed.nx + self.packed.nu,
        )  # fmt: skip

    def _adjoint(self) -> None:
        """Costates and gradients in the controls, from the last state that a cost is of to the first."""
        net, grad, pulls = self._networks["dynamics"], None, self._pull
        if net.columns_divided:
            for t in range(self._ending, 0, -1):
                grad = net.vjp_step(functools.partial(self._begin_costate, t, pulls[t]), grad, keep=t - 1)
        else:
            for t in range(self._ending, 0, -1):
                self._costate(t, pulls[t], grad)
                grad = net.vjp(self._cotangent, keep=t - 1)
        self._costate(0, pulls[0], grad)

    def _begin_costate(self, t: int, pull: Tensor | None, *given: Any, **kind: Any) -> None:
        p, b = self.packed, self.buffers
        step_backward(
            *given, pull=pull, inv_k=p.dynamics.inv_k, scale=p.scale, costate=b.costate, grad_u=b.grad_u, t=t, T=self._T,
            NX=p.nx, NU=p.nu, **kind,
        )  # fmt: skip

    def _costate(self, t: int, pull: Tensor | None, grad: Tensor | None) -> None:
        p, b = self.packed, self.buffers
        self._launch(
            adjoint_kernel, self._R, pull, grad, p.dynamics.inv_k, p.scale, b.costate, b.grad_u, self._cotangent, t, self._R,
            T=self._T, NX=p.nx, NU=p.nu,
        )  # fmt: skip

    def _inputs(
        self, z: Tensor | None, t: int, model: PackedModel | None, goal: Tensor | None = None, out: Tensor | None = None
    ) -> None:
        """Write z for a network, or less a goal, from step t on; with `out` the state of step t before that."""
        p, b = self.packed, self.buffers
        offset = goal if model is None else model.b
        assert offset is not None
        rows = self._R if z is None else len(z)
        v = b.v if t < self._T else None
        inv_k = None if model is None else model.inv_k
        self._launch(
            inputs_kernel, rows, b.x, v, b.low, b.high, out, p.scale, offset, inv_k, z,
            t, rows, self._R, row_stride(offset) if offset.ndim == 2 else 0,
            T=self._T, NX=p.nx, NU=p.nu, B_COLUMNS=offset.shape[-1], BOUNDING=self._bounding,
        )  # fmt: skip

    def _value(
        self, grad: Tensor, of: Tensor, inv_k: Tensor | None, value: Tensor, pull: Tensor, OUT_COLUMNS: int, SIGN: int
    ) -> None:
        rows = len(pull)
        self._launch(
            cost_kernel, rows, grad, of, inv_k, value, pull, rows, self._R,
            STEPS=rows // self._R, OUT_COLUMNS=OUT_COLUMNS, SIGN=SIGN,
        )  # fmt: skip

    def _update(self, i: int, settled: bool, *, moves: bool) -> None:
        """Judge all problems, and move them or not."""
        update(self.packed, self._planner, self.buffers, i, settled=settled, moves=moves)

    def _launch(self, kernel: Any, rows: int, *arguments: Any, **constants: Any) -> None:
        """A kernel over whole tiles."""
        columns = self.packed.columns
        kernel[grid(rows, columns)](*arguments, **constants, **division(columns))


def layered_plans(problem: Problem, planner: SGP, size: int) -> dict[str, Make]:
    """The regime with the library's products and, where they serve some network of the problem, with our own."""
    all_steps = planner.horizon * size
    parts = (
        (problem.dynamics, size), (problem.score, all_steps), (own(problem.cost), all_steps), (own(problem.terminal), size)
    )  # fmt: skip
    columns = padded(problem.dynamics.nx + problem.dynamics.nu)
    found = ((getattr(part, "network", None), rows) for part, rows in parts)
    programs = [(lay_out(network.spec, columns).program, rows) for network, rows in found if network is not None]
    ways: dict[str, Make] = {"layered": Layered}
    cuts = functools.partial(few_rows, planner.product_dtype)
    if any(cuts(*given) is not None for given in programs):
        ways["layered with products of some columns"] = functools.partial(Layered, cuts=cuts)
    if planner.product_dtype != torch.float32 and any(holds_rows(program) for program, _ in programs):
        named = {"layered with products of 16 rows": INTERPRETED} if is_interpreted() else ROW_CUTS
        ways |= {name: functools.partial(Layered, cuts=functools.partial(whole_rows, cut)) for name, cut in named.items()}
    return ways


def whole_rows(cut: RowCut, program: Program, rows: int) -> RowCut | None:
    return cut if holds_rows(program) else None


def few_rows(dtype: torch.dtype, program: Program, rows: int) -> ColumnCut | None:
    """In float32 there is no matrix unit for more than a few."""
    if rows > (SOME if dtype != torch.float32 else FEW) or not divides_columns(program):
        return None
    return ONE_ROW if rows <= FEW else SOME_ROWS
