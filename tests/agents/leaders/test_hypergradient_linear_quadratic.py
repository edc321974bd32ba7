"""The hypergradient over linear-quadratic games: Riccati's follower in place of a soft optimum, with the same verbs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import (
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    Linear,
    MetaGradient,
    TabularPBRL,
)
from bilevel_gym.agents.leaders.hypergradient import hypergradient, soft_leader_return
from bilevel_gym.envs.mdp import LinearQuadraticProblem, random_linear_quadratic, steering_game
from tests.problems import assert_gradient, autograd, numerical_gradient

ID = "bilevel_gym/LQStackelberg-v0"
GAMES: dict[str, Callable[[], LinearQuadraticProblem]] = {
    "steering": steering_game,
    "far-sighted": lambda: steering_game(gamma=0.97),
    "three states": lambda: random_linear_quadratic(3, 2, seed=1),
    "one state": lambda: random_linear_quadratic(1, 1, gamma=0.95, seed=2),
}
games = pytest.mark.parametrize("name", GAMES)


def inner_x(problem: LinearQuadraticProblem, seed: int = 0) -> Tensor:
    low, high = problem.leader_set.low, problem.leader_set.high
    rng = torch.Generator().manual_seed(seed)
    return low + (0.2 + 0.6 * torch.rand(len(low), generator=rng, dtype=torch.float64)) * (high - low)


@games
def test_the_hypergradient_is_the_gradient(name: str) -> None:
    problem = GAMES[name]()
    for seed in range(3):
        x = inner_x(problem, seed)
        numerical = numerical_gradient(lambda z: problem.leader_return(z, problem.best_response(z).F), x)
        value, gradient, answer = hypergradient(problem, x, 0.0)
        assert_gradient(gradient, numerical)
        assert_gradient(autograd(lambda z: soft_leader_return(problem, z, 0.0)[0], x), numerical)
        assert float(value) == pytest.approx(float(problem.leader_return(x, answer.F)), rel=1e-12)
        assert answer.residual < 1e-10


@games
def test_ascent_arrives_at_a_stationary_point(name: str) -> None:
    problem = GAMES[name]()
    config = HypergradientConfig(learning_rate=Linear(0.1, 1e-6), eval_every=100, keep_best=False)
    leader = Hypergradient(problem, config=config).learn(400)
    x = torch.from_numpy(leader.last_x)
    step = problem.project(x + problem.leader_return_gradient(x)) - x
    assert float(step.norm()) < 1e-8
    start = problem.project(problem.start_x() + problem.leader_return_gradient(problem.start_x()))
    assert float((start - problem.start_x()).norm()) > 1e-2  # the start is none
    assert leader.evaluate().leader_return == pytest.approx(problem.optimum().leader_return, abs=1e-12)


def test_its_record_is_riccatis() -> None:
    leader = Hypergradient(ID).learn(20)
    problem = leader.problem
    assert isinstance(problem, LinearQuadraticProblem)
    x, record = torch.from_numpy(leader.x), leader.evaluate()
    F = problem.best_response(x).F
    assert record.leader_return == record.leader_return_at_pi_y == float(problem.leader_return(x, F))
    assert record.gap == pytest.approx(0.0, abs=1e-12)
    assert record.tau == 0.0
    assert record.penalty is None
    assert record.lam is None
    assert leader.history[-1].leader_return > leader.history[0].leader_return
    (own,) = leader.policies()
    torch.testing.assert_close(own, problem.best_response(torch.from_numpy(leader.last_x)).F, rtol=0.0, atol=0.0)


def test_the_gap_is_the_followers_loss() -> None:
    """A held F that is not the best: J_F(x, F*) - J_F(x, F)."""
    leader = Hypergradient(steering_game())
    problem = steering_game()
    x = inner_x(problem)
    best = problem.best_response(x).F
    other = best + 0.1
    level = leader.level
    gap = level.gap(x, (other,), 0.0, level.best_responses(x, (other,), 0.0, level.solve(x, 0.0)))
    expected = float(problem.follower_return(x, best) - problem.follower_return(x, other))
    assert float(gap) == pytest.approx(expected, rel=1e-12)
    assert expected > 1e-3


@pytest.mark.parametrize("source", ["id", "environment", "problem"])
def test_a_leader_comes_back_from_its_file(source: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"id": ID, "environment": gym.make(ID), "problem": steering_game()}
    leader = Hypergradient(given[source], config=HypergradientConfig(learning_rate=Linear(0.1, 0.01))).learn(10)
    path = leader.save(tmp_path / "leader")
    again = Hypergradient.load(path, None if source == "id" else given[source])
    np.testing.assert_array_equal(again.last_x, leader.last_x)
    assert again.evaluate() == leader.evaluate()
    for one in (leader, again):
        one.learn(10, reset_num_timesteps=False)
    np.testing.assert_array_equal(again.last_x, leader.last_x)


@pytest.mark.parametrize(
    "other",
    [
        steering_game(gamma=0.91),
        steering_game(sigma=0.2),
        steering_game(leader_effort=0.1),
        steering_game(follower_effort=0.4),
        steering_game(noise=0.2),
        random_linear_quadratic(3, 2),
    ],
)
def test_a_file_of_another_game_is_refused(other: LinearQuadraticProblem, tmp_path: Path) -> None:
    path = Hypergradient(steering_game()).learn(1).save(tmp_path / "leader.zip")
    with pytest.raises(ValueError, match="problem: expected the problem of"):
        Hypergradient.load(path, other)


@pytest.mark.parametrize("tau", [0.1, Linear(0.1, 0.0), Linear(0.0, 0.1)])
def test_there_is_no_temperature(tau: Any) -> None:
    with pytest.raises(ValueError, match=r"^tau: expected 0: this problem's follower is not regularised, got"):
        Hypergradient(ID, config=HypergradientConfig(tau=tau))
    assert Hypergradient(ID, config=HypergradientConfig(tau=0.0)).tau == 0.0


@pytest.mark.parametrize("method", [TabularPBRL, IndependentPolicyGradient, MetaGradient])
def test_methods_that_need_a_table_say_so(method: Any) -> None:
    with pytest.raises(ValueError, match=r"^problem: expected a TabularProblem or a GameProblem, an environment that"):
        method(ID)
