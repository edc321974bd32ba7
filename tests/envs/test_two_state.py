"""The closed forms of the two-state problem against the numerics of envs.mdp."""

import math
from typing import Any

import gymnasium as gym
import pytest
import torch

from bilevel_gym.envs import mdp
from bilevel_gym.envs.two_state import TwoStateProblem

PROBLEMS = [TwoStateProblem(), TwoStateProblem(gamma=0.5, bonus=-0.3, cost=0.2, benefit=2.0)]
X = [-0.7, 0.54, 0.6, 2.9]
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def policy(y_0: float, y_1: float) -> torch.Tensor:
    return torch.tensor([[1 - y_0, y_0], [1 - y_1, y_1]], dtype=torch.float64)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("tau", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("x", X)
def test_best_response_and_value(problem: TwoStateProblem, tau: float, x: float) -> None:
    optimum = mdp.solve_soft(problem.follower_mdp(vector(x)), tau)
    torch.testing.assert_close(problem.follower_value(vector(x), tau), optimum.V, **EXACT)
    torch.testing.assert_close(problem.best_response(vector(x), tau), optimum.pi, **EXACT)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("tau", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("pi", [policy(0.2, 0.9), policy(0.0, 1.0), policy(0.5, 0.01)])
def test_penalties(problem: TwoStateProblem, tau: float, pi: torch.Tensor) -> None:
    for x in X:
        model = problem.follower_mdp(vector(x))
        optimum = mdp.solve_soft(model, tau)
        gap = mdp.suboptimality(model, pi, tau, optimum)
        torch.testing.assert_close(problem.value_penalty(vector(x), pi, tau), gap, **EXACT)
        # max over distributions of <Q*, p> - tau h(p), less its value at pi
        Q, h = optimum.Q, mdp.negative_entropy(pi)
        loss = mdp.soft_maximum(model, Q, tau) - (pi * Q).sum(-1) + tau * h
        for mu in (vector(0.5, 0.5), vector(0.9, 0.3)):
            torch.testing.assert_close(problem.bellman_penalty(vector(x), pi, tau, mu), mu @ loss, **EXACT)
        torch.testing.assert_close(problem.bellman_penalty(vector(x), pi, tau), loss.mean(), **EXACT)


@pytest.mark.parametrize("tau", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_optimum_is_stationary_and_best(problem: TwoStateProblem, tau: float) -> None:
    """At tau = 0.001, e^K is beyond the largest float and F nearly jumps."""
    optimum = problem.optimum(tau)
    x = optimum.x.clone().requires_grad_()
    F = problem.leader_return(x, problem.best_response(x, tau))
    assert F.item() == pytest.approx(optimum.leader_return, abs=1e-10)
    (slope,) = torch.autograd.grad(F, x)
    assert abs(float(slope[0])) < 1e-9
    grid = torch.linspace(-1, 3, 801, dtype=torch.float64)[:, None]
    assert optimum.leader_return >= max(float(problem.leader_return(z, problem.best_response(z, tau))) for z in grid)
    K = (problem.benefit - problem.cost + problem.gamma * problem.bonus) / tau - 1
    u = (float(optimum.x[0]) - problem.cost + problem.gamma * problem.bonus) / tau
    assert math.exp(u) + u == pytest.approx(K, rel=1e-10)
    assert optimum.leader_return == pytest.approx(tau * math.exp(u) / (1 - problem.gamma), rel=1e-10)


def test_optimum_outside_the_leader_set_is_clipped() -> None:
    assert TwoStateProblem(benefit=50.0, tau=1.0).optimum().x.tolist() == [3.0]
    low = TwoStateProblem(cost=-9.0, benefit=-5.0, tau=0.1)
    assert low.optimum().x.tolist() == [-1.0]
    grid = torch.linspace(-1, 3, 101, dtype=torch.float64)[:, None]
    values = [float(low.leader_return(z, low.best_response(z, 0.1))) for z in grid]
    assert low.optimum().leader_return == pytest.approx(max(values), abs=1e-10)


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", 1.0), ("tau", -0.1), ("bonus", math.inf), ("cost", "dear"), ("benefit", math.nan)]
)
def test_wrong_arguments_are_named(name: str, value: object) -> None:
    kwargs: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        gym.make("bilevel_gym/TwoState-v0", **kwargs)


def test_optimum_where_the_follower_is_not_worth_its_price() -> None:
    """K = -3501: e^K is 0 in floats, u = K, and x* = b - tau."""
    optimum = TwoStateProblem(benefit=0.2).optimum(1e-4)
    assert float(optimum.x[0]) == pytest.approx(0.2 - 1e-4, abs=1e-12)
    assert optimum.leader_return == pytest.approx(0.0, abs=1e-12)


def test_optimum_needs_a_temperature() -> None:
    with pytest.raises(ValueError, match=r"^tau: expected"):
        TwoStateProblem(tau=0.0).optimum()
