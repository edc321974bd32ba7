r"""The leader chooses the distribution of physical attributes of an environment: a length, a mass, a gravity.

Simulators are usually not differentiable in their physical attributes. The leader therefore chooses a distribution over them: at
the start of each episode, values

    w_k ~ N(m_k, s_k^2),        x = (m_1, ..., m_K and those log s_k that the leader chooses)

are drawn and stay fixed for the episode, so that grad_x E[return] = E[ return * grad_x log p_x(w) ]. This log p is part of the
episode's first step only. Values that the environment cannot simulate are clipped to ``limits`` before they are set. The gradient
uses log p of the unclipped w and remains exact, since the environment is a function of w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..envs.mdp import LeaderSet
from ..envs.mdp.checks import check_number, require
from .leader_wrapper import Floats, LeaderReward, LeaderWrapper, Step, check_base

_SHOWN = 30  # names of attributes in an error


@dataclass(frozen=True)
class Attribute:
    """A numeric attribute of an environment, with the Gaussian distributions that the leader can choose for it.

    Attributes:
        name: the attribute's name on the unwrapped environment.
        low: lower bound of the mean.
        high: upper bound of the mean.
        std: standard deviation, positive; or a pair (smallest, largest), if the leader also chooses its logarithm.
        limits: values are clipped to these before they are set. Default: no limits.
        setter: a function ``(unwrapped environment, value) -> None`` that sets the value, for entries of an array or for
            attributes that others are computed from. Default: None, which sets the attribute ``name``.

    Raises:
        ValueError: the bounds cross or lie outside the limits, or the standard deviation is not positive.
    """

    name: str
    low: float
    high: float
    std: float | tuple[float, float]
    limits: tuple[float, float] = (-math.inf, math.inf)
    setter: Callable[[Any, float], None] | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.name, str), "name", "the name of an attribute", repr(self.name))
        low, high = (check_number(getattr(self, end), end, open_low=True, open_high=True) for end in ("low", "high"))
        within = self.limits[0] <= low <= high <= self.limits[1]
        require(within, "low", f"low <= high within {self.limits}", (low, high))
        ends = self.std if isinstance(self.std, tuple) else (self.std, self.std)
        require(len(ends) == 2, "std", "a number or a pair (smallest, largest)", self.std)
        for value in ends:
            check_number(value, "std", low=0.0, open_low=True, open_high=True)
        require(ends[0] <= ends[1], "std", "smallest <= largest", self.std)
        callable_ = self.setter is None or callable(self.setter)
        require(callable_, "setter", "a callable (environment, value)", repr(self.setter))

    def start(self, env: Any) -> float:
        """Return the environment's value, clipped to [low, high]; the midpoint if it has no number of that name."""
        value = getattr(env, self.name, None)
        own = float(value) if isinstance(value, Real) else 0.5 * (self.low + self.high)
        return min(max(own, self.low), self.high)

    def set(self, env: Any, value: float) -> None:
        """Set the environment's value for the next episode."""
        if self.setter is None:
            setattr(env, self.name, value)
        else:
            self.setter(env, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class DrawnAttribute(LeaderWrapper):
    """A leader environment whose attributes are drawn from the leader's Gaussian at the start of every episode.

    x consists of the means, followed by the logarithms of those standard deviations that the leader chooses. The leader context
    is x, followed by the drawn values after clipping if ``show_draw`` is True. ``info["leader_draw"]`` is (r, r_l, f, w), where f
    is 1 in an episode's first step and 0 later.

    The first observation must not depend on w, because an estimator may use a critic of it as a baseline.

    Args:
        env: the base environment, with Box, Discrete, MultiDiscrete or MultiBinary observations and actions.
        attributes: the attributes that the leader draws, at least one.
        gamma: discount factor of both players, in [0, 1). Default: 0.99.
        show_draw: whether the follower sees the drawn values. Default: False.
        leader_reward: the leader's reward, a function of a :class:`Step`. Default: the base environment's reward.

    Raises:
        ValueError: ``env`` is not a Gymnasium environment or has other spaces; the environment does not have an attribute (the
            error lists those that it has); or an attribute is not a number and has no setter.

    Example:
        >>> import gymnasium as gym
        >>> from bilevel_gym.wrappers import Attribute, DrawnAttribute
        >>> env = DrawnAttribute(gym.make("Pendulum-v1"), [Attribute("g", 1.0, 20.0, std=0.5)])
        >>> env.leader_x
        array([10.])
        >>> _ = env.reset(seed=0)
        >>> env.env.unwrapped.g != 10.0
        True
    """

    draws_once: bool = True

    def __init__(
        self,
        env: gym.Env[Any, Any],
        attributes: Sequence[Attribute],
        gamma: float = 0.99,
        show_draw: bool = False,
        leader_reward: LeaderReward | None = None,
    ) -> None:
        check_base(env)
        fits = isinstance(attributes, Sequence) and all(isinstance(a, Attribute) for a in attributes)
        require(fits and len(attributes) > 0, "attributes", "a list of at least one Attribute", repr(attributes))
        base: Any = env.unwrapped
        numbers = sorted(name for name, value in vars(base).items() if _is_number(value) and not name.startswith("_"))
        expected = f"an attribute of {type(base).__name__} that is a number: {', '.join(numbers[:_SHOWN])}"
        for a in attributes:
            fits = a.setter is not None or _is_number(getattr(base, a.name, None))
            require(fits, "attributes", expected, repr(a.name))
        require(isinstance(show_draw, bool), "show_draw", "True or False", repr(show_draw))
        self._attributes, self._show_draw = tuple(attributes), show_draw
        self._chosen = [k for k, a in enumerate(attributes) if isinstance(a.std, tuple)]
        ends = [a.std if isinstance(a.std, tuple) else (a.std, a.std) for a in attributes]
        middles = [0.5 * (math.log(small) + math.log(large)) for small, large in ends]
        self._log_std = torch.tensor(middles, dtype=torch.float64)
        low = [a.low for a in attributes] + [math.log(ends[k][0]) for k in self._chosen]
        high = [a.high for a in attributes] + [math.log(ends[k][1]) for k in self._chosen]
        means = torch.tensor([a.start(base) for a in attributes], dtype=torch.float64)
        leader_set = LeaderSet(torch.tensor(low), torch.tensor(high))
        super().__init__(env, leader_set, torch.cat([means, self._log_std[self._chosen]]), gamma, leader_reward)
        self.commitment_size = leader_set.dim + show_draw * len(attributes)
        self._w: Floats = means.numpy().copy()
        self._first = True

    def _gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means and the logarithms of the standard deviations, each ``[K]``."""
        K = len(self._attributes)
        return x[:K], self._log_std.index_put((torch.tensor(self._chosen, dtype=torch.long),), x[K:])

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context: x, followed by the drawn values if ``show_draw`` is True."""
        given = [self._drawn()] if self._show_draw else []
        return np.concatenate([self._x, *given]).astype(np.float32)

    def _begin(self) -> None:
        m, log_s = (part.numpy() for part in self._gaussian(torch.from_numpy(self._x)))
        self._w = m + np.exp(log_s) * self.draws.standard_normal(len(m))
        self._first = True
        for attribute, value in zip(self._attributes, self._drawn().tolist(), strict=True):
            attribute.set(self.env.unwrapped, value)

    def _drawn(self) -> Floats:
        return np.clip(self._w, *np.transpose([a.limits for a in self._attributes]))  # type: ignore[no-any-return]

    def _carried(self, step: Step) -> Floats:
        carried = np.concatenate([[float(self._first)], self._w])
        self._first = False
        return carried

    def _answer(self, x: Tensor, r: Tensor, r_l: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m, log_s = self._gaussian(x)
        first, z = c[..., 0], (c[..., 1:] - m) * (-log_s).exp()
        log_p = (-0.5 * z.square() - log_s - 0.5 * math.log(2.0 * math.pi)).sum(-1)
        return r, r_l, first * log_p
