"""F at many x at once is F at each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import leader_return_at_best_response
from bilevel_gym.agents.lower_levels import OneFollower
from bilevel_gym.envs.mdp import TabularProblem
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import F64, PROBLEMS, random_x


@pytest.mark.parametrize("tau", [0.5, 0.01])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_row_is_solved_for_itself(name: str, tau: float) -> None:
    problem: TabularProblem = PROBLEMS[name](1)
    xs = torch.stack([random_x(problem, seed) for seed in range(3)])
    expected = [leader_return_at_best_response(problem, x, tau) for x in xs]
    values, V = OneFollower(problem).leader_returns(xs, tau)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=0.0)
    again, _ = OneFollower(problem).leader_returns(xs.flip(0), tau, V.mean(0))
    torch.testing.assert_close(again.flip(0), values, rtol=1e-9, atol=0.0)


def test_an_objective_that_is_no_return() -> None:
    class Certainty(TwoStateProblem):
        def leader_reward(self, x: Tensor) -> Any:
            return None

        def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
            return pi[:, 1].square().sum() - x[0]

    problem, xs = Certainty(), torch.tensor([[0.2], [0.9]], dtype=F64)
    values, _ = OneFollower(problem).leader_returns(xs, 0.1)
    expected = [2.0 * float(problem.best_response(x, 0.1)[0, 1]) ** 2 - float(x[0]) for x in xs]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=F64), rtol=1e-10, atol=1e-12)
