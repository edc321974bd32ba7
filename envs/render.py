"""Pictures of environments for ``render_mode="rgb_array"``; matplotlib is imported at the first picture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import ArrayLike, NDArray

from .mdp.grid import GridMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WALL, FOLLOWER = "0.25", "tab:orange"
"""Colours of walls and of the follower."""


class Drawn:
    """Mixin for rendering: ``render_mode`` is None, ``"ansi"`` (one line of text) or ``"rgb_array"`` (a picture).

    Attributes:
        size: width and height of the picture in inches.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
    size: ClassVar[tuple[float, float]] = (5.0, 4.0)
    render_mode: str | None

    @abstractmethod
    def _text(self) -> str:
        """Return the line of text for the render mode ``"ansi"``."""

    @abstractmethod
    def _draw(self, panel: Axes) -> None:
        """Draw x and the follower."""

    def render(self) -> Any:
        """Return one line of text, or a picture (uint8, ``[height, width, 3]``), or None without a render mode."""
        if self.render_mode != "rgb_array":
            return None if self.render_mode is None else self._text()
        figure, panel = new_panel(*self.size)
        self._draw(panel)
        return to_rgb(figure)


def new_panel(width: float = 5.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """Make a figure of this size in inches, at 100 dots per inch and without a window; return it with its axes.

    Raises:
        gymnasium.error.DependencyNotInstalled: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyNotInstalled('rendering needs matplotlib: pip install "bilevel-gym[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def to_rgb(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure's pixels, ``[height, width, 3]``."""
    figure.canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    return pixels


def draw_heat(panel: Axes, image: ArrayLike, label: str, **kwargs: Any) -> None:
    """Draw an image with its colour bar; NaN stays blank."""
    shown = panel.imshow(np.asarray(image, dtype=np.float64), **{"cmap": "viridis", **kwargs})
    assert panel.figure is not None
    panel.figure.colorbar(shown, ax=panel, label=label, shrink=0.85)


def draw_table(panel: Axes, values: ArrayLike, label: str, row: int | None = None, **kwargs: Any) -> None:
    """Draw numbers ``[S, A]`` as a heat map with one row marked; ``kwargs`` go to matplotlib's ``imshow``."""
    table = np.asarray(values, dtype=np.float64)
    draw_heat(panel, table, label, aspect="auto", interpolation="nearest", **kwargs)
    panel.set_xlabel("action")
    panel.set_ylabel("state")
    panel.locator_params(integer=True)
    if row is not None:
        panel.axhspan(row - 0.5, row + 0.5, fill=False, edgecolor=FOLLOWER, linewidth=2.0)


def draw_grid(
    panel: Axes,
    grid: GridMap,
    heat: ArrayLike,
    label: str,
    follower: int | None = None,
    marks: Mapping[int, str] | None = None,
    **kwargs: Any,
) -> None:
    """Draw a grid map: a heat map of one number for each free cell, dark walls, a disc for the follower, letters in marked cells.

    Args:
        panel: the axes to draw on.
        grid: the map.
        heat: one number for each free cell, ``[n]``.
        label: label of the colour bar.
        follower: the follower's cell.
        marks: short texts by cell.
        kwargs: arguments of matplotlib's ``imshow``, e.g. ``cmap``, ``vmin``.
    """
    rows, columns = grid.cells.numpy().T
    image = np.full(grid.shape, np.nan)
    image[rows, columns] = np.asarray(heat, dtype=np.float64)
    panel.set_facecolor(WALL)
    draw_heat(panel, image, label, **kwargs)
    for cell, text in (marks or {}).items():
        panel.text(columns[cell], rows[cell], text, ha="center", va="center", color="white", fontweight="bold")
    if follower is not None:
        panel.plot(columns[follower], rows[follower], "o", color=FOLLOWER, markersize=9, markeredgecolor="white")
    panel.set_xticks([])
    panel.set_yticks([])
