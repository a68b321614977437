"""Each loss against a closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sgp_fast as sgp
from sgp_fast.kernels.network import Layer, NetworkSpec
from sgp_fast.training import reward_loss, score_matching_loss, simulation_loss
from sgp_fast.training.tasks import fold_output

F64 = torch.float64


def normalizer(features: int) -> sgp.Normalizer:
    generator = torch.Generator().manual_seed(1)
    b, k = torch.randn(features, generator=generator), 0.5 + torch.rand(features, generator=generator)
    return sgp.Normalizer(b, k).double()


def linear(inputs: int, outputs: int) -> sgp.Network:
    return sgp.Network(NetworkSpec(inputs, (Layer(outputs),)), seed=2).double()


@pytest.mark.parametrize("horizon", [1, 4])
@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_simulation_loss_of_a_linear_model(horizon: int, discount: float) -> None:
    """`x̂_h = A^h x_0 + Σ_i A^{h−1−i} (B u_i + c)`, so every simulated state is known without a loop over the model."""
    nx, nu, rows = 3, 2, 5
    scale = torch.tensor([0.5, 2.0, 1.0], dtype=F64)
    model = sgp.Dynamics(linear(nx + nu, nx), normalizer(nx + nu), scale).double()
    weight, bias = (model.network.weights[f"layers.0.{name}"].detach() for name in ("weight", "bias"))
    jacobian = scale[:, None] * weight / model.normalizer.k
    a, b = (jacobian[:, :nx] + torch.eye(nx, dtype=F64)), jacobian[:, nx:]
    c = scale * bias - jacobian @ model.normalizer.b

    x0, u = torch.randn(rows, nx, dtype=F64), torch.randn(rows, horizon, nu, dtype=F64)
    targets = torch.randn(rows, horizon, nx, dtype=F64)
    expected = torch.zeros(rows, dtype=F64)
    for h in range(1, horizon + 1):
        x = x0 @ torch.matrix_power(a, h).T
        for i in range(h):
            x = x + (u[:, i] @ b.T + c) @ torch.matrix_power(a, h - 1 - i).T
        expected += discount ** (h - 1) * (((x - targets[:, h - 1]) / scale) ** 2).mean(-1) / horizon
    loss = simulation_loss(model, x0, u, targets, discount)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


def test_simulation_loss_is_zero_on_the_models_own_states() -> None:
    model = sgp.Dynamics(linear(5, 3), normalizer(5)).double()
    x0, u = torch.randn(4, 3, dtype=F64), torch.randn(4, 6, 2, dtype=F64)
    states = [x0]
    for h in range(6):
        states.append(model(states[-1], u[:, h]))
    assert simulation_loss(model, x0, u, torch.stack(states[1:], 1)).abs().max() == 0


@pytest.mark.parametrize("output", ["score", "noise"])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_score_matching_loss_of_a_linear_score_on_a_gaussian(output: str, sigma: float) -> None:
    """For z̄ ~ N(0, 1) and s̄ = a z̄ the mean loss is σ²a²(1 + σ²) + 2σ²a + 1: quadrature gives it exactly.

    Its minimum is at a = −1/(1 + σ²), the score of N(0, 1 + σ²), where it is 1/(1 + σ²).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z, noise = (torch.tensor(grid.reshape(-1, 1)) for grid in np.meshgrid(nodes, nodes))
    mass = torch.tensor(np.outer(weights, weights).reshape(-1) / (2 * np.pi))
    units = normalizer(1)

    def mean_loss(a: float) -> float:
        network = linear(1, 1)
        with torch.no_grad():
            network.weights["layers.0.weight"].fill_(a * (sigma if output == "noise" else 1.0))
            network.weights["layers.0.bias"].zero_()
        sigmas = torch.tensor([2.0, sigma], dtype=F64)
        score = sgp.Score(network, units, sigmas, output)  # pyright: ignore[reportArgumentType]
        level = torch.ones(len(z), dtype=torch.long)
        return float((mass * score_matching_loss(score, z * units.k + units.b, level, noise).detach()).sum())

    best = -1 / (1 + sigma**2)
    for a in (0.3, -1.0, best):
        assert mean_loss(a) == pytest.approx(sigma**2 * a**2 * (1 + sigma**2) + 2 * sigma**2 * a + 1, rel=1e-10)
    assert mean_loss(best) == pytest.approx(1 / (1 + sigma**2), rel=1e-10)


@pytest.mark.parametrize("output", ["score", "noise"])
def test_score_matching_loss_reads_the_score_that_planning_reads(output: str) -> None:
    """mean_j (σ s̄(z̄ + σε) + ε)² with `Score.normalized`, in a conditioned network with a level of its own for each row."""
    spec = sgp.models.mlp(4, 4, width=8, hidden_layers=2, norm=True, levels=3)
    sigmas = torch.tensor([0.5, 0.1, 0.02], dtype=F64)
    score = sgp.Score(sgp.Network(spec, seed=0).double(), normalizer(4), sigmas, output)  # pyright: ignore[reportArgumentType]
    z, noise, level = torch.randn(6, 4, dtype=F64), torch.randn(6, 4, dtype=F64), torch.tensor([0, 1, 2, 2, 1, 0])
    sigma = sigmas[level][:, None]
    noisy = z + sigma * noise * score.normalizer.k
    expected = (sigma * score.normalized(noisy, level) + noise).square().mean(-1)
    torch.testing.assert_close(score_matching_loss(score, z, level, noise), expected, rtol=1e-10, atol=0)


def test_reward_loss_and_the_folded_output() -> None:
    """With mean and spread folded in, the cost is `mean + spread · net`, whose error in units of the spread was the loss."""
    cost = sgp.LearnedCost(linear(5, 1), normalizer(5))
    x, u, reward = torch.randn(7, 3, dtype=F64), torch.randn(7, 2, dtype=F64), torch.randn(7, dtype=F64)
    mean, spread = torch.tensor(4.0, dtype=F64), torch.tensor(2.5, dtype=F64)
    before, loss = cost(x, u).detach(), reward_loss(cost, x, u, reward, mean, spread).detach()
    fold_output(cost.network, mean, spread)
    after = cost(x, u).detach()
    torch.testing.assert_close(after, mean + spread * before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(((after + reward) / spread).square(), loss, rtol=1e-10, atol=1e-12)
