"""Intervals over games and seeds: Student's t below 20 runs, else the bootstrap (see ``cli.statistics``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bilevel_gym.cli.statistics import Interval, interval

Floats = NDArray[np.float64]


def mean_interval(values: ArrayLike) -> Interval:
    """The mean over games, with its interval."""
    return interval(values)


def paired_difference(a: ArrayLike, b: ArrayLike) -> Interval:
    """The mean of a minus the mean of b over the same games, with its interval."""
    return interval(a, b, statistic=_difference)


def paired_ratio(a: ArrayLike, b: ArrayLike) -> Interval:
    """The mean of a over the mean of b over the same games, with its interval."""
    return interval(a, b, statistic=_ratio)


def stratified_interval(values: ArrayLike) -> Interval:
    """The mean over tasks and seeds, ``[tasks, seeds]``; its interval counts the seeds' spread within each task."""
    return interval(*np.asarray(values, dtype=np.float64), statistic=_mean_of_means, paired=False)


def wins(a: ArrayLike, b: ArrayLike) -> int:
    """Number of games on which a is larger."""
    return int(np.sum(np.asarray(a, dtype=np.float64) > np.asarray(b, dtype=np.float64)))


def _difference(a: Floats, b: Floats, axis: int) -> Floats:
    return np.asarray(a.mean(axis) - b.mean(axis))


def _ratio(a: Floats, b: Floats, axis: int) -> Floats:
    return np.asarray(a.mean(axis) / b.mean(axis))


def _mean_of_means(*tasks: Floats, axis: int) -> Floats:
    return np.asarray(np.mean([task.mean(axis) for task in tasks], axis=0))
