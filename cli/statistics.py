"""Means over runs and their intervals, for sweeps, benchmarks and pictures; tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, sem, t


class Interval(NamedTuple):
    """An estimate and its 95% interval; the ends are None for a single run, and for runs that are all alike."""

    estimate: float
    low: float | None
    high: float | None

    def text(self, digits: int = 2, kind: str = "f") -> str:
        """``1.52 [1.40, 1.66]``; digits after the point, or of kind ``"g"`` in all."""
        numbers = [f"{number:.{digits}{kind}}" for number in self if number is not None]
        return numbers[0] if len(numbers) < 3 else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"

    @property
    def above_0(self) -> bool:
        """Whether all of the interval is above 0."""
        return self.low is not None and self.low > 0.0

    @property
    def below_0(self) -> bool:
        """Whether all of the interval is below 0."""
        return self.high is not None and self.high < 0.0


def interval(*samples: ArrayLike, statistic: Callable[..., Any] = np.mean, paired: bool = True) -> Interval:
    """A statistic of samples and its interval by the percentile bootstrap.

    Args:
        samples: numbers of runs, ``[runs]`` each.
        statistic: of the samples along an ``axis``.
        paired: whether samples are of the same runs, and resampled together.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    estimate = float(statistic(*arrays, axis=-1))
    if len(arrays[0]) < 2 or all(np.ptp(array) == 0.0 for array in arrays):
        return Interval(estimate, None, None)
    found = bootstrap(
        arrays,
        statistic,
        paired=paired and len(arrays) > 1,
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high))


def student(values: ArrayLike) -> Interval:
    """The mean and its interval by Student's t."""
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, None, None)
    half = float(t.ppf(0.975, len(sample) - 1) * sem(sample))
    return Interval(mean, mean - half, mean + half)


def band(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and 95% bootstrap band of curves ``[runs, points]``."""
    rng = np.random.default_rng(0)
    means = curves[rng.integers(len(curves), size=(2000, len(curves)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return curves.mean(0), low, high


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A markdown table of rows that have the same keys, with columns of equal width."""
    texts = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [texts[0], ["-" * width for width in widths], *texts[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
