"""Pictures of the benchmarks' pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bilevel_gym.cli.statistics import band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes ``[rows, columns]``, without a window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def panels(
    rows: int, columns: int, width: float, height: float
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: ``draw(data, *panels)`` becomes ``picture(data, path)``, which draws on new panels and writes a PNG."""

    def decorate(draw: Callable[..., None]) -> Callable[..., None]:
        @wraps(draw)
        def drawn(data: Any, path: Path) -> None:
            figure, axes = new_figure(rows, columns, width, height)
            draw(data, *axes.flat)
            save_figure(figure, path)

        return drawn

    return decorate


def draw_band(panel: Axes, xs: ArrayLike, curves: ArrayLike, colour: str, label: str | None, style: str = "-") -> None:
    """The mean of curves ``[games, points]`` and the 95% band of that mean."""
    values = np.asarray(curves, dtype=np.float64)
    mean, low, high = band(values)
    panel.plot(np.asarray(xs), mean, color=colour, linestyle=style, linewidth=1.6, label=label)
    if len(values) > 1:
        panel.fill_between(np.asarray(xs), low, high, color=colour, alpha=0.15, linewidth=0)


def on_grid(histories: Sequence[Any], points: int, *keys: str) -> tuple[NDArray[np.float64], list[list[Any]]]:
    """Common steps up to where all runs have been, and by key the runs' values there, from ``history["steps"]`` and the key's."""
    grid = np.linspace(0, min(history["steps"][-1] for history in histories), points)
    return grid, [[np.interp(grid, history["steps"], history[key]) for history in histories] for key in keys]


def share_limits(axes: Iterable[Axes]) -> None:
    """One vertical range for all panels."""
    chosen = list(axes)
    ends = [panel.get_ylim() for panel in chosen]
    for panel in chosen:
        panel.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, without a date."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
