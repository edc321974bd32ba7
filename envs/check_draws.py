r"""Statistical checks of an environment's random draws: tests that reject a correct environment once in a million.

Each test compares the claimed probabilities p with alternatives q that are fixed before a draw is seen. If the draws are really
from p, the product

    e_t = prod_{i <= t} q_i(w_i) / p_i(w_i)

is a nonnegative martingale of mean 1, so that it exceeds 1/alpha with probability at most alpha, for any number of draws (Ville's
inequality); the mean over several alternatives is such a martingale, too. An environment is rejected if it exceeds one million.
The alternatives are

- log p at another x: one that was set before, and points along the gradient of log p, summed over the first half of the draws;
- for draws that are whole numbers: p, reweighted by how often each number occurred in the first half;
- for tables: p of a row, updated by the row's draws so far (Dirichlet), p mixed with the uniform distribution, and p to a power.

Real draws are also compared with their whole density, by the exact distributions of two statistics.
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
"""Probability with which each of these tests rejects a correct environment."""

REACHES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Distances of the alternative x along the gradient of log p, in widths of X."""

MOST = 500
"""Largest number of real draws whose distribution functions are computed."""

GRID = 300
"""Half the number of grid points for these distribution functions."""

ENTRIES = 4
"""Largest number of entries of a real draw that is tested in this way."""

LARGEST = 64
"""Largest number of different whole numbers whose frequencies are tested."""


def steps_at(world: World, x: Floats, before: Floats, steps: int) -> list[Played]:
    """Play steps whose draws depend on x.

    If x affects one draw per episode, these are the first steps of episodes. Otherwise x is set in the middle of an episode that
    began at ``before``, and all later steps count.
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
    """Return the log of the mean of exp; NaN counts as exp = 0, which never rejects an environment."""
    return float(np.logaddexp.reduce([-math.inf if math.isnan(v) else v for v in logs]) - math.log(len(logs)))


def rate(steps: int) -> str:
    """Return the sample size and error rate of a test, for error messages."""
    return f"in {steps} draws; a correct environment is rejected with probability {ALPHA:g}"


def check_log_p(world: World, x: Floats, before: tuple[Floats, ...], steps: int) -> None:
    """Check that the environment's draws follow the leader model's log_p.

    Args:
        world: the environment.
        x: the x under which it draws.
        before: other x as alternatives; the first is set before x is.
        steps: number of steps to play.
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
    told = f"draws that follow its log_p at x = {x} (draw with the probabilities of log_p, at the x that was set)"
    best = int(np.argmax(np.nan_to_num(logs, nan=-math.inf)))
    likelier = f"draws that x = {others[best]} explains exp({logs[best]:.0f}) times as well ({rate(steps)})"
    require(log_mean_exp(logs) < -math.log(ALPHA), "leader_model", told, likelier)
    _check_counts(Model(world, first), model, told, steps)
    if np.asarray(played[0].draw).dtype.kind == "f" and not _check_reals(world, played[:MOST], told):
        world.unchecked.append("the whole distribution of real draws, but only in the directions in which x moves it")


def _check_counts(first: Model, second: Model, told: str, steps: int) -> None:
    """Check the frequencies of draws that are whole numbers; skip a log_p that includes transitions."""
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
    """Check that real draws have the density exp(log_p), up to a constant: each entry of a draw given the others.

    The density's distribution function, evaluated at the draw, is a uniform number u; it is computed on a grid. Kolmogorov's test
    is applied to u, and a chi-square test to the sum of squares of the normal quantiles of u.

    Returns:
        Whether the draws could be checked. They cannot be if the grid is too coarse, if the entries depend on one another, or if
        log_p reads entries that are not drawn. For independent entries, the density f of a step satisfies
        ``sum_j log(integral of f over w_j) - (K - 1) log f = constant``, with the same constant in every step.
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
        if not (column == np.round(column)).all():  # flags and counts are not real numbers
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
    """Return whether log_p changes if next_obs is taken from another step."""
    obs, action, draw, after = model.given
    if not isinstance(after, torch.Tensor):
        return True
    with torch.no_grad():
        try:
            rolled = model.module(obs, action, draw, after.roll(1, 0))[2]
        except Exception:  # a user's model may refuse an impossible step
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
    """Check that draws follow the rows of a table of probabilities.

    Args:
        name: the name at the start of error messages.
        rows: the row of each draw, ``[n]``.
        p: the probabilities in that row, ``[n, K]``.
        drawn: the draws, ``[n]``.
        what: the name of the drawn quantity, for error messages.
        likewise: the same rows at other x, ``[n, K]`` each. Default: none.
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
    """Return p to a power, normalised."""
    q = p**exponent
    return q / q.sum(-1, keepdims=True)  # type: ignore[no-any-return]
