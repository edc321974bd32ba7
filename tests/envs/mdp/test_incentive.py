"""Incentive design: the game that the players meet, the return that the designer earns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bilevel_gym.envs.mdp import IncentiveDesignProblem, random_incentive_design, solve_nash
from tests.problems import F64, generator


def test_the_instance_is_the_one_described() -> None:
    problem = random_incentive_design()
    assert problem.r.shape == (10, 5, 5)
    assert problem.leader_dim == 250
    for tensor in (problem.r, problem.r_id, problem.P, problem.P_id):
        assert 0.0 <= float(tensor.min()) <= float(tensor.max()) <= 1.0
    assert not torch.equal(problem.r, problem.r_id)
    assert not torch.equal(problem.P, problem.P_id)
    again, other = random_incentive_design(seed=0), random_incentive_design(seed=1)
    assert torch.equal(problem.P_id, again.P_id)
    assert not torch.equal(problem.P_id, other.P_id)
    with pytest.raises(NotImplementedError):
        problem.optimum()


def test_x_shifts_the_players_reward_alone() -> None:
    problem = random_incentive_design(4, 3, 2)
    x = 2.0 * torch.randn(problem.leader_dim, generator=generator(0), dtype=F64)
    game = problem.game(x)
    torch.testing.assert_close(game.r[1, 2, 0], problem.r[1, 2, 0] + torch.sigmoid(x[1 * 6 + 2 * 2 + 0]))
    assert game.P is problem.P
    assert problem.leader_set.contains(x)
    assert not problem.leader_set.contains(x + 11.0)


def test_the_designer_s_return_is_the_expectation_in_its_own_world() -> None:
    """Summed step by step, the state's distribution carried along."""
    problem = random_incentive_design(4, 3, 2, gamma=0.7, seed=1)
    nash = solve_nash(problem.game(problem.start_x()), problem.tau)
    joint = nash.pi1.unsqueeze(-1) * nash.pi2.unsqueeze(-2)
    here, total = problem.rho, torch.zeros((), dtype=F64)
    for t in range(100):
        total = total + problem.gamma**t * torch.einsum("s,sab,sab->", here, joint, problem.r_id)
        here = torch.einsum("s,sab,sabt->t", here, joint, problem.P_id)
    torch.testing.assert_close(
        problem.leader_return(problem.start_x(), (nash.pi1, nash.pi2)), total, rtol=1e-12, atol=0.0
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("P", torch.ones(2, 2, 2, 2)),
        ("r", torch.ones(2, 2)),
        ("P_id", torch.ones(2, 2, 2, 2)),
        ("P_id", torch.full((2, 2, 2, 3), 0.5)),
        ("r_id", torch.full((2, 2, 2), float("inf"))),
        ("r_id", torch.ones(2, 2, 3)),
        ("rho", [1.0]),
        ("gamma", 1.0),
        ("tau", -0.1),
    ],
)
def test_wrong_fields_are_named(field: str, value: Any) -> None:
    P, r = torch.full((2, 2, 2, 2), 0.5), torch.zeros(2, 2, 2)
    fields: dict[str, Any] = {"P": P, "r": r, "P_id": P, "r_id": r, "rho": [0.5, 0.5], "gamma": 0.9}
    IncentiveDesignProblem(**fields)
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        IncentiveDesignProblem(**(fields | {field: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_states", 0), ("n_actions_1", 1.5), ("n_actions_2", -1), ("gamma", 1.0), ("tau", -1.0), ("seed", -1)],
)
def test_wrong_arguments_are_named(name: str, value: Any) -> None:
    kwargs: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        random_incentive_design(**kwargs)
