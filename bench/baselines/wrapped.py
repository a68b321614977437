"""The explicit adjoint in what PyTorch has against launches: an iteration by `torch.compile`, a plan as one CUDA graph."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from functools import partial
from types import FunctionType

import torch
import torch._inductor.config
from torch import Tensor

from sgp_fast.backends.products import products_of

from ..cases import Case
from ..rung import Runner, Unavailable
from .adjoint import Adjoint, At, start_of, steps_of
from .batch import EVERY, Batch, batch_of

Body = Callable[[], None]
Capture = Callable[[Body, Body, torch.device], Body]

# Runs before a capture: libraries make their handles, workspaces and choices of algorithm in the first ones.
WARM_UP = 3


def compiled(case: Case, *, mode: str) -> Runner:
    """An iteration by `torch.compile` in a mode: compiled at the first plan, and once, as only values of tensors change."""
    gpu = case.device.type == "cuda"
    if mode == "reduce-overhead" and not gpu:
        raise Unavailable("reduce-overhead adds CUDA graphs to the default mode, and on CPUs there are none")
    if (why := _no_compiler(gpu)) is not None:
        raise Unavailable(why)
    batch = batch_of(case, EVERY, narrow=True)
    model, steps, start = Adjoint(batch), steps_of(batch), start_of(batch.u)
    graphs = gpu and mode != "default"
    # On CPUs max-autotune has products for no weights but frozen ones, which are packed ahead of time. The default mode was
    # slower with frozen weights than without where both were measured (AVX2, 1 and 64 problems), so it has them as they are.
    freezing = not gpu and mode == "max-autotune"
    # What autotuning timed would be printed between our own lines, in tables and as JSON; what it logs as wrong still is.
    quiet = {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}
    inductor = partial(torch._inductor.config.patch, {"freezing": freezing} | quiet)

    def iterate(state: Tensor, x0: Tensor, at: At) -> Tensor:
        return model(state, x0, at)

    run: Callable[..., Tensor] = torch.compile(own_code(iterate), mode=mode, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def plan() -> Tensor:
        with products_of(batch.precision, batch.device), inductor():
            state = start
            for at in steps:
                if graphs:  # the next replay writes where this one's result lies, so that must be copied
                    torch.compiler.cudagraph_mark_step_begin()
                    state = run(state, batch.x0, at).clone()
                else:
                    state = run(state, batch.x0, at)
        return state[0].transpose(0, 1)

    return plan


def own_code(function: FunctionType) -> FunctionType:
    """The function with a code object that no other has.

    Dynamo keeps what it compiled by code object: up to eight versions, tried in turn at each call. Closures of one function
    share theirs, so that a sweep's ninth case would fail, and `torch._dynamo.reset` would take from the rungs that are
    timed in turns what they have compiled.
    """
    made = FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__annotations__ = function.__annotations__
    return made


def _no_compiler(gpu: bool) -> str | None:
    """Why `torch.compile` cannot build code here: C++ for CPUs, and for GPUs the C of Triton's launchers."""
    variable, names = ("CC", ("cc", "gcc", "clang")) if gpu else ("CXX", ("g++", "clang++"))
    given = os.environ.get(variable)
    if any(shutil.which(name.split()[0]) for name in ((given,) if given else names)):
        return None
    language = "C" if gpu else "C++"
    wanted = given or ", ".join(names)
    return f"torch.compile needs a {language} compiler and there is no {wanted}; install one, or set {variable} to its path"


def cuda_graph(case: Case) -> Runner:
    """The whole plan, every iteration of it, captured once by hand and replayed."""
    if case.device.type != "cuda":
        raise Unavailable("a CUDA graph needs a GPU")
    return GraphedPlan(batch_of(case, EVERY, narrow=True), capture)


class GraphedPlan:
    """A plan as one graph, and every tensor that it reads or writes: a graph knows addresses and keeps nothing alive."""

    def __init__(self, batch: Batch, capture: Capture) -> None:
        self.batch, self.model, self.steps = batch, Adjoint(batch), steps_of(batch)
        self.u, self.x0, self.out = batch.u.clone(), batch.x0.clone(), torch.empty_like(batch.u)
        with torch.no_grad(), products_of(batch.precision, batch.device):
            self.replay = capture(partial(self.body, self.steps), partial(self.body, self.steps[:1]), batch.device)

    def body(self, steps: list[At]) -> None:
        """Some iterations from `u` and `x0`, and their controls into `out`."""
        state = start_of(self.u)
        for at in steps:
            state = self.model(state, self.x0, at)
        self.out.copy_(state[0])

    def __call__(self) -> Tensor:
        self.u.copy_(self.batch.u)
        self.x0.copy_(self.batch.x0)
        self.replay()
        return self.out.transpose(0, 1).clone()


@functools.cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """To warm up on, and to capture on: never one for both, since cuBLAS keeps a workspace for each stream."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


def capture(whole: Body, part: Body, device: torch.device) -> Body:
    """`whole` as a CUDA graph: the function that replays it.

    `part`, a piece of what `whole` repeats, runs before, on a stream apart, as a capture wants it: at first libraries set
    themselves up and may wait for the device, which a capture forbids.
    """
    with torch.cuda.device(device):
        apart, own = _streams(device)
        apart.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(apart):
            for _ in range(WARM_UP):
                part()
        torch.cuda.current_stream(device).wait_stream(apart)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
            whole()
    return graph.replay
