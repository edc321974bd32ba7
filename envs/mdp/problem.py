r"""Bilevel problems: max_x J_L(x, pi) over x in X, s.t. pi optimal for M_tau(x), or (pi1, pi2) an equilibrium of a game.

**The leader's set** X is a box, optionally cut by a budget on the sum of absolute values:

.. math:: X = \{ x : low \le x \le high,\ \sum_i |x_i| \le budget \}

X is compact and convex. The Euclidean projection solves, per coordinate and for a multiplier t >= 0 of the budget,
``x_i(t) = clip(sign(z_i) max(|z_i| - t, 0), low_i, high_i)``; ``sum |x_i(t)|`` falls in t and is piecewise linear,
so t is found exactly between two of its breakpoints.

**The unit of rewards.** A temperature, a step size or a coefficient that suits rewards in [0, 1] does not suit rewards in
thousands. Defaults are therefore numbers of ``problem.reward_unit``, which is measured at the leader's start x_0:

.. math:: unit = 2.5\ E\Big[ \max_a Q(s,a) - \min_a Q(s,a) \Big], \quad Q = Q^*_{x_0},\ s \sim d^{\pi^*_{x_0}}

the spread of the follower's action values at tau = 0, averaged over the states that it visits and in which its action matters.
The factor makes it about 1 in a random game with rewards in [0, 1]. ``problem.leader_reward_unit`` is the same mean of the
leader's action values under that follower. If both players' rewards are multiplied by c, so are both units. Whoever states a
temperature, as ``tau`` of a problem or of a config, states it in the rewards' own unit.
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

MEMBERSHIP_ATOL = 1e-9
"""How far outside X a point may lie, per coordinate, and still count as a member (rounding)."""

EVALUATION_TAU = 0.002
"""Temperature of evaluation at the best response, in units of ``reward_unit``, for a follower without entropy of its own."""

UNIT_PER_SPREAD = 2.5
"""``reward_unit`` by the mean spread of action values: about 1 in random games whose rewards lie in [0, 1]."""

SPREAD_ROUNDING = 1e-9
"""Action values that differ by less than this share of the largest one count as equal."""


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
        keep(self, "low", "high")
        low, high = self.low, self.high
        fits = low.ndim == 1 and low.shape[0] >= 1
        require(fits, "low", "a vector of at least one bound", f"shape {tuple(low.shape)}")
        require(high.shape == low.shape, "high", f"shape {tuple(low.shape)}, as low has", f"shape {tuple(high.shape)}")
        require(bool((low <= high).all()), "low", "low <= high in every coordinate", "bounds that cross")
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
        inside = bool(((points.amin(0) >= low) & (points.amax(0) <= high)).all())  # a NaN is not
        spent = 0.0 if self.budget == math.inf else points.abs().sum(-1).max()
        if not (inside and spent <= self.budget + MEMBERSHIP_ATOL * self.dim):
            for i, point in enumerate(points):
                self.check(point, f"{name}[{i}]")
        return points

    def intersect(self, low: Any = -math.inf, high: Any = math.inf, budget: float = math.inf) -> LeaderSet:
        """X cut by further bounds (a number, or one a coordinate) and a budget."""
        budget, cut = check_number(budget, "budget", low=0.0), []
        for name, bound in (("low", low), ("high", high)):
            value = as_float64(bound, name)
            fits, expected = value.shape in ((), self.low.shape), f"a number or shape {tuple(self.low.shape)}"
            require(fits, name, expected, f"shape {tuple(value.shape)}")
            require(not bool(value.isnan().any()), name, "numbers", "NaN")
            cut.append(value.expand_as(self.low))
        return LeaderSet(torch.maximum(self.low, cut[0]), torch.minimum(self.high, cut[1]), min(self.budget, budget))


@dataclass(frozen=True, eq=False)
class Optimum:
    """The known answer of a problem at a temperature.

    Attributes:
        x: the leader's best parameter, ``[dim]``.
        pi: the follower's best response to it, ``[S, A]``.
        leader_return: ``J_L(x, pi)``.
    """

    x: Tensor
    pi: Tensor
    leader_return: float


class BilevelProblem(ABC):
    """A leader's parameter x in X: what problems over a follower's MDP and over a zero-sum game share.

    Attributes:
        leader_set: X.
        tau: default temperature of the lower level; a method may use its own.
        lower_level: what kind of answer x meets: ``"single"``, ``"zero_sum"``, ``"regulator"``, or a class of
            ``agents.lower_levels`` of one's own, made with the problem.
    """

    leader_set: LeaderSet
    lower_level: ClassVar[Any] = "single"
    tau: float = 0.0
    _context_probs: Tensor | None = None
    _units: tuple[float, float] | None = None

    @property
    def context_probs(self) -> Tensor | None:
        """Weights ``[C]`` of the leading context axis of every field, or None where there is none.

        Raises:
            ValueError: on assignment, weights that are no distribution.
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
        """Average ``[C]`` values with the context probabilities; a scalar passes through.

        Raises:
            ValueError: more or fewer values than contexts.
        """
        if self.context_probs is None:
            return values
        fits = values.ndim == 0 or values.shape[-1] == len(self.context_probs)
        require(fits, "context_probs", f"{values.shape[-1:].numel()} weights, one a context", len(self.context_probs))
        return (self.context_probs * values).sum(-1)

    @property
    def tau0(self) -> float:
        """Temperature at which x is evaluated, ``F_0(x) = J_L(x, pi*_tau0(x))``: the problem's own, or 0.002 reward units."""
        return self.tau if self.tau > 0.0 else EVALUATION_TAU * self.reward_unit

    # --- the unit of rewards (see the module) -----------------------------------------------------------------------------

    @property
    def reward_unit(self) -> float:
        """The unit of the follower's rewards, in which default temperatures are measured."""
        return self._both_units()[0]

    @property
    def leader_reward_unit(self) -> float:
        """The unit of the leader's rewards, in which its gradients are measured; the follower's where J_L is no return."""
        return self._both_units()[1]

    def _both_units(self) -> tuple[float, float]:
        if self._units is None:
            with torch.no_grad():
                object.__setattr__(self, "_units", self.measured_units())  # problems may be frozen dataclasses
        assert self._units is not None
        return self._units

    def measured_units(self) -> tuple[float, float]:
        """``reward_unit`` and ``leader_reward_unit`` as they are measured; here 1 for both."""
        return 1.0, 1.0

    def in_units(self: ProblemT, reward_unit: float, leader_reward_unit: float | None = None) -> ProblemT:
        """A copy of the problem whose units are stated instead of measured.

        Args:
            reward_unit: of the follower's rewards, positive; 1 measures temperatures in the rewards' own unit.
            leader_reward_unit: of the leader's rewards, positive; by default the follower's.

        Raises:
            ValueError: a unit that is not positive or not finite.
        """
        given = {"reward_unit": reward_unit}
        given["leader_reward_unit"] = reward_unit if leader_reward_unit is None else leader_reward_unit
        units = tuple(check_number(u, name, low=0.0, open_low=True, open_high=True) for name, u in given.items())
        stated = copy.copy(self)
        object.__setattr__(stated, "_units", units)
        return stated

    def _measuring_points(self) -> list[Tensor]:
        """The start, and a point inside X for problems in which rewards are all equal at the start."""
        low, high = self.leader_set.low, self.leader_set.high
        share = torch.arange(1, self.leader_dim + 1, dtype=torch.float64) / (self.leader_dim + 1)
        return [self.start_x().detach(), self.project(low + share * (high - low))]

    @property
    def leader_dim(self) -> int:
        """Number of coordinates of x."""
        return self.leader_set.dim

    def project(self, x: Tensor) -> Tensor:
        """Euclidean projection on X."""
        return self.leader_set.project(x)

    def start_x(self) -> Tensor:
        """The untrained leader: 0, projected on X."""
        return self.project(torch.zeros(self.leader_dim, dtype=torch.float64))

    def optimum(self, tau: float | None = None) -> Optimum:
        """The answer in closed form, where it is known."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form optimum")


def _mean_spread(mdp: TabularMDP, Q: Tensor, visits: Tensor) -> float:
    """max_a Q(s,a) - min_a Q(s,a), averaged over the visits to states in which the action matters; 0 where it never does."""
    missing = torch.zeros_like(Q, dtype=torch.bool) if mdp.mask is None else ~mdp.mask
    spread = Q.masked_fill(missing, -math.inf).amax(-1) - Q.masked_fill(missing, math.inf).amin(-1)
    size = Q.masked_fill(missing, 0.0).abs().max()
    weights = visits.expand_as(spread) * (spread > SPREAD_ROUNDING * size)
    total = float(weights.sum())
    return float((weights * spread).sum()) / total if total > 0.0 else 0.0


def _range_of_rewards(mdp: TabularMDP) -> float:
    """The largest less the smallest reward of an action that exists."""
    rewards = mdp.r if mdp.mask is None else mdp.r.expand(mdp.mask.shape)[mdp.mask]
    return float(rewards.max() - rewards.min())


class TabularProblem(BilevelProblem):
    """A leader's parameter x in X and the follower's MDP that it shapes.

    Attributes:
        batched_kernel: whether ``kernel`` takes x ``[n, dim]``, one row an environment.
        takes_missing_actions: whether simulators take an action outside the mask, as the kernel's rows say (a wait, for
            followers that know no masks); else they raise.
        commitment_is_distribution: whether the rows of ``commitment`` sum to one.
    """

    batched_kernel: ClassVar[bool] = False
    takes_missing_actions: ClassVar[bool] = False
    commitment_is_distribution: ClassVar[bool] = False

    @abstractmethod
    def follower_mdp(self, x: Tensor) -> TabularMDP:
        """M(x), differentiable in x, ``[dim]``."""

    @abstractmethod
    def leader_reward(self, x: Tensor) -> Tensor | None:
        """r_l(s,a) at x, ``[..., S, A]``, if J_L is its discounted return in the follower's MDP; None if J_L is no return."""

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        """J_L(x, pi), a scalar to be maximised, differentiable in both."""
        reward = self.leader_reward(x)
        if reward is None:
            raise NotImplementedError(f"{type(self).__name__} has no leader reward and must define leader_return")
        return self.over_contexts(policy_return(self.follower_mdp(x).with_reward(reward), torch.as_tensor(pi)))

    def occupancy_return(self, x: Tensor, occupancy: Tensor) -> Tensor:
        """J_L as a function of x and of the occupancy m(s,a) = (1-gamma) d(s) pi(a|s), ``[..., S, A]``, differentiable in both.

        Where J_L is a discounted return it is linear in m; a problem whose J_L is no return may have one of its own.
        """
        reward = self.leader_reward(x)
        if reward is None:
            raise NotImplementedError(f"{type(self).__name__} has no leader reward and defines no occupancy_return")
        return self.over_contexts((occupancy * reward).sum((-2, -1))) / (1.0 - self.follower_mdp(x).gamma)

    def measured_units(self) -> tuple[float, float]:
        """Both units by the mean spreads of action values (see the module), at the first point where there is a spread.

        Where there is none the follower's unit is the range of its rewards, or 1 where they are all equal, and the leader's
        is the follower's.
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
        """Visits of states, ``[..., S]``, weighted by the contexts' probabilities where there are contexts."""
        return visits if self.context_probs is None else visits * self.context_probs.unsqueeze(-1)

    def kernel(self, x: Tensor) -> TabularKernel:
        """What a simulator draws at x; here no draw of the leader's own (W = 1)."""
        mdp, reward = self.follower_mdp(x), self.leader_reward(x)
        reward = torch.zeros_like(mdp.r) if reward is None else reward
        return TabularKernel(
            torch.ones_like(mdp.r).unsqueeze(-1), mdp.dense_P.unsqueeze(-2), mdp.r.unsqueeze(-1), reward.unsqueeze(-1)
        )

    def commitment(self, x: Tensor) -> Tensor:
        """What a follower may be shown of x in each state, ``[..., S or 1, size]``; here all of x, in every state."""
        return x.unsqueeze(-2)


