r"""Statistical checks of what an environment draws: tests that refuse a right environment once in a million.

Each test holds the probabilities p that are claimed against alternatives q that are fixed before a draw is seen. Where the
draws are truly from p, the product

    e_t = prod_{i <= t} q_i(w_i) / p_i(w_i)

is a nonnegative martingale of mean 1, so that it exceeds 1/alpha with probability alpha at the most, whatever the number of draws
(Ville's inequality); the mean over several alternatives is such a martingale too. An environment is refused where it exceeds one
million. Alternatives are

- log p at another x: one that was set before, and points along the gradient of log p, summed over the first half of the draws;
- for draws that are whole numbers: p, tilted by how often each came in the first half;
- for tables: p of a row, corrected by what that row has drawn so far (Dirichlet), p mixed with the uniform, and p to a power.

Real draws are also held against the whole of their density, by the exact distributions of two statistics.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import chi2, kstest

from .check_contract import SEED
from .check_model import Model
from .check_play import Floats, Played, World, same
from .mdp.checks import require

ALPHA = 1e-6
"""How often each of these tests refuses an environment that is right."""

REACHES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""How far along the gradient of log p an alternative x lies, in widths of X."""

MOST = 500
"""Real draws whose distribution functions are worked out."""

GRID = 300
"""Half the points of the grid for that."""

ENTRIES = 4
"""Entries of a draw up to which it is done."""

LARGEST = 64
"""Different draws up to which whole numbers are counted."""


def steps_at(world: World, x: Floats, before: Floats, steps: int) -> list[Played]:
    """Steps whose draws are from x: the first of each episode where x draws once an episode, else all after x was set.

    There x is set in the middle of an episode that began at ``before``.
    """
    world.seed_actions(SEED)
    played: list[Played] = []
    if world.find("draws_once"):
        world.set_leader(before)
        world.reset(SEED)
        world.set_leader(x)
        for _ in range(steps):
            world.reset()
            played.append(world.step())
        return played
    world.set_leader(before)
    world.reset(SEED)
    if world.step().ended:
        world.reset()
    world.set_leader(x)
    while len(played) < steps:
        played.append(world.step())
        if played[-1].ended:
            world.reset()
    return played


def log_mean_exp(logs: Sequence[float]) -> float:
    """log of the mean of exp; what is no number counts as 0, which can only spare an environment."""
    return float(np.logaddexp.reduce([-math.inf if math.isnan(v) else v for v in logs]) - math.log(len(logs)))


def rate(steps: int) -> str:
    """What errors say of a test."""
    return f"in {steps} draws; a right environment is refused with probability {ALPHA:g}"


