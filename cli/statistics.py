"""Means over runs, their intervals, and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The mean and its 95% interval by the percentile bootstrap; the ends are None for a single value, all of none."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return None, None, None
    mean = float(sample.mean())
    if sample.size == 1 or np.ptp(sample) == 0.0:
        return mean, None, None
    rng = np.random.default_rng(0)
    found = bootstrap((sample,), np.mean, method="percentile", random_state=rng).confidence_interval
    return mean, float(found.low), float(found.high)


def shown(mean: float | None, low: float | None, high: float | None) -> str:
    """``1.52 [1.40, 1.66]``, to four digits of the mean."""
    if mean is None:
        return "none"
    return f"{mean:.4g}" if low is None or high is None else f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def band(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and 95% bootstrap band of curves ``[runs, points]``."""
    rng = np.random.default_rng(0)
    means = curves[rng.integers(len(curves), size=(2000, len(curves)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return curves.mean(0), low, high


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with columns of equal width."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    lines = [list(headers), ["-" * width for width in widths], *[list(row) for row in rows]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
