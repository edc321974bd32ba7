"""Drawing functions for the pictures on the benchmarks' pages."""

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
    """A new figure and its axes ``[rows, columns]``, without a window."""
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
    """Decorator that turns ``draw(data, *panels)`` into ``picture(data, path)``, which draws new panels and saves a PNG."""

    def decorate(draw: Callable[..., None]) -> Callable[..., None]:
        @wraps(draw)
        def drawn(data: Any, path: Path) -> None:
            figure, axes = new_figure(rows, columns, width, height)
            draw(data, *axes.flat)
            save_figure(figure, path)

        return drawn

    return decorate


def draw_band(panel: Axes, xs: ArrayLike, curves: ArrayLike, colour: str, label: str | None, style: str = "-") -> None:
    """Draw the mean of curves ``[games, points]`` with its 95% band."""
    values = np.asarray(curves, dtype=np.float64)
    mean, low, high = band(values)
    panel.plot(np.asarray(xs), mean, color=colour, linestyle=style, linewidth=1.6, label=label)
    if len(values) > 1:
        panel.fill_between(np.asarray(xs), low, high, color=colour, alpha=0.15, linewidth=0)


def on_grid(histories: Sequence[Any], points: int, *keys: str) -> tuple[NDArray[np.float64], list[list[Any]]]:
    """Put runs on common steps, up to the end of the shortest run; uses ``history["steps"]`` and other keys."""
    grid = np.linspace(0, min(history["steps"][-1] for history in histories), points)
    return grid, [[np.interp(grid, history["steps"], history[key]) for history in histories] for key in keys]


def share_limits(axes: Iterable[Axes]) -> None:
    """Give all panels the same vertical range."""
    chosen = list(axes)
    ends = [panel.get_ylim() for panel in chosen]
    for panel in chosen:
        panel.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def save_figure(figure: Figure, path: Path) -> None:
    """Save a PNG without a date."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
