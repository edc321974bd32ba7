r"""The leader's set X: a box, optionally cut by a budget on the sum of absolute values.

.. math:: X = \{ x : low \le x \le high,\ \sum_i |x_i| \le budget \}

X is compact and convex. The Euclidean projection solves, per coordinate and for a multiplier t >= 0 of the budget,
``x_i(t) = clip(sign(z_i) max(|z_i| - t, 0), low_i, high_i)``; ``sum |x_i(t)|`` falls in t and is piecewise linear,
so t is found exactly between two of its breakpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import as_float64, check_finite, check_number, check_size, require

MEMBERSHIP_ATOL = 1e-9
"""How far outside X a point may lie, per coordinate, and still count as a member (rounding)."""


@dataclass(frozen=True, eq=False)
class LeaderSet:
    """The leader's compact convex set X.

    Attributes:
        low: lower bounds, ``[dim]``, finite.
        high: upper bounds, ``[dim]``, finite, ``>= low``.
        budget: bound on ``sum |x_i|``; infinite for a plain box.

    Raises:
        ValueError: bounds of different shapes, not finite or crossing; a budget that no point of the box meets.
    """

    low: Tensor
    high: Tensor
    budget: float = math.inf

    def __post_init__(self) -> None:
        low, high = as_float64(self.low, "low"), as_float64(self.high, "high")
        require(
            low.ndim == 1 and low.shape[0] >= 1, "low", "a vector of at least one bound", f"shape {tuple(low.shape)}"
        )
        require(high.shape == low.shape, "high", f"shape {tuple(low.shape)}, as low has", f"shape {tuple(high.shape)}")
        check_finite(low, "low")
        check_finite(high, "high")
        require(bool((low <= high).all()), "low", "low <= high in every coordinate", "bounds that cross")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "budget", check_number(self.budget, "budget", low=0.0))
        least = float(self._clip(torch.zeros_like(low)).abs().sum())
        require(least <= self.budget, "budget", f"at least {least:g}, the smallest sum |x_i| in the box", self.budget)

    @staticmethod
    def box(dim: int, low: float, high: float) -> LeaderSet:
        """The box ``[low, high]^dim``."""
        ends = [torch.full((check_size(dim, "dim"),), float(end), dtype=torch.float64) for end in (low, high)]
        return LeaderSet(ends[0], ends[1])

    @property
    def dim(self) -> int:
        """Number of coordinates of x."""
        return int(self.low.shape[0])

    def _clip(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def _spend(self, z: Tensor, t: Tensor) -> Tensor:
        return self._clip(z.sign() * (z.abs() - t).clamp_min(0.0))

    def project(self, x: Tensor) -> Tensor:
        """Euclidean projection on X of x, ``[dim]``, or of each row of ``[n, dim]``."""
        clipped = self._clip(x)
        if self.budget == math.inf:
            return clipped
        if x.ndim > 1:
            return torch.stack([self.project(row) for row in x])
        if clipped.abs().sum() <= self.budget:
            return clipped
        kinks = torch.cat([x.abs(), (x.abs() - self.low.abs()), (x.abs() - self.high.abs()), torch.zeros_like(x[:1])])
        kinks = kinks.clamp_min(0.0).unique()
        sums = torch.stack([self._spend(x, t).abs().sum() for t in kinks])
        right = int((sums <= self.budget).nonzero()[0])
        t_0, t_1, s_0, s_1 = kinks[right - 1], kinks[right], sums[right - 1], sums[right]
        return self._spend(x, t_0 + (t_1 - t_0) * (s_0 - self.budget) / (s_0 - s_1))

    def contains(self, x: Tensor) -> bool:
        """Whether x, ``[dim]``, lies in X up to rounding."""
        inside = (x >= self.low - MEMBERSHIP_ATOL) & (x <= self.high + MEMBERSHIP_ATOL)
        return bool(inside.all()) and bool(x.abs().sum() <= self.budget + MEMBERSHIP_ATOL * self.dim)

    def check(self, x: Any, name: str = "x") -> Tensor:
        """Return x as a float64 vector of X.

        Raises:
            ValueError: wrong shape, an entry that is not finite, or a point outside X.
        """
        point = as_float64(x, name)
        require(point.shape == self.low.shape, name, f"shape {tuple(self.low.shape)}", f"shape {tuple(point.shape)}")
        check_finite(point, name)
        if not self.contains(point):
            outside = (point < self.low - MEMBERSHIP_ATOL) | (point > self.high + MEMBERSHIP_ATOL)
            if bool(outside.any()):
                i = int(outside.nonzero()[0])
                bounds = f"[{self.low[i]:g}, {self.high[i]:g}] at coordinate {i}"
                raise ValueError(f"{name}: expected a point of X, within {bounds}, got {point[i].item():g}")
            raise ValueError(f"{name}: expected sum |x_i| <= {self.budget:g}, got {point.abs().sum().item():g}")
        return point

    def check_rows(self, x: Any, n: int, name: str = "x") -> Tensor:
        """Return x as a float64 matrix ``[n, dim]`` whose every row is a point of X.

        Raises:
            ValueError: wrong shape, an entry that is not finite, or a point outside X.
        """
        points = as_float64(x, name)
        expected = f"shape ({self.dim},) or ({n}, {self.dim})"
        require(tuple(points.shape) == (n, self.dim), name, expected, f"shape {tuple(points.shape)}")
        low, high = self.low - MEMBERSHIP_ATOL, self.high + MEMBERSHIP_ATOL
        if self.budget == math.inf and bool(((points.amin(0) >= low) & (points.amax(0) <= high)).all()):
            return points  # the common case, in two passes; a NaN is not among them
        inside = (points >= low) & (points <= high)
        inside = inside.all(-1) & (points.abs().sum(-1) <= self.budget + MEMBERSHIP_ATOL * self.dim)
        for i in (~inside).nonzero().flatten().tolist():
            self.check(points[i], f"{name}[{i}]")
        return points

    def intersect(self, low: Any = -math.inf, high: Any = math.inf, budget: float = math.inf) -> LeaderSet:
        """X cut by further bounds (a number, or one a coordinate) and a budget."""
        budget, cut = check_number(budget, "budget", low=0.0), []
        for name, bound in (("low", low), ("high", high)):
            value = as_float64(bound, name)
            require(
                value.shape in ((), self.low.shape),
                name,
                f"a number or shape {tuple(self.low.shape)}",
                f"shape {tuple(value.shape)}",
            )
            require(not bool(value.isnan().any()), name, "numbers", "NaN")
            cut.append(value.expand_as(self.low))
        return LeaderSet(torch.maximum(self.low, cut[0]), torch.minimum(self.high, cut[1]), min(self.budget, budget))
