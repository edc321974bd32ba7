"""The grid world with a hidden reward: its optimum, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bilevel_gym.agents import leader_return_at_best_response
from bilevel_gym.envs.mdp import solve_soft
from bilevel_gym.envs.reward_grid import RewardGridProblem


def test_paying_the_true_reward_is_the_optimum() -> None:
    problem = RewardGridProblem(size=4)
    best = problem.optimum()
    assert leader_return_at_best_response(problem, best.x, 0.0) == pytest.approx(best.leader_return, abs=1e-9)
    torch.manual_seed(0)
    for _ in range(20):
        x = problem.project(torch.randn(problem.leader_dim, dtype=torch.float64))
        assert leader_return_at_best_response(problem, x, 0.0) <= best.leader_return + 1e-9
    assert leader_return_at_best_response(problem, torch.zeros_like(best.x)) < best.leader_return - 0.1
    with pytest.raises(ValueError, match="tau: expected 0, where the answer is known"):
        problem.optimum(0.1)


def test_the_leader_is_judged_by_the_true_reward_whatever_it_pays() -> None:
    problem = RewardGridProblem(size=3, seed=4)
    u = problem.true_reward
    assert (float(u.min()), float(u.max())) == (0.0, 1.0)
    for x in (torch.zeros(9).double(), u, -u):
        torch.testing.assert_close(problem.leader_reward(x), u.unsqueeze(-1).expand(9, 4))
        torch.testing.assert_close(problem.follower_mdp(x).r, x.unsqueeze(-1).expand(9, 4))
    pi = solve_soft(problem.follower_mdp(-u), 0.0).pi
    assert float(problem.leader_return(-u, pi)) < float(problem.leader_return(u, problem.optimum().pi)) - 0.1
    assert not torch.equal(u, RewardGridProblem(size=3, seed=5).true_reward)


@pytest.mark.parametrize(
    ("name", "value"), [("size", 1), ("gamma", 1.0), ("tau", -1.0), ("intended", 1.5), ("width", 0.0), ("seed", -1)]
)
def test_wrong_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        RewardGridProblem(**{name: value})