class GameProblem(BilevelProblem):
    """A leader's parameter x in X and the zero-sum game that it shapes; the lower level is that game's Nash equilibrium."""

    lower_level: ClassVar[Any] = "zero_sum"

    @abstractmethod
    def game(self, x: Tensor) -> ZeroSumGame:
        """The players' game at x, differentiable in x, ``[dim]``."""

    @abstractmethod
    def leader_return(self, x: Tensor, pi: tuple[Tensor, Tensor]) -> Tensor:
        """J_L(x, (pi1, pi2)), a scalar to be maximised, differentiable in all of them."""

    def measured_units(self) -> tuple[float, float]:
        """Ranges of the players' and of the leader's rewards, each at the first point where it is positive.

        The players' is 1 where all their rewards are equal; the leader's is the players' where J_L is no return.
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
        """The world in which J_L is the pair's discounted return, r being the leader's reward; None if J_L is no return."""
        return None

    def commitment(self, x: Tensor) -> Tensor:
        """What the players may be shown of x in each state, ``[S, size]``: by default their payoffs there."""
        return self.game(x).r.flatten(-2)


class ArrayProblem(TabularProblem):
    """A problem from plain arrays and two reward functions of x, without an environment.

    Args:
        base: the follower's model, dense or sparse; all but its r is used.
        leader_set: X.
        follower_reward: ``x -> r_x``, ``[S, A]``, differentiable.
        leader_reward: ``x -> r_l``, ``[S, A]``, differentiable.
        transition: ``x -> P_x``, ``[S, A, S]``, where x enters the dynamics; not with a sparse base.
        tau: default temperature.

    Raises:
        ValueError: a function whose answer at the start has the wrong shape or is no model.

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
        require(held, "transition", "None with a sparse base: its P is held", "a function")
        replace(self.follower_mdp(x), validate=True)

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        mdp = self.base.with_reward(as_float64(self._follower_reward(x), "follower_reward"))
        if self._transition is None:
            return mdp
        return replace(mdp, P=as_float64(self._transition(x), "transition"), validate=False)

    def leader_reward(self, x: Tensor) -> Tensor:
        return as_float64(self._leader_reward(x), "leader_reward")
