"""Means over runs with confidence intervals, and tables, for sweeps, benchmarks and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, sem, t

BOOTSTRAP_FROM = 20
"""Number of runs from which intervals use the bootstrap; with fewer, Student's t (a bootstrap of three runs covers only 76%)."""


class Interval(NamedTuple):
    """An estimate and its 95% interval; the ends are None for a single run and for runs that are all equal.

    Attributes:
        estimate: estimate of the statistic.
        low: lower end.
        high: upper end.
        n: number of runs.
    """

    estimate: float
    low: float | None
    high: float | None
    n: int = 1

    def text(self, digits: int = 2, kind: str = "f") -> str:
        """The interval as text, such as ``1.52 [1.40, 1.66]``; with kind ``"g"``, ``digits`` counts significant digits."""
        numbers = [f"{number:.{digits}{kind}}" for number in self.ends]
        return numbers[0] if len(numbers) < 3 else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"

    @property
    def ends(self) -> list[float]:
        """The estimate, and the lower and upper end if there are any."""
        return [number for number in self[:3] if number is not None]

    @property
    def above_0(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low is not None and self.low > 0.0

    @property
    def below_0(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high is not None and self.high < 0.0


def interval(*samples: ArrayLike, statistic: Callable[..., Any] = np.mean, paired: bool = True) -> Interval:
    """A statistic of runs with its 95% interval: Student's t below 20 runs, else the percentile bootstrap.

    Below 20 runs the standard error comes from the jackknife, which for means and differences of means is the usual one. The
    degrees of freedom are the number of runs minus 1; for samples that are not paired, they are those of Welch and Satterthwaite.

    Args:
        samples: one or more samples with one number per run, ``[runs]`` each.
        statistic: function of the samples and an ``axis``.
        paired: whether the samples come from the same runs, which are then left out or resampled together.

    Returns:
        The interval; its ``n`` is the number of runs, for samples that are not paired the smallest number.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    estimate, n = float(statistic(*arrays, axis=-1)), min(map(len, arrays))
    if n < 2 or all(np.ptp(array) == 0.0 for array in arrays):
        return Interval(estimate, None, None, n)
    if n < BOOTSTRAP_FROM:
        half = _half_width(arrays, statistic, paired)
        return Interval(estimate, estimate - half, estimate + half, n)
    found = bootstrap(
        arrays,
        statistic,
        paired=paired and len(arrays) > 1,
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), n)


def _half_width(arrays: list[NDArray[np.float64]], statistic: Callable[..., Any], paired: bool) -> float:
    """Half the width of the Student's t interval, from the jackknife variance of the statistic."""
    groups = [list(range(len(arrays)))] if paired else [[k] for k in range(len(arrays))]
    parts, freedom = [], []
    for group in groups:
        n = len(arrays[group[0]])
        without = np.array(
            [
                statistic(*[np.delete(a, i) if k in group else a for k, a in enumerate(arrays)], axis=-1)
                for i in range(n)
            ]
        )
        parts.append((n - 1) / n * float(np.sum((without - without.mean()) ** 2)))
        freedom.append(n - 1)
    variance = sum(parts)
    if variance == 0.0:
        return 0.0
    degrees = variance**2 / sum(part**2 / k for part, k in zip(parts, freedom, strict=True))
    return float(t.ppf(0.975, degrees) * np.sqrt(variance))


def band(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The mean of curves ``[runs, points]`` with its 95% band: Student's t below 20 runs, else the bootstrap."""
    n, mean = len(curves), curves.mean(0)
    if n < BOOTSTRAP_FROM:
        half = np.zeros_like(mean) if n < 2 else t.ppf(0.975, n - 1) * sem(curves, axis=0)
        return mean, mean - half, mean + half
    rng = np.random.default_rng(0)
    means = curves[rng.integers(n, size=(2000, n))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return mean, low, high


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A markdown table of rows with the same keys."""
    texts = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [texts[0], ["-" * width for width in widths], *texts[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
