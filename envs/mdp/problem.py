r"""Bilevel problems: max_x J_L(x, pi) over x in X, s.t. pi optimal for M_tau(x), or (pi1, pi2) an equilibrium of a game.

**The leader's set** X is a box, optionally cut by a budget on the sum of absolute values:

.. math:: X = \{ x : low \le x \le high,\ \sum_i |x_i| \le budget \}

X is compact and convex. The Euclidean projection solves, per coordinate and for a multiplier t >= 0 of the budget,
``x_i(t) = clip(sign(z_i) max(|z_i| - t, 0), low_i, high_i)``; ``sum |x_i(t)|`` falls in t and is piecewise linear,
so t is found exactly, by interpolation between two breakpoints.

**The unit of rewards.** A temperature, a step size or a coefficient that suits rewards in [0, 1] does not suit rewards in
thousands. Defaults are therefore multiples of ``problem.reward_unit``, which is measured at the leader's initial x, x_0:

.. math:: unit = 2.5\ E\Big[ \max_a Q(s,a) - \min_a Q(s,a) \Big], \quad Q = Q^*_{x_0},\ s \sim d^{\pi^*_{x_0}}

This is the spread of the follower's action values at tau = 0, averaged over the states that the follower visits and in which its
action matters. The factor makes it about 1 in a random game with rewards in [0, 1]. ``problem.leader_reward_unit`` is the same
mean spread of the leader's action values under that follower. If both players' rewards are multiplied by c, so are both units. A
temperature that you state yourself, as ``tau`` of a problem or of a config, is in the same unit as the rewards.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .checks import as_float64, check_distribution, check_finite, check_number, check_size, check_tau, keep, require
from .tabular import (
    TabularKernel,
    TabularMDP,
    action_value,
    near_greedy_policy,
    policy_return,
    policy_value,
    solve_soft,
    visitation,
)
from .zero_sum import ZeroSumGame

ProblemT = TypeVar("ProblemT", bound="BilevelProblem")

LOGIT_SCALE = 1.5
"""``LeaderSet.scale`` of logits: a change of 1.5 multiplies the odds by 4.5."""

MEMBERSHIP_ATOL = 1e-9
"""A point counts as a member of X if no coordinate lies further outside than this, to allow for rounding."""

EVALUATION_TAU = 0.002
"""Temperature of evaluation at the best response, as a multiple of ``reward_unit``, for problems with tau = 0."""

UNIT_PER_SPREAD = 2.5
"""Ratio of ``reward_unit`` to the mean spread of action values; the unit is about 1 in random games with rewards in [0, 1]."""

SPREAD_ROUNDING = 1e-9
"""Action values that differ by less than this share of the largest one count as equal."""


@dataclass(frozen=True, eq=False)
class LeaderSet:
    """The leader's compact convex set X.

    Attributes:
        low: lower bounds, ``[dim]``, finite.
        high: upper bounds, ``[dim]``, finite, at least ``low``.
        budget: upper bound on ``sum |x_i|``, at least 0. Default: infinite, i.e. X is a box.
        scale: a change of a coordinate that alters the problem strongly, positive, e.g. 1.5 for logits. Leaders warn before a run
            whose steps cover neither this distance nor X. Default: infinite, i.e. x should be able to cross X.

    Raises:
        ValueError: the bounds have different shapes, are not finite or cross; no point of the box meets the budget; or ``scale``
            is not positive.
    """

    low: Tensor
    high: Tensor
    budget: float = math.inf
    scale: float = math.inf

    def __post_init__(self) -> None:
        keep(self, "low", "high")
        low, high = self.low, self.high
        fits = low.ndim == 1 and low.shape[0] >= 1
        require(fits, "low", "a vector of at least one bound", f"shape {tuple(low.shape)}")
        require(high.shape == low.shape, "high", f"shape {tuple(low.shape)}, as low has", f"shape {tuple(high.shape)}")
        require(bool((low <= high).all()), "low", "low <= high in every coordinate", "bounds that cross")
        object.__setattr__(self, "budget", check_number(self.budget, "budget", low=0.0))
        object.__setattr__(self, "scale", check_number(self.scale, "scale", low=0.0, open_low=True))
        least = float(self._clip(torch.zeros_like(low)).abs().sum())
        require(least <= self.budget, "budget", f"at least {least:g}, the smallest sum |x_i| in the box", self.budget)

    @staticmethod
    def box(dim: int, low: float, high: float, scale: float = math.inf) -> LeaderSet:
        """Return the box ``[low, high]^dim``.

        Args:
            dim: number of coordinates, at least 1.
            low: lower bound of every coordinate.
            high: upper bound of every coordinate.
            scale: a change of a coordinate that alters the problem strongly, positive. Default: infinite.

        Raises:
            ValueError: ``dim`` is below 1, the bounds are not finite or cross, or ``scale`` is not positive.
        """
        ends = [torch.full((check_size(dim, "dim"),), float(end), dtype=torch.float64) for end in (low, high)]
        return LeaderSet(ends[0], ends[1], scale=scale)

    @property
    def dim(self) -> int:
        """Number of coordinates of x."""
        return int(self.low.shape[0])

    @property
    def unit(self) -> Tensor:
        """Unit of steps of x and of noise on it, ``[dim]``: 1, but at least 1/40 and at most 1/2 of X's width."""
        width = self.high - self.low
        return torch.where(width > 0.0, torch.ones_like(width).clamp(width / 40.0, width / 2.0), 1.0)

    def _clip(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def _spend(self, z: Tensor, t: Tensor) -> Tensor:
        return self._clip(z.sign() * (z.abs() - t).clamp_min(0.0))

    def project(self, x: Tensor) -> Tensor:
        """Return the Euclidean projection onto X of x, ``[dim]``, or of each row of x, ``[n, dim]``."""
        clipped = self._clip(x)
        if self.budget == math.inf:
            return clipped
        if x.ndim == 1:
            return self.project(x[None])[0]
        over = clipped.abs().sum(-1) > self.budget
        if not bool(over.any()):
            return clipped
        # sum |clip(sign(x) max(|x| - t, 0))| falls in t, linearly between its kinks: find the piece on which it meets the budget.
        z = x[over]
        kinks = torch.cat(
            [z.abs(), z.abs() - self.low.abs(), z.abs() - self.high.abs(), torch.zeros_like(z[:, :1])], -1
        )
        kinks = kinks.clamp_min(0.0).sort(-1).values
        left, right = torch.zeros(len(z), 1, dtype=torch.long), torch.full((len(z), 1), kinks.shape[1] - 1)
        while bool((right - left > 1).any()):
            middle = (left + right) // 2
            met = self._spend(z, kinks.gather(1, middle)).abs().sum(-1, keepdim=True) <= self.budget
            left, right = torch.where(met, left, middle), torch.where(met, middle, right)
        t_0, t_1 = kinks.gather(1, left), kinks.gather(1, right)
        s_0, s_1 = (self._spend(z, t).abs().sum(-1, keepdim=True) for t in (t_0, t_1))
        result = clipped.clone()
        result[over] = self._spend(z, t_0 + (t_1 - t_0) * (s_0 - self.budget) / (s_0 - s_1))
        return result

    def contains(self, x: Tensor) -> bool:
        """Return whether x, ``[dim]``, lies in X, up to rounding."""
        inside = (x >= self.low - MEMBERSHIP_ATOL) & (x <= self.high + MEMBERSHIP_ATOL)
        return bool(inside.all()) and bool(x.abs().sum() <= self.budget + MEMBERSHIP_ATOL * self.dim)

    def check(self, x: Any, name: str = "x") -> Tensor:
        """Return x as a float64 tensor, after checking that it lies in X.

        Args:
            x: numbers, ``[dim]``.
            name: the argument's name in error messages. Default: ``"x"``.

        Raises:
            ValueError: x has the wrong shape, has an entry that is not finite, or lies outside X.
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
        """Return x as a float64 tensor ``[n, dim]``, after checking that each row lies in X.

        Args:
            x: numbers, ``[n, dim]``.
            n: the expected number of rows.
            name: the argument's name in error messages. Default: ``"x"``.

        Raises:
            ValueError: x has the wrong shape, has an entry that is not finite, or has a row outside X.
        """
        points = as_float64(x, name)
        expected = f"shape ({self.dim},) or ({n}, {self.dim})"
        require(tuple(points.shape) == (n, self.dim), name, expected, f"shape {tuple(points.shape)}")
        low, high = self.low - MEMBERSHIP_ATOL, self.high + MEMBERSHIP_ATOL
        inside = bool(((points.amin(0) >= low) & (points.amax(0) <= high)).all())  # a NaN is not
        spent = 0.0 if self.budget == math.inf else points.abs().sum(-1).max()
        if not (inside and spent <= self.budget + MEMBERSHIP_ATOL * self.dim):
            for i, point in enumerate(points):
                self.check(point, f"{name}[{i}]")
        return points

    def intersect(self, low: Any = -math.inf, high: Any = math.inf, budget: float = math.inf) -> LeaderSet:
        """Return the subset of X that also meets these bounds and this budget.

        Args:
            low: lower bound, a number or ``[dim]``. Default: none.
            high: upper bound, a number or ``[dim]``. Default: none.
            budget: upper bound on ``sum |x_i|``, at least 0. Default: none.

        Raises:
            ValueError: a bound has the wrong shape or is NaN, or the subset is empty.
        """
        budget, cut = check_number(budget, "budget", low=0.0), []
        for name, bound in (("low", low), ("high", high)):
            value = as_float64(bound, name)
            fits, expected = value.shape in ((), self.low.shape), f"a number or shape {tuple(self.low.shape)}"
            require(fits, name, expected, f"shape {tuple(value.shape)}")
            require(not bool(value.isnan().any()), name, "numbers", "NaN")
            cut.append(value.expand_as(self.low))
        low, high = torch.maximum(self.low, cut[0]), torch.minimum(self.high, cut[1])
        return LeaderSet(low, high, min(self.budget, budget), self.scale)


@dataclass(frozen=True, eq=False)
class Optimum:
    """The known solution of a bilevel problem at one temperature.

    Attributes:
        x: the leader's best parameter, ``[dim]``.
        pi: the follower's best response to it, ``[S, A]``.
        leader_return: ``J_L(x, pi)``.
    """

    x: Tensor
    pi: Tensor
    leader_return: float


class BilevelProblem(ABC):
    """Base class of bilevel problems, whose lower level is a follower's MDP or a zero-sum game that depends on x in X.

    Attributes:
        leader_set: the leader's set X.
        tau: default temperature of the lower level, at least 0; a method may use another. Default: 0.
        lower_level: the kind of lower level: ``"single"`` (one follower, the default), ``"zero_sum"``, ``"regulator"``, or your
            own class in the manner of ``agents.lower_levels``, which is called with the problem.
    """

    leader_set: LeaderSet
    lower_level: ClassVar[Any] = "single"
    tau: float = 0.0
    _context_probs: Tensor | None = None
    _units: tuple[float, float] | None = None

    @property
    def context_probs(self) -> Tensor | None:
        """The probabilities of the contexts, ``[C]``; None where there are no contexts.

        A problem with contexts has a leading axis of size C in each of its tables.

        Raises:
            ValueError: on assignment, if the values are not a probability distribution.
        """
        return self._context_probs

    @context_probs.setter
    def context_probs(self, probs: Tensor | None) -> None:
        if probs is not None:
            probs = as_float64(probs, "context_probs")
            fits = probs.ndim == 1 and len(probs) >= 1
            require(fits, "context_probs", "a vector [C], C >= 1", f"shape {tuple(probs.shape)}")
            check_distribution(probs, "context_probs")
        object.__setattr__(self, "_context_probs", probs)  # problems may be frozen dataclasses

    def over_contexts(self, values: Tensor) -> Tensor:
        """Return the mean of values over the contexts; without contexts, return them unchanged.

        Args:
            values: one value per context, ``[..., C]``, or a scalar that holds in every context.

        Raises:
            ValueError: the number of values is not the number of contexts.
        """
        if self.context_probs is None:
            return values
        fits = values.ndim == 0 or values.shape[-1] == len(self.context_probs)
        require(fits, "context_probs", f"{values.shape[-1:].numel()} weights, one a context", len(self.context_probs))
        return (self.context_probs * values).sum(-1)

    @property
    def tau0(self) -> float:
        """Temperature of evaluation, ``F_0(x) = J_L(x, pi*_tau0(x))``: ``tau`` if positive, else 0.002 reward units."""
        return self.tau if self.tau > 0.0 else EVALUATION_TAU * self.reward_unit

    # --- the unit of rewards (see the module) -----------------------------------------------------------------------------

    @property
    def reward_unit(self) -> float:
        """The unit of the follower's rewards, in which default temperatures are given."""
        return self._both_units()[0]

    @property
    def leader_reward_unit(self) -> float:
        """The unit of the leader's rewards, by which its gradients are scaled; the follower's unit where J_L is not a return."""
        return self._both_units()[1]

    def _both_units(self) -> tuple[float, float]:
        if self._units is None:
            with torch.no_grad():
                object.__setattr__(self, "_units", self.measured_units())  # problems may be frozen dataclasses
        assert self._units is not None
        return self._units

    def measured_units(self) -> tuple[float, float]:
        """Measure and return ``reward_unit`` and ``leader_reward_unit``; here 1 for both."""
        return 1.0, 1.0

    def in_units(self: ProblemT, reward_unit: float, leader_reward_unit: float | None = None) -> ProblemT:
        """Return a copy of the problem with given units, instead of measured ones.

        Args:
            reward_unit: unit of the follower's rewards, positive; with 1, default temperatures are in the rewards' own unit.
            leader_reward_unit: unit of the leader's rewards, positive. Default: the follower's unit.

        Raises:
            ValueError: a unit is not positive or not finite.
        """
        given = {"reward_unit": reward_unit}
        given["leader_reward_unit"] = reward_unit if leader_reward_unit is None else leader_reward_unit
        units = tuple(check_number(u, name, low=0.0, open_low=True, open_high=True) for name, u in given.items())
        stated = copy.copy(self)
        object.__setattr__(stated, "_units", units)
        return stated

    def _measuring_points(self) -> list[Tensor]:
        """Return the initial x, and an interior point of X for problems whose rewards are all equal at the initial x."""
        low, high = self.leader_set.low, self.leader_set.high
        share = torch.arange(1, self.leader_dim + 1, dtype=torch.float64) / (self.leader_dim + 1)
        return [self.start_x().detach(), self.project(low + share * (high - low))]

    @property
    def leader_dim(self) -> int:
        """Number of coordinates of x."""
        return self.leader_set.dim

    def project(self, x: Tensor) -> Tensor:
        """Return the Euclidean projection of x, ``[dim]`` or ``[n, dim]``, onto X."""
        return self.leader_set.project(x)

    def start_x(self) -> Tensor:
        """Return the leader's initial x, ``[dim]``: by default 0, projected onto X."""
        return self.project(torch.zeros(self.leader_dim, dtype=torch.float64))

    def optimum(self, tau: float | None = None) -> Optimum:
        """Return the solution where it is known in closed form.

        Args:
            tau: temperature of the lower level. Default: the problem's own.

        Raises:
            NotImplementedError: no closed form is known.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form optimum")


def _mean_spread(mdp: TabularMDP, Q: Tensor, visits: Tensor) -> float:
    """Return the mean of max_a Q(s,a) - min_a Q(s,a) over visits to states where the action matters; 0 if it never does."""
    missing = torch.zeros_like(Q, dtype=torch.bool) if mdp.mask is None else ~mdp.mask
    spread = Q.masked_fill(missing, -math.inf).amax(-1) - Q.masked_fill(missing, math.inf).amin(-1)
    size = Q.masked_fill(missing, 0.0).abs().max()
    weights = visits.expand_as(spread) * (spread > SPREAD_ROUNDING * size)
    total = float(weights.sum())
    return float((weights * spread).sum()) / total if total > 0.0 else 0.0


def _range_of_rewards(mdp: TabularMDP) -> float:
    """Return the largest minus the smallest reward of the available actions."""
    rewards = mdp.r if mdp.mask is None else mdp.r.expand(mdp.mask.shape)[mdp.mask]
    return float(rewards.max() - rewards.min())


class TabularProblem(BilevelProblem):
    """Base class of bilevel problems with one follower, whose tabular MDP depends on the leader's parameter x in X.

    Attributes:
        batched_kernel: whether ``kernel`` takes x ``[n, dim]``, one row for each environment. Default: False.
        takes_missing_actions: whether simulators accept an unavailable action and follow the kernel's row for it, e.g. a wait,
            for followers that do not support masks; if False, the default, they raise an error.
        commitment_is_distribution: whether the rows of ``commitment`` are probability distributions. Default: False.
    """

    batched_kernel: ClassVar[bool] = False
    takes_missing_actions: ClassVar[bool] = False
    commitment_is_distribution: ClassVar[bool] = False

    @abstractmethod
    def follower_mdp(self, x: Tensor) -> TabularMDP:
        """Return the follower's MDP M(x), differentiable in x, ``[dim]``."""

    @abstractmethod
    def leader_reward(self, x: Tensor) -> Tensor | None:
        """Return the leader's reward r_l(s,a) at x, ``[..., S, A]``, whose return is J_L; None if J_L is not a return."""

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        """Return J_L(x, pi), a scalar that the leader maximises, differentiable in x and pi.

        Args:
            x: the leader's parameter, ``[dim]``.
            pi: the follower's policy, ``[..., S, A]``.

        Raises:
            NotImplementedError: the problem has no leader reward, and its class does not define this method.
        """
        reward = self.leader_reward(x)
        if reward is None:
            raise NotImplementedError(f"{type(self).__name__} has no leader reward and must define leader_return")
        return self.over_contexts(policy_return(self.follower_mdp(x).with_reward(reward), torch.as_tensor(pi)))

    def occupancy_return(self, x: Tensor, occupancy: Tensor) -> Tensor:
        """Return J_L as a function of x and the occupancy, a scalar, differentiable in both.

        It is linear in the occupancy where J_L is a discounted return. A problem whose J_L is not a return may define its own.

        Args:
            x: the leader's parameter, ``[dim]``.
            occupancy: m(s,a) = (1-gamma) d(s) pi(a|s), ``[..., S, A]``, where d are the discounted visits.

        Raises:
            NotImplementedError: the problem has no leader reward, and its class does not define this method.
        """
        reward = self.leader_reward(x)
        if reward is None:
            raise NotImplementedError(f"{type(self).__name__} has no leader reward and defines no occupancy_return")
        return self.over_contexts((occupancy * reward).sum((-2, -1))) / (1.0 - self.follower_mdp(x).gamma)

    def measured_units(self) -> tuple[float, float]:
        """Measure both units by the mean spreads of action values (see the module), at the first point where they are positive.

        Without any spread, the follower's unit is the range of its rewards, or 1 if all are equal, and the leader's unit is the
        follower's.
        """
        points = self._measuring_points()
        models = [self.follower_mdp(x).detach() for x in points]
        unit, leader_unit = 0.0, 0.0
        for x, mdp in zip(points, models, strict=True):
            # The follower at tau = 0, uniform over its best actions up to rounding, and the states that it visits.
            Q, reward = solve_soft(mdp, 0.0).Q, self.leader_reward(x)
            pi = near_greedy_policy(mdp, Q, SPREAD_ROUNDING)
            visits = self._weighted(visitation(mdp, pi))
            unit = unit or UNIT_PER_SPREAD * _mean_spread(mdp, Q, visits)
            if reward is not None and leader_unit == 0.0:
                paid = mdp.with_reward(reward.detach())
                leader_unit = UNIT_PER_SPREAD * _mean_spread(mdp, action_value(paid, policy_value(paid, pi)), visits)
        unit = unit or next((size for size in map(_range_of_rewards, models) if size > 0.0), 1.0)
        return unit, leader_unit or unit

    def _weighted(self, visits: Tensor) -> Tensor:
        """Return the visits to states, ``[..., S]``, weighted by the contexts' probabilities where there are contexts."""
        return visits if self.context_probs is None else visits * self.context_probs.unsqueeze(-1)

    def kernel(self, x: Tensor) -> TabularKernel:
        """Return the distributions that a simulator draws from at x; here the leader itself draws nothing (W = 1)."""
        mdp, reward = self.follower_mdp(x), self.leader_reward(x)
        reward = torch.zeros_like(mdp.r) if reward is None else reward
        return TabularKernel(
            torch.ones_like(mdp.r).unsqueeze(-1), mdp.dense_P.unsqueeze(-2), mdp.r.unsqueeze(-1), reward.unsqueeze(-1)
        )

    def commitment(self, x: Tensor) -> Tensor:
        """Return the leader context of each state, ``[..., S or 1, size]``: the part of x that a follower may see; here all."""
        return x.unsqueeze(-2)


class GameProblem(BilevelProblem):
    """Base class of bilevel problems whose lower level is the Nash equilibrium of a zero-sum game that depends on x in X."""

    lower_level: ClassVar[Any] = "zero_sum"

    @abstractmethod
    def game(self, x: Tensor) -> ZeroSumGame:
        """Return the players' game at x, differentiable in x, ``[dim]``."""

    @abstractmethod
    def leader_return(self, x: Tensor, pi: tuple[Tensor, Tensor]) -> Tensor:
        """Return J_L(x, (pi1, pi2)), a scalar that the leader maximises, differentiable in x, pi1 and pi2.

        Args:
            x: the leader's parameter, ``[dim]``.
            pi: the players' policies, ``[S, A1]`` and ``[S, A2]``.
        """

    def measured_units(self) -> tuple[float, float]:
        """Measure both units as ranges of rewards, the players' and the leader's, at the first point where they are positive.

        The players' unit is 1 if all their rewards are equal. The leader's unit is the players' where J_L is not a return.
        """
        unit, leader_unit = 0.0, 0.0
        for x in self._measuring_points():
            r, leaders = self.game(x).r, self.leader_game(x)
            unit = unit or float(r.max() - r.min())
            if leaders is not None:
                leader_unit = leader_unit or float(leaders.r.max() - leaders.r.min())
        unit = unit or 1.0
        return unit, leader_unit or unit

    def leader_game(self, x: Tensor) -> ZeroSumGame | None:
        """Return a game whose reward r is the leader's and in which J_L is the pair's return; None if J_L is not a return."""
        return None

    def commitment(self, x: Tensor) -> Tensor:
        """Return the leader context of each state, ``[S, size]``, which the players may see: by default their payoffs there."""
        return self.game(x).r.flatten(-2)


class ArrayProblem(TabularProblem):
    """A bilevel problem from arrays and two reward functions of x; it needs no environment.

    Args:
        base: the follower's model, dense or sparse; all of it is used except its reward r.
        leader_set: the leader's set X.
        follower_reward: a function from x, ``[dim]``, to the follower's reward, ``[S, A]``, differentiable.
        leader_reward: a function from x, ``[dim]``, to the leader's reward, ``[S, A]``, differentiable.
        transition: a function from x, ``[dim]``, to transition probabilities, ``[S, A, S]``, if they depend on x; not allowed
            with a sparse base. Default: None.
        tau: default temperature of the lower level, at least 0. Default: 0.

    Raises:
        ValueError: at the initial x, a function returns another shape, or not a valid model.

    Example:
        >>> import torch
        >>> from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
        >>> base = TabularMDP(P=torch.full((2, 2, 2), 0.5), r=torch.eye(2), rho=[0.5, 0.5], gamma=0.9)
        >>> problem = ArrayProblem(base, LeaderSet.box(2, -1, 1), lambda x: base.r + x, lambda x: base.r - x)
        >>> problem.leader_dim
        2
    """

    def __init__(
        self,
        base: TabularMDP,
        leader_set: LeaderSet,
        follower_reward: Callable[[Tensor], Tensor],
        leader_reward: Callable[[Tensor], Tensor],
        transition: Callable[[Tensor], Tensor] | None = None,
        tau: float = 0.0,
    ) -> None:
        self.base, self.leader_set, self.tau = base, leader_set, check_tau(tau)
        self._follower_reward, self._leader_reward, self._transition = follower_reward, leader_reward, transition
        x = self.start_x()
        for name, function in (("follower_reward", follower_reward), ("leader_reward", leader_reward)):
            shape = tuple(as_float64(function(x), name).shape)
            require(shape == tuple(base.r.shape), name, f"an answer of shape {tuple(base.r.shape)}", f"shape {shape}")
        held = transition is None or isinstance(base.P, Tensor)
        require(held, "transition", "None with a sparse base, whose P is fixed", "a function")
        replace(self.follower_mdp(x), validate=True)

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        mdp = self.base.with_reward(as_float64(self._follower_reward(x), "follower_reward"))
        if self._transition is None:
            return mdp
        return replace(mdp, P=as_float64(self._transition(x), "transition"), validate=False)

    def leader_reward(self, x: Tensor) -> Tensor:
        return as_float64(self._leader_reward(x), "leader_reward")
