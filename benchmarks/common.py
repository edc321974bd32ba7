"""What the benchmarks share: processes over games, bootstrap intervals over games, tables, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = dict[str, Any]
"""Plain JSON data."""

RESAMPLES = 9999


def _single_threaded(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    return function(*arguments)


def map_tasks(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], jobs: int, label: str) -> list[Any]:
    """``function(*task)`` of every task, in ``jobs`` processes of one thread each, with a progress bar."""
    run = Parallel(n_jobs=jobs, return_as="generator", batch_size=1)
    answers = run(delayed(_single_threaded)(function, task) for task in tasks)
    return list(tqdm(answers, total=len(tasks), desc=label))


# --- intervals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval by the percentile bootstrap over games; the ends are None for a single game."""

    estimate: float
    low: float | None
    high: float | None

    def text(self, digits: int = 2) -> str:
        """``1.52 [1.40, 1.66]``."""
        if self.low is None or self.high is None:
            return f"{self.estimate:.{digits}f}"
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def as_dict(self) -> Data:
        """For JSON."""
        return asdict(self)


def _interval(samples: Sequence[NDArray[np.float64]], statistic: Callable[..., Any], paired: bool = True) -> Interval:
    estimate = float(statistic(*samples, axis=-1))
    if len(samples[0]) < 2 or all(np.ptp(sample) == 0.0 for sample in samples):
        return Interval(estimate, None, None)
    found = bootstrap(
        tuple(samples),
        statistic,
        paired=paired and len(samples) > 1,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high))


def mean_interval(values: ArrayLike) -> Interval:
    """The mean over games."""
    return _interval([np.asarray(values, dtype=np.float64)], np.mean)


def _mean_difference(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(a.mean(axis) - b.mean(axis))


def _mean_ratio(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(a.mean(axis) / b.mean(axis))


def paired_difference(a: ArrayLike, b: ArrayLike) -> Interval:
    """Mean of a less mean of b, the same games on both sides of every resample."""
    return _interval([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)], _mean_difference)


def paired_ratio(a: ArrayLike, b: ArrayLike) -> Interval:
    """Mean of a over mean of b, the same games on both sides of every resample."""
    return _interval([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)], _mean_ratio)


def _mean_of_means(*tasks: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(np.mean([task.mean(axis) for task in tasks], axis=0))


def stratified_interval(values: ArrayLike) -> Interval:
    """The mean over tasks and seeds, ``[tasks, seeds]``; seeds are resampled within each task (as rliable does)."""
    tasks = np.asarray(values, dtype=np.float64)
    return _interval(list(tasks), _mean_of_means, paired=False)


# --- tables -----------------------------------------------------------------------------------------------------------


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, the first column to the left and the others to the right."""
    rule = ["---"] + ["---:"] * (len(headers) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(headers), rule, *rows])


def verdict(met: bool) -> str:
    """The word of a table for a target."""
    return "met" if met else "**missed**"


@dataclass(frozen=True)
class Standing:
    """One line of the page that sets our figures beside those from elsewhere.

    Attributes:
        quantity: what is compared.
        elsewhere: the figure, and whose it is.
        ours: our figure, with its interval where it has one.
        verdict: "met", "missed" or what else there is to say.
    """

    quantity: str
    elsewhere: str
    ours: str
    verdict: str


# --- pictures ---------------------------------------------------------------------------------------------------------


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes ``[rows, columns]``, without a window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def draw_band(panel: Axes, xs: ArrayLike, curves: ArrayLike, colour: str, label: str | None, style: str = "-") -> None:
    """The mean of curves ``[games, points]`` and the 95% bootstrap band of that mean."""
    values = np.asarray(curves, dtype=np.float64)
    panel.plot(np.asarray(xs), values.mean(0), color=colour, linestyle=style, linewidth=1.6, label=label)
    if len(values) < 2:
        return
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    panel.fill_between(np.asarray(xs), low, high, color=colour, alpha=0.15, linewidth=0)


def share_limits(panels: Iterable[Axes]) -> None:
    """One vertical range for all panels."""
    chosen = list(panels)
    ends = [panel.get_ylim() for panel in chosen]
    for panel in chosen:
        panel.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, without a date."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
