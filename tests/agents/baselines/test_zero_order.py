"""The zero-order leader: its estimate has the smoothed objective's gradient for expectation and the known variance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import Geometric, Linear, ZeroOrder, leader_return_at_best_response
from bilevel_gym.agents.baselines.zero_order import ZeroOrderConfig
from bilevel_gym.agents.leader import Progress
from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularProblem, random_stackelberg
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import F64, array_problem, autograd, random_mdp, random_x


def bandit(objective: Any, dim: int) -> ArrayProblem:
    """A leader alone: F(x) = objective(x)."""
    base = random_mdp(0, n_states=1, n_actions=1, gamma=0.0)
    return ArrayProblem(base, LeaderSet.box(dim, -50.0, 50.0), lambda x: base.r, lambda x: objective(x).view(1, 1))


def gradients(problem: TabularProblem, x: Tensor, u: float, directions: int, n: int, **kwargs: Any) -> Tensor:
    """n estimates at x, ``[n, dim]``."""
    config = ZeroOrderConfig(directions=directions, smoothing=u, **kwargs)
    leader, rows = ZeroOrder(problem, config=config, x0=x.numpy()), []
    for _ in range(n):
        leader.method.descend(leader.state, Progress(0, 1))
        assert leader.state.x.grad is not None
        rows.append(-leader.state.x.grad)
    return torch.stack(rows)


def assert_expectation(rows: Tensor, expected: Tensor, at_least: float) -> None:
    """Within four standard errors, which are a small part of what is estimated."""
    error = rows.std(0) / len(rows) ** 0.5
    assert float(((rows.mean(0) - expected) / error).abs().max()) < 4.0
    assert float(expected.norm() / error.norm()) > at_least


def test_its_expectation_is_the_smoothed_objective_s_gradient() -> None:
    """E sin(x + u Z) = exp(-u^2/2) sin x: at u = 1.2 the smoothed slope is less than half the true one."""
    x, u = torch.tensor([0.1, -0.7, 2.0], dtype=F64), 1.2
    rows = gradients(bandit(lambda z: torch.sin(z).sum(), 3), x, u, 500, 20)
    assert_expectation(rows, math.exp(-(u**2) / 2) * torch.cos(x), at_least=15.0)
    error = rows.std(0) / len(rows) ** 0.5
    assert float(((rows.mean(0) - torch.cos(x)) / error).abs().max()) > 8.0


def test_its_variance_grows_with_the_dimension() -> None:
    """For a linear F one direction has E |g|^2 = (dim + 2) |grad F|^2."""
    for dim in (1, 4, 16):
        b = torch.linspace(1.0, 2.0, dim, dtype=F64)
        rows = gradients(bandit(lambda z, b=b: b @ z, dim), torch.zeros(dim, dtype=F64), 0.3, 1, 600)
        squares = rows.square().sum(-1) / float(b @ b)
        assert float((squares.mean() - dim - 2) / (squares.std() / 600**0.5)) == pytest.approx(0.0, abs=4.0)


@pytest.mark.parametrize("contexts", [False, True])
def test_with_little_smoothing_it_is_the_hypergradient(contexts: bool) -> None:
    base = random_mdp(4, n_states=4, batch=(2,) if contexts else (), terminal=True, masked=True)
    problem = array_problem(base, 4, True, torch.tensor([0.3, 0.7], dtype=F64) if contexts else None)
    x, tau = random_x(problem, 3), 0.3
    rows = gradients(problem, x, 1e-3, 50, 30, tau=tau)
    assert_expectation(rows, autograd(lambda z: soft_leader_return(problem, z, tau)[0], x), at_least=15.0)


def test_points_outside_x_are_projected() -> None:
    def objective(x: Tensor) -> Tensor:
        assert float(x.detach().abs().max()) <= 1.0
        return x.sum()

    base = random_mdp(0, n_states=1, n_actions=1, gamma=0.0)
    problem = ArrayProblem(base, LeaderSet.box(2, -1.0, 1.0), lambda x: base.r, lambda x: objective(x).view(1, 1))
    leader = ZeroOrder(problem, config=ZeroOrderConfig(smoothing=2.0, budget=1.5)).learn(40)
    assert float(np.abs(leader.last_x).sum()) == pytest.approx(1.5)


def test_it_counts_what_it_asks_for() -> None:
    leader = ZeroOrder(TwoStateProblem(), config=ZeroOrderConfig(directions=3, eval_every=2)).learn(5)
    assert leader.evaluations == 5 * 2 * 3
    assert leader.learn(2, reset_num_timesteps=False).evaluations == 7 * 2 * 3


def test_it_arrives_at_the_two_state_optimum() -> None:
    problem = TwoStateProblem(gamma=0.5, tau=0.3)
    config = ZeroOrderConfig(learning_rate=Geometric(0.2, 1e-3), smoothing=Linear(0.1, 0.01), eval_every=1000)
    leader = ZeroOrder(problem, config=config, x0=[0.0]).learn(150)
    assert leader.x[0] == pytest.approx(float(problem.optimum(0.3).x[0]), abs=5e-3)


def test_the_leader_learns() -> None:
    games = [random_stackelberg(4, 3, 3, gamma=0.8, sparsity=0.3, tau=0.05, seed=seed) for seed in range(4)]
    xs = [torch.from_numpy(ZeroOrder(game, config=ZeroOrderConfig(eval_every=1000)).learn(60).x) for game in games]
    learned = np.array([leader_return_at_best_response(game, x) for game, x in zip(games, xs, strict=True)])
    start = np.array([leader_return_at_best_response(game, game.start_x()) for game in games])
    others = np.array([leader_return_at_best_response(game, xs[k - 1]) for k, game in enumerate(games)])
    assert bool((learned > start).all())
    assert bool((learned > others).all())


def test_seeds_and_files(tmp_path: Path) -> None:
    def made(seed: int | None) -> ZeroOrder:
        return ZeroOrder(TwoStateProblem(), config=ZeroOrderConfig(directions=2, eval_every=2), seed=seed)

    whole, other = made(3).learn(6), made(4).learn(6)
    assert bool((whole.x != other.x).any())
    path = made(3).learn(4).save(tmp_path / "zero")
    resumed = ZeroOrder.load(path, TwoStateProblem()).learn(2, reset_num_timesteps=False)
    np.testing.assert_array_equal(resumed.x, whole.x)
    assert resumed.evaluations == whole.evaluations
    assert made(None).learn(1).iteration == 1


@pytest.mark.parametrize(
    "kwargs", [{"directions": 0}, {"directions": 2.5}, {"smoothing": 0.0}, {"smoothing": -1.0}, {"smoothing": math.nan}]
)
def test_bad_configs_are_named(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(kwargs))}: expected "):
        ZeroOrderConfig(**kwargs)
