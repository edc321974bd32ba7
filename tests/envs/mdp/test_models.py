"""Bad models: each error names the field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, StackelbergProblem, TabularMDP, random_stackelberg
from tests.problems import F64, random_mdp


def fields(**changes: Any) -> dict[str, Any]:
    mdp = random_mdp(0, n_states=2, n_actions=2)
    return {"P": mdp.P, "r": mdp.r, "rho": mdp.rho, "gamma": 0.9} | changes


ROWS = torch.full((2, 2, 2), 0.5, dtype=F64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"P": ROWS - torch.tensor([1.0, -1.0])}, r"^P: expected probabilities >= 0, got -0.5 at index \(0, 0, 0\)"),
        ({"P": ROWS * 1.0001}, "^P: expected rows that sum to 1, got a sum of 1.0001"),
        ({"P": ROWS * math.nan}, "^P: expected finite"),
        ({"P": ROWS[0]}, r"^P: expected shape \[..., 2, 2, 2\]"),
        ({"P": torch.full((2, 2, 3), 1 / 3)}, r"^P: expected shape \[..., 2, 2, 2\]"),
        ({"P": ROWS.expand(3, 2, 2, 2), "r": torch.zeros(4, 2, 2)}, "^P: expected batch axes that broadcast"),
        ({"P": "P"}, "^P: expected numbers"),
        ({"r": torch.tensor([[0.0, math.inf], [0.0, 0.0]])}, r"^r: expected finite numbers, got inf at index \(0, 1\)"),
        ({"r": torch.zeros(2)}, "^r: expected shape"),
        ({"r": torch.zeros(0, 2)}, "^r: expected shape .* sizes >= 1"),
        ({"rho": [0.5, 0.4]}, "^rho: expected rows that sum to 1, got a sum of 0.9"),
        ({"rho": [1.5, -0.5]}, "^rho: expected probabilities >= 0"),
        ({"rho": [1.0]}, r"^rho: expected shape \[..., 2\]"),
        ({"rho": [math.nan, 1.0]}, "^rho: expected finite"),
        ({"gamma": 1.0}, r"^gamma: expected a number in \[0, 1\), got 1.0"),
        ({"gamma": -0.1}, r"^gamma: expected a number in \[0, 1\)"),
        ({"gamma": math.nan}, "^gamma: .* got nan"),
        ({"gamma": "x"}, "^gamma: .* got 'x'"),
        ({"gamma": True}, "^gamma: .* got True"),
        ({"terminal": [0, 1]}, "^terminal: expected booleans"),
        ({"terminal": [True]}, "^terminal: expected shape"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, "^mask: expected shape"),
        ({"mask": [[True, True], [False, False]]}, r"^mask: expected at least one action .* in state \(1,\)"),
    ],
)
def test_bad_models(changes: dict[str, Any], message: str) -> None:
    TabularMDP(**fields())
    with pytest.raises(ValueError, match=message):
        TabularMDP(**fields(**changes))


def test_arrays_and_lists_will_do() -> None:
    mdp = TabularMDP(np.full((2, 2, 2), 0.5), [[0, 1], [1, 0]], [0.5, 0.5], 0, [True, False])  # type: ignore[arg-type]
    assert (mdp.P.dtype, mdp.r.dtype, mdp.rho.dtype) == (F64, F64, F64)
    assert mdp.terminal is not None
    assert mdp.terminal.dtype == torch.bool


def game(**changes: Any) -> dict[str, Any]:
    one = torch.zeros(2, 3, 2, dtype=F64)
    rho = torch.tensor([0.5, 0.5])
    return {"P": torch.full((2, 3, 2, 2), 0.5), "r_leader": one, "r_follower": one, "rho": rho, "gamma": 0.9} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"P": torch.full((2, 3, 2, 2), 0.4)}, "^P: expected rows that sum to 1"),
        ({"P": ROWS}, r"^P: expected shape \[S, A_l, A_f, S\]"),
        ({"P": torch.zeros(0, 3, 2, 0)}, "^P: expected shape .* sizes >= 1"),
        ({"r_leader": torch.zeros(2, 2, 3)}, r"^r_leader: expected shape \(2, 3, 2\)"),
        ({"r_leader": torch.full((2, 3, 2), math.nan)}, "^r_leader: expected finite"),
        ({"r_follower": torch.full((2, 3, 2), math.inf)}, "^r_follower: expected finite"),
        ({"rho": torch.tensor([1.0])}, "^rho: expected shape"),
        ({"rho": torch.tensor([1.0, 1.0])}, "^rho: expected rows that sum to 1"),
        ({"gamma": 1.0}, "^gamma: "),
        ({"tau": -0.1}, r"^tau: expected a number in \[0, inf\), got -0.1"),
    ],
)
def test_bad_games(changes: dict[str, Any], message: str) -> None:
    StackelbergProblem(**game())
    with pytest.raises(ValueError, match=message):
        StackelbergProblem(**game(**changes))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_states": 0}, "^n_states: expected a whole number >= 1, got 0"),
        ({"n_leader_actions": -1}, "^n_leader_actions: "),
        ({"n_follower_actions": 2.0}, "^n_follower_actions: "),
        ({"n_states": True}, "^n_states: "),
        ({"gamma": 1.0}, "^gamma: "),
        ({"tau": math.nan}, "^tau: "),
        ({"sparsity": 1.5}, "^sparsity: "),
        ({"seed": -1}, "^seed: "),
        ({"seed": 0.5}, "^seed: "),
    ],
)
def test_bad_random_games(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_stackelberg(**({"n_states": 2} | kwargs))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"follower_reward": lambda x: x}, r"^follower_reward: expected an answer of shape \(2, 2\)"),
        ({"leader_reward": lambda x: torch.zeros(3, 2, 2)}, "^leader_reward: expected an answer of shape"),
        ({"leader_reward": lambda x: "reward"}, "^leader_reward: expected numbers"),
        ({"transition": lambda x: ROWS * 2}, "^P: expected rows that sum to 1"),
        ({"tau": -1.0}, "^tau: "),
    ],
)
def test_bad_problems_from_arrays(kwargs: dict[str, Any], message: str) -> None:
    base = TabularMDP(**fields())
    good: dict[str, Any] = {"follower_reward": lambda x: base.r, "leader_reward": lambda x: base.r}
    with pytest.raises(ValueError, match=message):
        ArrayProblem(base, LeaderSet.box(2, -1.0, 1.0), **(good | kwargs))
