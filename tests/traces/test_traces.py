"""Numbers of a few iterations of every exact leader and of one of some sampled leaders, as they were when last recorded.

A change that moves them on purpose records them anew, ``python -m tests.traces keep tests/traces/recorded.json``, and says why.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.traces import exact_leaders
from tests.traces.cases import CASES

RECORDED = Path(__file__).with_name("recorded.json")
SAMPLED = (
    "PBRL, StackelbergGame, PPO",
    "PBRL, StackelbergGame, A2C, known model",
    "PBRL, StackelbergGame, A2C, x unseen",
    "PBRL, StackelbergGame, DQN built",
    "PBRL, StackelbergGame, DQN built, x unseen",
    "PBRL, StackelbergGame, Bellman, DQN built",
    "PBRL, StackelbergGame, Bellman, QRDQN built, known model",
    "PBRL, StackelbergGame, VecNormalize",
    "PBRL, StackelbergGame, recurrent",
    "PBRL, RewardGrid, relabelled",
    "PBRL, TollDesign, MaskablePPO, known model",
    "PBRL, ends, A2C",
    "PBRL, LQ, PPO built",
    "PBRL, LQ, TD3 built",
    "PBRL, game, PPO",
    "PBRL, game, A2C, known, observed",
    "PBRL, ShapedCartPole, PPO",
    "PBRL, ShapedCartPole, DQN",
    "PBRL, a callable, PPO",
    "CMA-ES, TwoState, A2C",
    "pool, TwoState, A2C",
    "sweep, TwoState, A2C",
    "Optuna, TwoState, A2C",
    "Optuna's CMA-ES, StackelbergGame, DQN",
    "preferences, RewardGrid, A2C",
    "preferences, RewardGrid, DQN",
    "preferences, RewardGrid, planner",
    "preferences, CartPole, PPO",
    "preferences, Pendulum, SAC",
    "DRLHF, RewardGrid, PPO",
    "true reward, RewardGrid, A2C",
)
LONGER = (
    "PBRL, StackelbergGame, A2C, x unseen",
    "PBRL, StackelbergGame, DQN built, x unseen",
    "PBRL, StackelbergGame, Bellman, DQN built",
    "PBRL, StackelbergGame, VecNormalize",
    "PBRL, StackelbergGame, recurrent",
    "PBRL, TollDesign, MaskablePPO, known model",
    "PBRL, LQ, PPO built",
    "PBRL, LQ, TD3 built",
    "PBRL, game, A2C, known, observed",
    "PBRL, ShapedCartPole, DQN",
    "PBRL, a callable, PPO",
    "CMA-ES, TwoState, A2C",
    "Optuna, TwoState, A2C",
    "preferences, RewardGrid, DQN",
    "true reward, RewardGrid, A2C",
)
"""Of these, those that take seconds and whose parts others have too: ``make long`` compares them."""
SEVERAL = {
    "pool, TwoState, A2C": 3,
    "sweep, TwoState, A2C": 2,
    "Optuna, TwoState, A2C": 3,
    "Optuna's CMA-ES, StackelbergGame, DQN": 2,
}
"""Iterations of cases whose first one shows too little; 1 for all others."""
SHOWN = 100
"""Entries of x that are compared, at most: a learned reward has thousands."""


def kept() -> list[str]:
    """Names of the cases that are compared here."""
    return [*exact_leaders.CASES, *SAMPLED]


def numbers(name: str) -> dict[str, Any]:
    """x after the last iteration, the steps, the last record, and what was logged beside it."""
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = case() if name in exact_leaders.CASES else case(iterations=SEVERAL.get(name, 1))  # type: ignore[call-arg]
    last = trace["iterations"][-1]
    return {
        "x": last["last_x"]["first"][:SHOWN],
        "steps": last["num_timesteps"],
        "evaluation": trace["evaluation"],
        "logged": trace["logged"][-1],
    }


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Each number of nested lists and dicts, with where it stands."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{at}/{key}")
    else:
        yield at, value


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONGER else []) for name in kept()]
)
def test_numbers_are_as_they_were(name: str) -> None:
    """Exact leaders to 1e-9, sampled ones, whose networks are in single precision, to 1e-5 of what was recorded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = dict(leaves(numbers(name)))
    finally:
        torch.set_num_threads(threads)
    expected = dict(leaves(json.loads(RECORDED.read_text())[name]))
    tolerance = 1e-9 if name in exact_leaders.CASES else 1e-5
    assert found.keys() == expected.keys()
    for at, value in expected.items():
        exact = value is None or isinstance(value, str)
        near = value if exact else pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True)
        assert found[at] == near, at


def test_every_recorded_case_is_compared() -> None:
    assert list(json.loads(RECORDED.read_text())) == kept()
