"""Learned models: a network with its normaliser, as dynamics or score.

Every model offers `forward` for autograd (training) and, where planning needs a gradient, `vjp`: the value and a function
that pulls a cotangent back, computed by hand without autograd (see `kernels.reference`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from .kernels.network import Block, Layer, NetworkSpec, Shapes, TimeEmbedding, mlp, qsm_actor, srpo_behavior
from .kernels.reference import Saved, condition_ref, network_forward_ref, network_vjp_ref

__all__ = [
    "Block", "Dynamics", "Ensemble", "Layer", "Network", "NetworkSpec", "Normalizer", "Score", "TimeEmbedding",
    "mlp", "qsm_actor", "srpo_behavior",
]  # fmt: skip

Pullback = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """The weights of a `NetworkSpec`, under the names of `NetworkSpec.weight_shapes`.

    Weights start as PyTorch's own layers do, U(±1/√inputs) for products; from `seed` where one is given.
    """

    def __init__(self, spec: NetworkSpec, seed: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        shapes = spec.weight_shapes()
        self._homes: list[tuple[str, nn.Module, str]] = []
        for name, shape in shapes.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            weight = _initial(name, shape, shapes, spec, generator)
            trained = name != "time.frequencies" or (spec.time is not None and spec.time.learned)
            owner.register_parameter(last, nn.Parameter(weight, requires_grad=trained))
            self._homes.append((name, owner, last))

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Name → tensor: the very parameters of this moment, not copies."""
        return {name: getattr(owner, last) for name, owner, last in self._homes}

    def condition(self, at: Tensor | int) -> Tensor | None:
        """The conditioning vector(s) of noise level or time `at`."""
        return condition_ref(self.spec, self.weights, at)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Output `[..., outputs]` for inputs `z [..., inputs]`."""
        return network_forward_ref(self.spec, self.weights, z, condition)

    def vjp(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """Output, and the function that maps a cotangent of the output to one of `z`."""
        saved: Saved = []
        weights = self.weights
        out = network_forward_ref(self.spec, weights, z, condition, saved)
        return out, lambda grad: network_vjp_ref(self.spec, weights, saved, grad, condition)

    def extra_repr(self) -> str:
        return f"{self.spec.inputs} → {' → '.join(map(str, self.spec.widths))}"


class Normalizer(nn.Module):
    """`z̄ = (z − b)/k`, with `b` and `k` of shape `[features]` and every `k` positive."""

    b: Tensor
    k: Tensor

    def __init__(self, b: Tensor, k: Tensor) -> None:
        super().__init__()
        if b.shape != k.shape or b.ndim != 1:
            raise ValueError(f"b has shape {tuple(b.shape)} and k {tuple(k.shape)}; expected one [features] for both")
        if not bool((k > 0).all()):
            raise ValueError(f"k has an entry of {k.min().item():g}; expected positive ones: scale constant features by 1")
        self.register_buffer("b", b.clone())
        self.register_buffer("k", k.clone())

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.b) / self.k


class Dynamics(nn.Module):
    """Residual transition model `x' = x + scale ⊙ net(z̄)`, `z = (x, u)`.

    `scale [nx]` is the spread of what the network predicts; published SGP uses `k_x` itself, which is the default.
    """

    scale: Tensor

    def __init__(self, network: Network, normalizer: Normalizer, scale: Tensor | None = None) -> None:
        super().__init__()
        nx = network.spec.outputs
        check_inputs("Dynamics", network, normalizer)
        check_unconditioned("Dynamics", network)
        scale = normalizer.k[:nx] if scale is None else scale
        if scale.shape != (nx,):
            raise ValueError(f"Dynamics: scale has shape {tuple(scale.shape)}; the network's output makes it [{nx}]")
        self.network, self.normalizer = network, normalizer
        self.register_buffer("scale", scale.clone())

    @property
    def nx(self) -> int:
        return self.network.spec.outputs

    @property
    def nu(self) -> int:
        return self.network.spec.inputs - self.nx

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Next state `[..., nx]` of states `x [..., nx]` under controls `u [..., nu]`."""
        return x + self.scale * self.network(self.normalizer(torch.cat((x, u), -1)))

    def vjp(self, x: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Next state, and the map `λ ↦ ((∂_x f)ᵀ λ, (∂_u f)ᵀ λ)`."""
        out, pull = self.network.vjp(self.normalizer(torch.cat((x, u), -1)))
        nx = x.shape[-1]

        def pullback(costate: Tensor) -> tuple[Tensor, Tensor]:
            g = pull(costate * self.scale) / self.normalizer.k
            return costate + g[..., :nx], g[..., nx:]

        return torch.addcmul(x, out, self.scale), pullback


class Ensemble(nn.Module):
    """Several transition models of the same states and controls, `Dynamics` each, for sampling planners.

    Every member is rolled out under the same controls. A plan costs the mean over the members, and `Sampler.risk` times the
    standard deviation where that is asked for (Chua et al. 2018, arXiv 1805.12114, roll out probabilistic members instead).
    """

    def __init__(self, *members: Dynamics) -> None:
        super().__init__()
        if not members or not all(isinstance(member, Dynamics) for member in members):
            kinds = ", ".join(type(member).__name__ for member in members) or "none"
            raise TypeError(f"Ensemble: the members are {kinds}; expected one Dynamics or more, as in Ensemble(*members)")
        sizes = {(member.nx, member.nu) for member in members}
        if len(sizes) > 1:
            raise ValueError(f"Ensemble: the members have (nx, nu) of {sorted(sizes)}; expected one for all")
        self.members = nn.ModuleList(members)

    @property
    def nx(self) -> int:
        return self[0].nx

    @property
    def nu(self) -> int:
        return self[0].nu

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Dynamics:
        member = self.members[index]
        assert isinstance(member, Dynamics)
        return member


class Score(nn.Module):
    """Score of the data smoothed by noise, `s_σ(z) = s̄(z̄)/k`, at `S = len(sigmas)` noise levels.

    `sigmas [S]` are standard deviations in normalised space, largest first. `output="noise"` reads the network as
    `s̄ = net(z̄, σ)/σ`, `"score"` as `s̄` itself. `variables` says whether z is `(x, u)` or `(x, u, x')`.
    """

    sigmas: Tensor

    def __init__(
        self,
        network: Network,
        normalizer: Normalizer,
        sigmas: Tensor,
        output: Literal["score", "noise"] = "score",
        variables: Literal["xu", "xux"] = "xu",
    ) -> None:
        super().__init__()
        check_inputs("Score", network, normalizer)
        spec = network.spec
        if spec.outputs != spec.inputs:
            raise ValueError(f"Score: the network maps {spec.inputs} features to {spec.outputs}; a score has as many as z")
        if spec.time is not None or (spec.condition_width and not spec.levels):
            raise ValueError("Score: the network must be conditioned by a table of noise levels, or not at all; set levels")
        if sigmas.ndim != 1 or not bool((sigmas > 0).all()):
            raise ValueError(f"Score: sigmas is {sigmas}; expected [levels] of positive noise levels")
        if not bool((sigmas.diff() <= 0).all()):
            raise ValueError(f"Score: sigmas is {sigmas}; expected the largest first: planning anneals to the last")
        if network.spec.levels not in (0, len(sigmas)):
            raise ValueError(f"Score: {len(sigmas)} sigmas for a network with {network.spec.levels} levels; give as many")
        if output not in ("score", "noise") or variables not in ("xu", "xux"):
            raise ValueError(f"Score: output={output!r}, variables={variables!r}; expected score or noise, and xu or xux")
        self.network, self.normalizer = network, normalizer
        self.output, self.variables = output, variables
        self.register_buffer("sigmas", sigmas.clone())

    @property
    def levels(self) -> int:
        return len(self.sigmas)

    def normalized(self, z: Tensor, level: Tensor | int) -> Tensor:
        """`s̄(z̄)`, the score in normalised space, `[..., features]`; its size compares between data sets."""
        out = self.network(self.normalizer(z), self.network.condition(level))
        return out / self.sigmas[level][..., None] if self.output == "noise" else out

    def forward(self, z: Tensor, level: Tensor | int) -> Tensor:
        """`s_σ(z)`, `[..., features]`, at one level for all rows or a level `[...]` per row."""
        return self.normalized(z, level) / self.normalizer.k


def cast(module: nn.Module, state: torch.dtype, products: torch.dtype) -> nn.Module:
    """A frozen copy whose floating tensors have dtype `state` and whose networks multiply in dtype `products`."""
    out = copy.deepcopy(module).requires_grad_(False).to(state)
    for part in out.modules():
        if isinstance(part, Network) and products != state:
            for name, weight in part.weights.items():
                if weight.ndim == 2 and name.startswith("layers."):
                    weight.data = weight.data.to(products)
    return out


def _initial(
    name: str, shape: tuple[int, ...], shapes: Shapes, spec: NetworkSpec, generator: torch.Generator | None
) -> Tensor:
    normal = torch.randn(shape, generator=generator)
    if name == "embedding":
        multiplies = any(isinstance(n, Layer) and n.condition == "multiply" for n in spec.layers)
        return 1 + 0.2 * normal if multiplies else 0.2 * normal
    if name == "time.frequencies":
        return normal * (0.2 if spec.time and spec.time.learned else 30.0)
    if ".norm." in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    bound = shapes[f"{name.rsplit('.', 1)[0]}.weight"][1] ** -0.5
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


def check_unconditioned(owner: str, network: Network) -> None:
    """Refuse a network that wants a noise level or a time where there is none."""
    if network.spec.condition_width:
        raise ValueError(f"{owner}: the network is conditioned on a level or time, and is given none; leave it out")


def check_inputs(owner: str, network: Network, normalizer: Normalizer) -> None:
    features = len(normalizer.b)
    if network.spec.inputs != features:
        raise ValueError(
            f"{owner}: the network takes {network.spec.inputs} inputs and the normalizer {features}; make them equal"
        )
