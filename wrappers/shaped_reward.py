"""A leader pays the follower for its steps: r + phi_x(s,a,s'), on any environment."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ..envs.mdp import LeaderSet
from ..envs.mdp.checks import as_float64, check_gamma, check_number, require
from .leader_wrapper import Floats, LeaderReward, LeaderWrapper, Step, check_base
from .shaping import Shaping

_TRIED = 8  # steps on which a payment is tried before anything is learned by it


class ShapedReward(LeaderWrapper):
    """The follower is paid ``r + phi_x(s,a,s')``, the leader ``r_l - leader_pays * phi_x(s,a,s')``.

    The commitment is x. ``info["leader_draw"]`` is (r, r_l, what phi_x has to know of the step). To try phi_x, the environment
    is reset and stepped a few times when it is wrapped.

    Args:
        env: the base environment: observations and actions Box or Discrete.
        shaping: phi_x (see ``wrappers.shaping``).
        gamma: discount of both players, in [0, 1); potentials take it too.
        low: lower bound on x, a number or one an entry.
        high: upper bound on x, likewise.
        leader_reward: r_l, from a :class:`Step`; by default the environment's own reward.
        leader_pays: share of phi_x that the leader pays itself.

    Raises:
        ValueError: an env that is none or has other spaces; bounds that cross or leave out where x starts; a phi_x whose features
            have another length, which is not finite or does not depend on x; in ``step``, the same of a single payment.

    Example:
        >>> import gymnasium as gym
        >>> from bilevel_gym.wrappers import LinearPotential, ShapedReward
        >>> height = LinearPotential(lambda obs: [np.sin(3.0 * obs[0])], size=1)
        >>> env = ShapedReward(gym.make("MountainCar-v0"), height, low=0.0, high=10.0)
        >>> env.set_leader([2.0])
        >>> _ = env.reset(seed=0)
        >>> _, reward, _, _, info = env.step(2)
        >>> reward != info["leader_reward"] == -1.0
        True
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        shaping: Shaping,
        gamma: float = 0.99,
        low: Any = -1.0,
        high: Any = 1.0,
        leader_reward: LeaderReward | None = None,
        leader_pays: float = 0.0,
    ) -> None:
        check_base(env)
        require(isinstance(shaping, Shaping), "shaping", "a Shaping, e.g. LinearReward(features, size)", repr(shaping))
        shaping = copy.copy(shaping)
        shaping.prepare(env.observation_space, env.action_space, check_gamma(gamma))
        bounds = []
        for name, value in (("low", low), ("high", high)):
            bound = as_float64(value, name)
            fits, got = tuple(bound.shape) in ((), (shaping.dim,)), f"shape {tuple(bound.shape)}"
            require(fits, name, f"a number or shape ({shaping.dim},)", got)
            bounds.append(bound.expand(shaping.dim).clone())
        leader_set = LeaderSet(bounds[0], bounds[1])
        own = shaping.start
        start = leader_set.check(own, "the module's parameters") if bool(own.any()) else leader_set.project(own)
        self.shaping = shaping
        self._share = check_number(leader_pays, "leader_pays", low=-math.inf, open_high=True, open_low=True)
        super().__init__(env, leader_set, start, gamma, leader_reward)
        shaping.check(torch.from_numpy(np.stack(self._try_steps())))

    def _try_steps(self) -> list[Floats]:
        """What is measured of a few steps."""
        measured, done = [], True
        for _ in range(_TRIED):
            if done:
                before, _ = self.env.reset()
            action = self.env.action_space.sample()
            after, reward, terminated, truncated, info = self.env.step(action)
            measured.append(self.shaping.measure(Step(before, action, float(reward), after, bool(terminated), info)))
            before, done = after, terminated or truncated
        return measured

    def _carried(self, step: Step) -> Floats:
        return self.shaping.measure(step)

    def _rewards(self, r: float, r_l: float, c: Floats) -> tuple[float, float]:
        paid = self.shaping.paid_once(self._x, c)
        require(math.isfinite(paid), "shaping", "a finite payment in every step", f"{paid} at x = {self._x}")
        return r + paid, r_l - self._share * paid

    def _answer(self, x: Tensor, r: Tensor, r_l: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        paid = self.shaping.paid(x, c)
        return r + paid, r_l - self._share * paid, torch.zeros_like(r)
