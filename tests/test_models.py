"""Models compute their equations, pullbacks are gradients, weights are what the module holds, files bring all back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.kernels.network import NetworkSpec, mlp, qsm_actor, srpo_behavior
from sgp_fast.models import cast
from sgp_fast.trained import Models
from tests import cases
from tests.cases import F64, NU, NX, SIGMAS, B, T, module, normalizer, relative


def rows(*features: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(T, B, n, generator=generator, dtype=F64) for n in features]


@pytest.mark.parametrize("kind", ["learned", "scaled blocks"])
def test_dynamics_and_their_pullback(kind: str) -> None:
    made = cases.dynamics(kind)
    x, u, costate = rows(NX, NU, NX)
    leaves = x.requires_grad_(), u.requires_grad_()
    want = made.plain(*leaves)
    want_x, want_u = torch.autograd.grad(want, leaves, costate)
    with torch.no_grad():
        got, pull = made.part.vjp(x, u)
        got_x, got_u = pull(costate)
    for ours, theirs in ((got, want), (got_x, want_x), (got_u, want_u), (made.part(x, u), want)):
        assert relative(ours.detach(), theirs.detach()) < 1e-10
    assert (made.part.nx, made.part.nu) == (NX, NU)


@pytest.mark.parametrize("output", ["score", "noise"])
@pytest.mark.parametrize("levels", [0, len(SIGMAS)], ids=["unconditioned", "table"])
def test_score_at_one_level_and_at_a_level_a_row(output: str, levels: int) -> None:
    made = cases.score(output, levels)
    (z,) = rows(NX + NU)
    level = torch.arange(T * B).view(T, B) % len(SIGMAS)
    by_row = made.part(z, level)
    for i in range(len(SIGMAS)):
        assert relative(made.part(z, i), made.plain(z, i)) < 1e-10
        assert relative(by_row[level == i], made.plain(z, i)[level == i]) < 1e-10
    assert relative(made.part.normalized(z, 2), made.plain(z, 2) * made.part.normalizer.k) < 1e-10


def test_dynamics_are_at_rest_where_the_network_is_silent() -> None:
    net = module(mlp(NX + NU, NX, width=4))
    for w in net.weights.values():
        w.zero_()
    x, u = rows(NX, NU)
    assert torch.equal(sgp.Dynamics(net, normalizer(NX + NU))(x, u), x)


def test_weights_have_the_names_and_shapes_of_the_description() -> None:
    for spec in (*cases.FIELD.values(), srpo_behavior(4, 2), qsm_actor(4, 2)):
        net = sgp.Network(spec, seed=0)
        assert {name: tuple(w.shape) for name, w in net.weights.items()} == spec.weight_shapes()
        assert set(net.state_dict()) == set(spec.weight_shapes())


def test_initial_weights_follow_the_seed_alone() -> None:
    spec = cases.FIELD["SGP score"]
    state = torch.get_rng_state()
    one, same, other = sgp.Network(spec, seed=1), sgp.Network(spec, seed=1), sgp.Network(spec, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(w, same.weights[name]) for name, w in one.weights.items())
    assert not torch.equal(one.weights["layers.0.weight"], other.weights["layers.0.weight"])
    bound = (NX + NU) ** -0.5
    assert 0.8 * bound < one.weights["layers.0.weight"].abs().max() <= bound


def test_only_learned_frequencies_are_trained() -> None:
    frozen, learned = sgp.Network(srpo_behavior(4, 2)), sgp.Network(qsm_actor(4, 2))
    assert not frozen.weights["time.frequencies"].requires_grad and learned.weights["time.frequencies"].requires_grad


def zeros(net: sgp.Network) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(w) for name, w in net.state_dict().items()}


def test_a_network_computes_with_the_weights_that_it_holds_now() -> None:
    """However they came there: written to, replaced, swapped for a call, moved, copied."""
    net = module(mlp(3, 2, width=8))
    z = torch.randn(4, 3, dtype=F64)
    assert net(z).abs().max() > 0  # whatever a network keeps for itself, it has it now
    assert not torch.func.functional_call(net, zeros(net), (z,)).any()
    replaced = copy.deepcopy(net)
    replaced.load_state_dict(zeros(net), assign=True)
    assert not replaced(z).any() and net(z).any()
    moved = copy.deepcopy(net).float()
    assert moved(z.float()).dtype == torch.float32
    net.load_state_dict(zeros(net))
    assert not net(z).any()


def test_training_differentiates_every_trained_weight() -> None:
    for spec in cases.FIELD.values():
        net = sgp.Network(spec, seed=0)
        net(torch.randn(3, spec.inputs), net.condition(1)).sum().backward()
        missing = [n for n, w in net.named_parameters() if w.requires_grad and (w.grad is None or not w.grad.any())]
        assert not [n for n in missing if not n.endswith("bias")], (spec, missing)


def test_cast_is_a_frozen_copy() -> None:
    score = cases.score().part.requires_grad_(True)
    made = cast(score, torch.float32, torch.bfloat16)
    assert isinstance(made, sgp.Score)
    for name, w in made.network.weights.items():
        matrix = w.ndim == 2 and name.startswith("layers.")
        assert w.dtype == (torch.bfloat16 if matrix else torch.float32), name
        assert not w.requires_grad
    assert made.normalizer.b.dtype == torch.float32
    assert all(w.dtype == F64 and w.requires_grad for w in score.network.weights.values())


def trained(dtype: torch.dtype, output: str = "score") -> Models:
    parts = cases.dynamics("scaled blocks").part, cases.score(output).part, cases.cost("learned").part
    dynamics, score_, cost = (copy.deepcopy(part).to(dtype) for part in parts)
    return Models(dynamics, score_, cost, {"data": "made here", "steps": 3})


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_models_save_and_load(tmp_path: Path, dtype: torch.dtype) -> None:
    models = trained(dtype, output="noise")
    path = models.save(tmp_path / "run")
    for source in (tmp_path / "run", path):
        loaded = sgp.load_models(source)
        assert loaded.info == models.info and loaded.score.output == "noise"
        for part in ("dynamics", "score", "cost"):
            ours, theirs = getattr(models, part), getattr(loaded, part)
            assert theirs.network.spec == ours.network.spec and not theirs.training
            states = ours.state_dict(), theirs.state_dict()
            assert states[0].keys() == states[1].keys()
            for name, t in states[0].items():
                assert states[1][name].dtype == dtype, f"{part}.{name} came back as {states[1][name].dtype}"
                assert torch.equal(t, states[1][name])
            assert not any(p.requires_grad for p in theirs.parameters())


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    path = trained(torch.float32).save(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere.*does not exist"):
        sgp.load_models(tmp_path / "nowhere")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated.*make it again"):
        sgp.load_models(tmp_path)


def net(inputs: int, outputs: int, levels: int = 0) -> sgp.Network:
    return module(mlp(inputs, outputs, width=4, hidden_layers=2, levels=levels))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sgp.Normalizer(torch.zeros(2), torch.ones(3)), "b has shape .*expected one"),
        (lambda: sgp.Normalizer(torch.zeros(2), torch.tensor([1.0, 0.0])), "k has an entry of 0.*constant features by 1"),
        (lambda: sgp.Normalizer(torch.zeros(2), torch.tensor([1.0, torch.nan])), "k has an entry"),
        (lambda: sgp.Dynamics(net(5, 3), normalizer(4)), "Dynamics: the network takes 5 inputs and the normalizer 4"),
        (lambda: sgp.Dynamics(net(5, 3), normalizer(5), torch.ones(2)), r"Dynamics: scale has shape \(2,\).*\[3\]"),
        (lambda: sgp.Score(net(5, 5, 3), normalizer(5), SIGMAS), "Score: 4 sigmas for .* 3 levels; give as many"),
        (lambda: sgp.Score(net(5, 5), normalizer(5), -SIGMAS), "Score: sigmas is .*positive"),
        (lambda: sgp.Score(net(5, 5), normalizer(5), SIGMAS, "energy"), "Score: output='energy'"),  # pyright: ignore[reportArgumentType]
        (lambda: sgp.LearnedCost(net(5, 2), normalizer(5)), "LearnedCost: the network has 2 outputs.*make it 1"),
        (lambda: sgp.TerminalValue(net(5, 2), normalizer(5)), "TerminalValue: the network has 2 outputs.*make it 1"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_description_is_enough_to_build_the_network() -> None:
    spec = cases.FIELD["SRPO behaviour"]
    again = sgp.Network(NetworkSpec.from_dict(spec.to_dict()), seed=3)
    z, t = torch.randn(2, spec.inputs), torch.tensor([0.1, 0.7])
    first = sgp.Network(spec, seed=3)
    assert torch.equal(again(z, again.condition(t)), first(z, first.condition(t)))