def check_log_p(world: World, x: Floats, before: tuple[Floats, ...], steps: int) -> None:
    """What was drawn follows the leader model's log_p.

    Args:
        world: the environment.
        x: where it draws.
        before: x that were set earlier; the first is set beforehand.
        steps: how many are played.
    """
    played = steps_at(world, x, before[0], steps)
    first, second = played[: steps // 2], played[steps // 2 :]
    model = Model(world, first)
    log_p = model()[2]
    possible = bool(torch.isfinite(log_p).all())
    require(possible, "leader_model", "a finite log_p of what was drawn", log_p.detach().min().item())
    slope, box = model.slope(log_p.sum()).numpy(), world.box
    low, high = (x - 1.0, x + 1.0) if box is None else (box.low, box.high)
    width = np.maximum(high - low, 1e-12)
    towards = slope * width  # in widths of X
    ahead = towards / max(float(np.abs(towards).max()), 1e-300)
    others = [*before, *(np.clip(x + reach * ahead * width, low, high) for reach in REACHES)]
    model = Model(world, second)
    own = model()[2].detach()
    logs = [float((model.at(torch.from_numpy(other))[2] - own).sum()) for other in others]
    told = f"draws that follow its log_p at x = {x} (draw from the x that was set, by the probabilities of log_p)"
    best = int(np.argmax(np.nan_to_num(logs, nan=-math.inf)))
    likelier = f"draws that x = {others[best]} explains exp({logs[best]:.0f}) times as well ({rate(steps)})"
    require(log_mean_exp(logs) < -math.log(ALPHA), "leader_model", told, likelier)
    _check_counts(Model(world, first), model, told, steps)
    if np.asarray(played[0].draw).dtype.kind == "f" and not _check_reals(world, played[:MOST], told):
        world.unchecked.append("the whole distribution of real draws, but only in the directions in which x moves it")


def _check_counts(first: Model, second: Model, told: str, steps: int) -> None:
    """Draws that are whole numbers come as often as log_p says; a log_p that also holds transitions is left out."""
    draws = [np.array([np.asarray(step.draw) for step in model.steps]) for model in (first, second)]
    if draws[0].ndim != 1 or draws[0].dtype.kind not in "iu" or _reads_next_obs(second):
        return
    values, index = np.unique(draws[0], return_inverse=True)
    if len(values) > LARGEST:
        return
    tables = []
    for model, drawn in zip((first, second), draws, strict=True):
        with torch.no_grad():
            columns = [model(torch.from_numpy(np.full_like(drawn, value)))[2].exp().numpy() for value in values]
        tables.append(np.stack(columns, -1))
    total = float(max(table.sum(-1).max() for table in tables))
    require(total <= 1.0 + 1e-6, "leader_model", "probabilities exp(log_p) of the draws that sum to 1", f"{total:g}")
    counts, expected = np.bincount(index, minlength=len(values)), tables[0].sum(0)
    tilt = (counts + 1.0) / (expected + 1.0)
    normaliser = (tables[1] * tilt).sum(-1) + 1.0 - tables[1].sum(-1)
    where = np.searchsorted(values, draws[1]).clip(max=len(values) - 1)
    factor = np.where(values[where] == draws[1], tilt[where], 1.0)
    log_e = float((np.log(factor) - np.log(normaliser)).sum())
    k = int(np.abs(np.log(tilt)).argmax())
    got = f"draw {values[k]} {counts[k]} times where log_p expects {expected[k]:.1f} ({rate(steps)})"
    require(log_e < -math.log(ALPHA), "leader_model", told, got)


def _check_reals(world: World, played: list[Played], told: str) -> bool:
    """Real draws have the density exp(log_p), up to a constant: each entry of a draw given the others.

    The distribution function of that density at what was drawn, u, is uniform; its numbers are worked out on a grid. Kolmogorov's
    test is of u, and the sum of squares of the normal quantiles of u is held against chi square.

    Returns:
        Whether it could be checked: not where the grid is too coarse, nor where the entries depend on one another or log_p also
        reads entries that are not drawn. Of independent entries, the densities f_1 ... f_K of a step have
        ``sum_j log(integral of f over w_j) - (K - 1) log f = 0``, the same in every step.
    """
    model, n = Model(world, played), len(played)
    draws = np.stack([np.asarray(step.draw, dtype=np.float64) for step in played])
    flat, log_p = draws.reshape(n, -1), model()[2].detach().numpy()

    def log_density(j: int, values: Any) -> Floats:
        moved = flat.copy()
        moved[:, j] = values
        with torch.no_grad():
            return model(torch.from_numpy(moved.reshape(draws.shape)))[2].numpy()

    entries = []
    for j, column in enumerate(flat.T):
        if not (column == np.round(column)).all():  # a flag, or a count, is no real number
            entries += [j] if not np.allclose(log_density(j, column + 0.1 * column.std()), log_p) else []
    if not 0 < len(entries) <= ENTRIES:
        return False
    uniform, rest = [], -(len(entries) - 1.0) * log_p
    for j in entries:
        column = np.sort(flat[:, j])
        span = column[-1] - column[0]
        even = np.linspace(column[0] - 2.0 * span, column[-1] + 2.0 * span, GRID)
        core = np.interp(np.linspace(0, n - 1, GRID), np.arange(n), column)
        ends = 2.0 * span * 0.5 ** (np.arange(50) / 2.0)  # a density may jump where its draws begin or end
        grid = np.unique(np.concatenate([even, core, column[0] - ends, column[-1] + ends]))
        logs = np.stack([log_density(j, value) for value in grid])
        density = np.exp(logs - logs.max(0))
        fine, total = _distribution(grid, density, flat[:, j])
        coarse, _ = _distribution(grid[::2], density[::2], flat[:, j])
        if not np.allclose(fine, coarse, rtol=0.0, atol=2e-3):
            return False
        uniform.append(fine)
        rest += np.log(total) + logs.max(0)
    if np.ptp(rest) > 0.02:
        return False
    for j, u in zip(entries, uniform, strict=True):
        spread = float((ndtri(u.clip(1e-12, 1.0 - 1e-12)) ** 2).sum())
        share = ALPHA / (3 * len(entries))  # of two tests, the second with two sides
        fits = kstest(u, "uniform").pvalue > share and chi2.ppf(share, n) < spread < chi2.isf(share, n)
        got = f"entry {j} of leader_draw {math.sqrt(spread / n):.3g} times as far spread ({rate(n)})"
        require(bool(fits), "leader_model", told, got)
    return True


def _distribution(grid: Floats, density: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Distribution functions, each at one point, ``[n]``, and integrals, ``[n]``, of densities ``[G, n]`` on a grid ``[G]``."""
    step = np.diff(grid)[:, None]
    below = np.concatenate([np.zeros((1, len(at))), np.cumsum(0.5 * (density[1:] + density[:-1]) * step, axis=0)])
    i, rows = (np.searchsorted(grid, at, side="right") - 1).clip(0, len(grid) - 2), np.arange(len(at))
    part = (at - grid[i]) / step[i, 0]
    left, right = density[i, rows], density[i + 1, rows]
    inside = below[i, rows] + step[i, 0] * part * (left + 0.5 * part * (right - left))
    return inside / below[-1], below[-1]


def _reads_next_obs(model: Model) -> bool:
    """Whether log_p changes where next_obs is another step's."""
    obs, action, draw, after = model.given
    if not isinstance(after, torch.Tensor):
        return True
    with torch.no_grad():
        try:
            rolled = model.module(obs, action, draw, after.roll(1, 0))[2]
        except Exception:  # a user's model, asked for a step that cannot be
            return True
        return not same(rolled.numpy(), model()[2].numpy())


def check_table(
    name: str,
    rows: Sequence[Any],
    p: NDArray[Any],
    drawn: NDArray[Any],
    what: str,
    likewise: Sequence[NDArray[Any]] = (),
) -> None:
    """What was drawn follows a table's rows.

    Args:
        name: for errors.
        rows: which row each draw is from, ``[n]``.
        p: that row, ``[n, K]``.
        drawn: the draws, ``[n]``.
        what: is drawn, for errors.
        likewise: the same rows at other x, ``[n, K]`` each.
    """
    n, K = p.shape
    own = p[np.arange(n), drawn]
    i = int(own.argmin())
    told = f"{what} drawn by the problem's probabilities"
    require(bool(own[i] > 0.0), name, told, f"{what} {drawn[i]} from {rows[i]}, whose probability is 0")
    logs, log_own = [], np.log(own)
    for q in (
        *likewise,
        *((1.0 - mixed) * p + mixed / K for mixed in (0.03, 0.3)),
        *(_power(p, b) for b in (0.5, 2.0)),
    ):
        with np.errstate(divide="ignore"):
            logs.append(float((np.log(q[np.arange(n), drawn]) - log_own).sum()))
    for strength in (2.0, 20.0):
        counts: dict[Any, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        total: dict[Any, int] = defaultdict(int)
        log_e = 0.0
        for row, k, own_p in zip(rows, drawn.tolist(), own.tolist(), strict=True):
            log_e += math.log((strength * own_p + counts[row][k]) / (strength + total[row])) - math.log(own_p)
            counts[row][k] += 1
            total[row] += 1
        logs.append(log_e)
    got = f"draws that another table explains exp({max(logs):.0f}) times as well ({rate(n)})"
    require(log_mean_exp(logs) < -math.log(ALPHA), name, told, got)


def _power(p: NDArray[Any], exponent: float) -> NDArray[Any]:
    """p to a power, normalised."""
    q = p**exponent
    return q / q.sum(-1, keepdims=True)  # type: ignore[no-any-return]
