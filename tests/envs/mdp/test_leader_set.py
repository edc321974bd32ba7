"""Projections held to their certificate: p = Proj_X(z) iff p lies in X and (z - p).(v - p) <= 0 for every v of X."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from bilevel_gym.envs.mdp import LeaderSet
from bilevel_gym.envs.mdp.simplex import project_simplex
from tests.problems import F64, generator


def support(leader_set: LeaderSet, direction: Tensor) -> float:
    """max of direction . v over X, by linear programming with v = u - w, u, w >= 0."""
    n, c = leader_set.dim, direction.numpy()
    low, high = leader_set.low.numpy(), leader_set.high.numpy()
    pair = np.hstack([np.eye(n), -np.eye(n)])
    rows, bounds = [pair, -pair], [high, -low]
    if leader_set.budget < math.inf:
        rows, bounds = [*rows, np.ones((1, 2 * n))], [*bounds, np.array([leader_set.budget])]
    answer = linprog(np.concatenate([-c, c]), np.vstack(rows), np.concatenate(bounds), bounds=(0, None))
    assert answer.success
    return -float(answer.fun)


def random_set(seed: int, n: int, budget: str) -> LeaderSet:
    """Bounds on either side of zero, around it, or pinned; a budget between the least possible and enough for all."""
    rng = generator(seed)
    ends = torch.randn(2, n, generator=rng, dtype=F64)
    low, high = ends.amin(0), ends.amax(0)
    high = torch.where(torch.rand(n, generator=rng) < 0.2, low, high)
    least = float(LeaderSet(low, high).project(torch.zeros(n, dtype=F64)).abs().sum())
    most = float(torch.maximum(low.abs(), high.abs()).sum())
    share = {"least": 0.0, "tight": 0.2, "loose": 0.8}
    return LeaderSet(low, high, math.inf if budget == "none" else least + share[budget] * (most - least))


@pytest.mark.parametrize("budget", ["none", "least", "tight", "loose"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_projection(n: int, budget: str) -> None:
    for seed in range(8):
        leader_set = random_set(seed, n, budget)
        for scale in (0.1, 1.0, 1e3):
            z = scale * torch.randn(n, generator=generator(100 + seed), dtype=F64)
            p = leader_set.project(z)
            assert leader_set.contains(p)
            assert support(leader_set, z - p) - float((z - p) @ p) < 1e-9 * max(1.0, scale)
            torch.testing.assert_close(leader_set.project(p), p, rtol=0.0, atol=1e-12)


def test_a_point_of_the_set_stays() -> None:
    leader_set = LeaderSet(torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 3.0]), 2.5)
    for point in ([0.0, 0.5], [-1.0, 1.5], [2.0, 0.5], [1.0, 1.5]):
        x = torch.tensor(point, dtype=F64)
        torch.testing.assert_close(leader_set.project(x), x, rtol=0.0, atol=0.0)
        torch.testing.assert_close(leader_set.check(point), x, rtol=0.0, atol=0.0)


def test_bounds_are_exact_numbers() -> None:
    box = LeaderSet.box(2, 0.1, 0.7)  # neither is a float32
    assert box.low.tolist() == [0.1, 0.1]
    assert box.high.tolist() == [0.7, 0.7]
    assert box.check([0.1, 0.7]).tolist() == [0.1, 0.7]


def test_intersections_cut_and_never_grow() -> None:
    box = LeaderSet.box(2, -1.0, 1.0)
    cut = box.intersect(low=[-2.0, 0.5], high=0.75, budget=1.0)
    assert cut.low.tolist() == [-1.0, 0.5]
    assert cut.high.tolist() == [0.75, 0.75]
    assert cut.budget == 1.0
    assert cut.intersect(budget=9.0).budget == 1.0


@pytest.mark.parametrize(
    ("low", "high", "budget", "message"),
    [
        ([0.0, 1.0], [1.0, 0.0], math.inf, "^low: expected low <= high"),
        ([0.0], [1.0, 1.0], math.inf, r"^high: expected shape \(1,\)"),
        ([[0.0]], [[1.0]], math.inf, "^low: expected a vector"),
        ([], [], math.inf, "^low: expected a vector"),
        ([math.nan], [1.0], math.inf, "^low: expected finite"),
        ([0.0], [math.inf], math.inf, "^high: expected finite"),
        (["a"], [1.0], math.inf, "^low: expected numbers"),
        ([1.0, -3.0], [2.0, -2.0], 2.9, "^budget: expected at least 3, .* got 2.9"),
        ([0.0], [1.0], -1.0, "^budget: "),
        ([0.0], [1.0], math.nan, "^budget: "),
    ],
)
def test_bad_sets_are_named(low: list[float], high: list[float], budget: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeaderSet(low, high, budget)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([0.0], r"^x: expected shape \(2,\), got shape \(1,\)"),
        ([[0.0, 0.0]], r"^x: expected shape \(2,\)"),
        (0.0, r"^x: expected shape \(2,\)"),
        ([0.0, math.nan], "^x: expected finite numbers, got nan at index"),
        ([-math.inf, 0.0], "^x: expected finite"),
        ([0.0, 1.1], r"^x: expected a point of X, within \[-1, 1\] at coordinate 1, got 1.1"),
        ([0.9, -0.9], r"^x: expected sum \|x_i\| <= 1.5, got 1.8"),
        (["a", "b"], "^x: expected numbers"),
        (None, "^x: expected numbers"),
    ],
)
def test_points_outside_are_named(x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeaderSet.box(2, -1.0, 1.0).intersect(budget=1.5).check(x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"low": [1.0, 2.0, 3.0]}, "^low: expected a number or shape"),
        ({"high": math.nan}, "^high: expected numbers, got NaN"),
        ({"low": 0.5, "high": 0.25}, "^low: expected low <= high"),
        ({"low": 0.5, "budget": 0.9}, "^budget: expected at least 1"),
        ({"budget": math.nan}, "^budget: "),
    ],
)
def test_bad_cuts_are_named(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeaderSet.box(2, -1.0, 1.0).intersect(**kwargs)


@pytest.mark.parametrize("dim", [0, -1, 1.5])
def test_a_box_needs_a_dimension(dim: int) -> None:
    with pytest.raises(ValueError, match=r"^dim: expected a whole number >= 1"):
        LeaderSet.box(dim, 0.0, 1.0)


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.01])
@pytest.mark.parametrize("shape", [(1,), (4,), (3, 1), (2, 3, 5)])
def test_simplex_projection(shape: tuple[int, ...], floor: float) -> None:
    """The certificate over the simplex's corners, with actions missing."""
    for seed in range(5):
        rng = generator(seed)
        mask = torch.rand(shape, generator=rng) < 0.7
        mask[..., 0] = True
        for scale in (0.01, 1.0, 100.0):
            z = scale * torch.randn(shape, generator=rng, dtype=F64)
            p = project_simplex(z, mask, floor)
            assert bool((p[~mask] == 0.0).all())
            assert float(p[mask].min()) >= floor
            torch.testing.assert_close(
                p.sum(-1), torch.ones(shape[:-1], dtype=F64), rtol=0.0, atol=1e-13 * max(1, scale)
            )
            ascent = torch.where(mask, z - p, 0.0)
            mass = 1.0 - floor * mask.sum(-1).to(F64)
            best = mass * ascent.masked_fill(~mask, -math.inf).amax(-1) + floor * ascent.sum(-1)
            assert float((best - (ascent * p).sum(-1)).max()) < 1e-12 * max(1.0, scale)
