r"""The leader chooses the distribution of physical attributes of an environment: a length, a mass, a gravity.

No simulator is differentiable in its attributes here. The leader chooses a distribution over them instead: at the start of every
episode

    w_k ~ N(m_k, s_k^2),        x = (m_1, ..., m_K and the log s_k that are the leader's to choose)

is drawn and holds for the whole episode, so that grad_x E[return] = E[ return * grad_x log p_x(w) ]. That log p is counted once,
in the episode's first step. A value that the environment could not bear is clipped on its way there, by ``limits``; the score
remains that of the w drawn, which is exact: the environment is a function of w.
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
    """An attribute of the environment, and the Gaussians over it from which the leader chooses.

    Attributes:
        name: its name on the unwrapped environment.
        low: lower bound of the mean.
        high: upper bound of the mean.
        std: standard deviation, positive; a pair (smallest, largest) where its logarithm is the leader's to choose too.
        limits: what the environment is given is clipped to these.
        setter: ``(unwrapped environment, value) -> None``, where setting ``name`` is not enough: an entry of an array, or
            an attribute that others were computed from.

    Raises:
        ValueError: bounds that cross or do not lie within the limits, a standard deviation that is not positive.
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
        """The environment's own value, clipped to [low, high]; their midpoint if it has no number of that name."""
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

    x is the means, then the logarithms of the standard deviations that are the leader's to choose. The commitment is x, and with
    ``show_draw`` behind it the values drawn, as the environment was given them. ``info["leader_draw"]`` is (r, r_l, 1 in an
    episode's first step and else 0, w).

    The first observation must not depend on w: an estimator may take its value as a baseline.

    Args:
        env: the base environment: observations and actions Box, Discrete, MultiDiscrete or MultiBinary.
        attributes: at least one.
        gamma: discount of both players, in [0, 1).
        show_draw: whether the commitment has the values drawn.
        leader_reward: r_l, from a :class:`Step`; by default the environment's own reward.

    Raises:
        ValueError: an env that is none or has other spaces; an attribute that it does not have (the error names those that it
            has), or one that is no number and has no setter.

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
        require(fits and len(attributes) > 0, "attributes", "Attributes, at least one", repr(attributes))
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
        """Means and logarithms of the standard deviations, each ``[K]``."""
        K = len(self._attributes)
        return x[:K], self._log_std.index_put((torch.tensor(self._chosen, dtype=torch.long),), x[K:])

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """The leader context: x, and with ``show_draw`` the values drawn."""
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
