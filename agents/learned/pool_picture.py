"""A picture of what a pool of responses believes of F over X."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.error import DependencyNotInstalled

from .pool import Pool

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SLICES = 6
"""Number of coordinates that are drawn: those along which the belief changes most."""
POINTS = 201
"""Number of points of a curve."""


def draw_belief(pool: Pool, leader_set: Any, x: Any, trained: Any, finds: Any) -> Figure:
    """Draw, along each coordinate through x, the belief F^, the leader's return at the pool's best policy, and points trained at.

    Args:
        pool: the pool.
        leader_set: X.
        x: the leader's answer, ``[dim]``.
        trained: points at which policies were trained, ``[k, dim]``.
        finds: whether each of them refuted the belief, ``[k]``.

    Raises:
        gymnasium.error.DependencyNotInstalled: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyNotInstalled('pictures need matplotlib: pip install "bilevel-gym[plots]"') from error
    refuted = torch.as_tensor(finds, dtype=torch.bool)

    # Slices through x; with a budget, points beyond it are projected onto X.
    slices = []
    for i in range(leader_set.dim):
        points = x.repeat(POINTS, 1)
        points[:, i] = torch.linspace(float(leader_set.low[i]), float(leader_set.high[i]), POINTS, dtype=torch.float64)
        along = points[:, i].clone()
        slices.append((along, pool.believe(leader_set.project(points))))
    changes = [float(belief.leader_return.max() - belief.leader_return.min()) for _, belief in slices]
    chosen = sorted(np.argsort(changes)[::-1][:MOST_SLICES])

    # One panel for each of them.
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    at_trained = pool.believe(trained) if len(trained) else None
    for n, i in enumerate(chosen):
        panel = figure.add_subplot(rows, columns, n + 1)
        along, belief = slices[i]
        panel.fill_between(along, belief.feared, belief.leader_return, color="tab:blue", alpha=0.2, linewidth=0)
        panel.plot(along, belief.leader_return, color="tab:blue", linewidth=1.0, label="at the pool's best policy")
        panel.plot(
            along, belief.feared, color="tab:blue", linewidth=2.0, label="belief: the worst as good within the noise"
        )
        for which, colour, label in (
            (refuted, "tab:red", "trained at: the belief was refuted"),
            (~refuted, "0.4", "trained at: nothing found"),
        ):
            if at_trained is not None and bool(which.any()):
                panel.plot(trained[which, i], at_trained.feared[which], "o", color=colour, markersize=4.5, label=label)
        panel.axvline(float(x[i]), color="0.6", linewidth=1.0, linestyle="--", label="the leader's x")
        panel.set(
            xlabel="x" if leader_set.dim == 1 else f"x[{i}]", ylabel="the leader's return" if n % columns == 0 else ""
        )
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return figure
