"""Schedules of a number over training, as in SB3: functions of the remaining progress, which falls from 1 to 0."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ..envs.mdp.checks import check_number, plain_fields, require
from .records import storable


@dataclass(frozen=True)
class _Numbers:
    """A schedule given by numbers, which must be finite, and positive where ``positive`` is True."""

    positive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        plain_fields(self)
        low, strictly = (0.0, True) if self.positive else (-math.inf, False)
        for name, value in vars(self).items():
            check_number(value, name, low=low, open_low=strictly, open_high=strictly)


@storable
@dataclass(frozen=True)
class Constant(_Numbers):
    """Always ``value``."""

    value: float

    def __call__(self, progress_remaining: float) -> float:
        return self.value


@storable
@dataclass(frozen=True)
class Linear(_Numbers):
    """Linear interpolation from ``start`` to ``end``."""

    start: float
    end: float

    def __call__(self, progress_remaining: float) -> float:
        return self.end + (self.start - self.end) * progress_remaining


@storable
@dataclass(frozen=True)
class Geometric(_Numbers):
    """Geometric interpolation from ``start`` to ``end``, both positive."""

    start: float
    end: float

    positive: ClassVar[bool] = True

    def __call__(self, progress_remaining: float) -> float:
        return float(self.end * (self.start / self.end) ** progress_remaining)


@storable
@dataclass(frozen=True)
class Quench(_Numbers):
    """Stay at ``start`` for the first ``share`` of training, then jump to ``end``.

    A jump in temperature changes the problem: exact leaders continue from the same x with a fresh optimiser.
    """

    start: float
    end: float
    share: float = 1 / 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.share, "share", low=0.0, high=1.0)

    def __call__(self, progress_remaining: float) -> float:
        return self.start if progress_remaining > 1.0 - self.share else self.end


@storable
@dataclass(frozen=True)
class Power(_Numbers):
    """Power law from ``start`` to ``end``, both positive: ``start / (1 + k/delay)^exponent`` at the progress k.

    The delay follows from the two ends. For example, a schedule ``c / (k + 1)^exponent`` over N iterates starts at c, ends at
    ``c / N^exponent`` and has a delay of one iterate.
    """

    start: float
    end: float
    exponent: float

    positive: ClassVar[bool] = True

    def __call__(self, progress_remaining: float) -> float:
        spread = (self.start / self.end) ** (1.0 / self.exponent) - 1.0
        return float(self.start * (1.0 + spread * (1.0 - progress_remaining)) ** -self.exponent)


Schedule = Constant | Linear | Geometric | Power | Quench


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """The schedule whose every value is ``factor`` times that of another."""
    names = ("value",) if isinstance(schedule, Constant) else ("start", "end")
    return replace(schedule, **{name: factor * getattr(schedule, name) for name in names})


def as_schedule(value: float | Schedule, name: str, *, positive: bool) -> Schedule:
    """Turn a number into a constant schedule, and return a schedule unchanged.

    Raises:
        ValueError: the value at the start or the end is negative, not finite, or zero where ``positive``; a function, as
            Stable-Baselines3 takes them, which no leader file could hold.
    """
    plain = isinstance(value, Schedule) or not callable(value)
    expected = "a number or a schedule of bilevel_gym.agents, e.g. Linear(0.05, 0.005): a leader file holds no function"
    require(plain, name, expected, repr(value))
    schedule = value if isinstance(value, Schedule) else Constant(check_number(value, name))
    for progress_remaining in (1.0, 0.0):
        check_number(schedule(progress_remaining), name, low=0.0, high=float("inf"), open_low=positive, open_high=True)
    return schedule
