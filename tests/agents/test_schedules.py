"""Schedules in the remaining progress."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.utils import LinearSchedule

from bilevel_gym.agents import PBRLConfig
from bilevel_gym.agents.schedules import Constant, Geometric, Linear, Power, Quench, as_schedule


def test_ends_and_steps() -> None:
    progress = np.linspace(1.0, 0.0, 11)
    assert [Constant(3.0)(p) for p in progress] == [3.0] * 11
    np.testing.assert_allclose([Linear(1.0, 2.0)(p) for p in progress], np.linspace(1.0, 2.0, 11), rtol=1e-15)
    np.testing.assert_allclose([Geometric(2.0, 20.0)(p) for p in progress], np.geomspace(2.0, 20.0, 11), rtol=1e-14)
    np.testing.assert_allclose([Geometric(0.3, 1e-4)(p) for p in progress], np.geomspace(0.3, 1e-4, 11), rtol=1e-14)


def test_a_quench_jumps() -> None:
    values = [Quench(2.0, 0.5, 0.25)(1.0 - k / 8) for k in range(9)]
    assert values == [2.0, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert [Quench(2.0, 0.5, share)(0.5) for share in (0.0, 1.0)] == [0.5, 2.0]
    with pytest.raises(ValueError, match=r"^share: expected a number in \[0, 1\]"):
        Quench(1.0, 0.1, 1.5)


@pytest.mark.parametrize("exponent", [0.05, 0.5, 0.9])
def test_a_power_law_is_that_of_the_iterates_counted(exponent: float) -> None:
    n, start = 1000, 3.0
    schedule = Power(start, start / (n + 1) ** exponent, exponent)
    values = [schedule(1.0 - k / n) for k in range(n + 1)]
    np.testing.assert_allclose(values, start / (1.0 + np.arange(n + 1)) ** exponent, rtol=1e-9)
    with pytest.raises(ValueError, match=r"^exponent: expected a number in \(0"):
        Power(1.0, 0.1, 0.0)


def test_a_number_is_a_constant_schedule() -> None:
    assert as_schedule(0.5, "rate", positive=True) == Constant(0.5)
    assert as_schedule(Linear(0.0, 1.0), "rate", positive=False) == Linear(0.0, 1.0)


@pytest.mark.parametrize(
    "value",
    [
        0.0,
        -1.0,
        math.nan,
        math.inf,
        None,
        "fast",
        Constant(0.0),
        Linear(1.0, 0.0),
        Linear(-1.0, 1.0),
        Quench(-1.0, 1.0),
        Quench(1.0, 0.0),
    ],
)
def test_bad_ends_are_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^rate: expected a number in "):
        as_schedule(value, "rate", positive=True)


def test_ends_are_numbers() -> None:
    for build in (lambda: Linear(1.0, math.nan), lambda: Quench(1.0, "low"), lambda: Linear(None, 1.0)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^(start|end): expected a number in "):
            build()


@pytest.mark.parametrize(
    ("start", "end", "name"), [(0.0, 1.0, "start"), (1.0, 0.0, "end"), (-1.0, 1.0, "start"), (1.0, math.nan, "end")]
)
def test_equal_ratios_need_positive_ends(start: float, end: float, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected a number in \(0"):
        Geometric(start, end)


@pytest.mark.parametrize("given", [lambda progress_remaining: 0.1 * progress_remaining, LinearSchedule(0.1, 0.01, 1.0)])
@pytest.mark.parametrize("name", ["learning_rate", "q_temperature"])
def test_a_function_as_sb3_takes_them_is_refused_by_name(name: str, given: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected a number or a schedule of bilevel_gym.agents, e.g. Linear"):
        PBRLConfig(**{name: given})
