"""Environments that simulate a continuous problem, single and parallel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .core import Flags, LeaderVectorEnv, OfProblem, ProblemEnv
from .mdp.checks import as_float64, check_size, require
from .mdp.continuous import ContinuousProblem
from .render import FOLLOWER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Observations = NDArray[Any]


class ContinuousLeaderModel(nn.Module):
    """Rewards of steps as functions of x; nothing that is drawn depends on x, so that log p_x is 0.

    Args:
        problem: the problem.
        x: where the parameter starts, ``[dim]``.
    """

    def __init__(self, problem: ContinuousProblem, x: Tensor) -> None:
        super().__init__()
        self.problem = problem
        self.x = nn.Parameter(x.detach().to(torch.float64).clone())
        self._bounds = torch.from_numpy(problem.action_low), torch.from_numpy(problem.action_high)

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch of steps.

        Args:
            obs: observations, ``[..., o]``.
            action: the follower's actions, ``[..., m]``, clipped to their bounds.
            draw: not used.
            next_obs: observations after the step, ``[..., o]``.

        Returns:
            r_follower, r_leader, log_p = 0, each ``[...]``, float64.
        """
        seen, a, after = (torch.as_tensor(part).to(torch.float64) for part in (obs, action, next_obs))
        r_f, r_l = self.problem.rewards(self.x, seen, a.clamp(*self._bounds), after)
        attached = 0.0 * self.x.sum() + torch.zeros(seen.shape[:-1], dtype=torch.float64)
        return r_f + attached, r_l + attached, attached


class _ContinuousLeader(OfProblem):
    """Base class of both environments: the spaces and the leader's interface.

    Attributes:
        obs_dtype: of observations.
    """

    problem: Any
    obs_dtype: ClassVar[type[Any]] = np.float32

    def _set_up(self, problem: Any, n_envs: int) -> None:
        super()._set_up(problem, n_envs)
        self.gamma, self.commitment_size = problem.gamma, problem.leader_dim
        ends = problem.obs_low.astype(self.obs_dtype), problem.obs_high.astype(self.obs_dtype)
        actions = problem.action_low.astype(np.float32), problem.action_high.astype(np.float32)
        self._spaces = gym.spaces.Box(*ends, dtype=self.obs_dtype), gym.spaces.Box(*actions, dtype=np.float32)

    def _load(self, x: Tensor) -> None:
        self._x = x

    def set_leader(self, x: Any) -> None:
        """Set x (copied), which takes effect at the next step.

        Args:
            x: a point of X, ``[dim]``; parallel environments also take ``[num_envs, dim]``, one row each.

        Raises:
            ValueError: wrong shape, an entry that is not finite, or a point outside X.
        """
        point, leader_set = as_float64(x, "x").detach(), self.problem.leader_set
        many = point.ndim == 2 and isinstance(self, LeaderVectorEnv)
        self._load((leader_set.check_rows(point, self._n_envs) if many else leader_set.check(point)).clone())

    def leader_model(self) -> nn.Module:
        """The step as a function of x.

        Raises:
            ValueError: if the environments have different x.
        """
        require(self._x.ndim == 1, "x", "one x for all environments", f"shape {tuple(self._x.shape)}")
        return ContinuousLeaderModel(self.problem, self._x)

    def _follow(self, s: Floats, a: Floats, rng: np.random.Generator) -> Floats:
        """The next states, ``[n, d]``."""
        following: Floats = self.problem.step(s, a, self.problem.draw_noise(rng, len(s)))
        return following

    def _seen(self, s: Floats) -> Observations:
        """Observations as they are shown."""
        shown: Observations = self.problem.observe(s).astype(self.obs_dtype)
        return shown

    def _move(self, s: Floats, actions: Any, name: str, rng: np.random.Generator) -> tuple[Any, ...]:
        """Clipped actions, next states, their observations, r_f and r_l, a row for each environment."""
        problem, a = self.problem, np.asarray(actions, dtype=np.float64)
        shape = (len(s), len(problem.action_low))
        if a.shape != shape or not np.isfinite(a).all():
            got = f"shape {a.shape}" if a.shape != shape else "NaN or infinity"
            raise ValueError(f"{name}: expected finite numbers of shape {shape}, got {got}")
        a = a.clip(problem.action_low, problem.action_high)
        following = self._follow(s, a, rng)
        seen = problem.observe(following)
        r_f, r_l = problem.rewards(self._x.numpy(), problem.observe(s), a, seen)
        return a, following, self._seen(following), np.broadcast_to(r_f, len(s)), np.broadcast_to(r_l, len(s))


class ContinuousVectorEnv(_ContinuousLeader, LeaderVectorEnv):
    """Parallel ``ContinuousEnv``, stepped together in numpy.

    All environments start and are truncated together, and are reset in the same step.

    Args:
        problem: the problem.
        num_envs: number of parallel environments.
        max_episode_steps: steps after which an episode is truncated; None for never.

    Raises:
        ValueError: a size under one; in ``step``, actions of the wrong shape or that are not finite.
    """

    def __init__(self, problem: ContinuousProblem, num_envs: int, max_episode_steps: int | None = None) -> None:
        self._set_up(problem, check_size(num_envs, "num_envs"))
        super().__init__(num_envs, max_episode_steps, *self._spaces)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start every environment anew; ``options`` are not used."""
        super().reset(seed=seed)
        self._elapsed[:] = 0
        self._state = self.problem.draw_starts(self.np_random, self.num_envs)
        return self._seen(self._state), {}

    def step(self, actions: Any) -> tuple[Observations, Floats, Flags, Flags, dict[str, Any]]:
        """Step every environment; see the class."""
        if self._state is None:
            raise gym.error.ResetNeeded("step was called before reset")
        _, following, seen, r_f, r_l = self._move(self._state, actions, "actions", self.np_random)
        infos: dict[str, Any] = {
            "leader_reward": np.array(r_l),
            "_leader_reward": self._everyone,
            "leader_draw": np.zeros(self.num_envs, dtype=np.int64),
            "_leader_draw": self._everyone,
        }
        self._elapsed += 1
        truncated = self._elapsed >= self._limit
        if truncated.any():
            start = self.problem.draw_starts(self.np_random, self.num_envs)
            seen = self._restart(infos, truncated, seen, self._seen(start))
            following = np.where(truncated[:, None], start, following)
        self._state = following
        return seen, np.array(r_f), np.zeros(self.num_envs, dtype=np.bool_), truncated, infos

    def commitment(self, obs: Any) -> Observations:
        """The leader context of each environment: its x, ``[num_envs, commitment_size]``."""
        return np.broadcast_to(self._x.numpy(), (self.num_envs, self.commitment_size)).astype(np.float32)


class ContinuousEnv(_ContinuousLeader, ProblemEnv):
    """The follower's side of a continuous problem, under the leader's current x.

    ``step`` returns the follower's reward and, in ``info``, ``leader_reward`` and ``leader_draw`` (0). It neither terminates nor
    truncates: see ``gymnasium.wrappers.TimeLimit``.

    Args:
        problem: the problem.
        render_mode: None, ``"ansi"`` for one line of text, ``"rgb_array"`` for a picture; another draws nothing.

    Raises:
        ValueError: in ``step``, an action of the wrong shape or that is not finite.
    """

    vector_class: ClassVar[type[Any]] = ContinuousVectorEnv
    _action: Floats | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Draw a start state; ``options`` are not used."""
        super().reset(seed=seed)
        self._state, self._last, self._action = self.problem.draw_starts(self.np_random, 1)[0], "", None
        return self._seen(self._state), {}

    def step(self, action: Any) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Take one step."""
        if self._state is None:
            raise gym.error.ResetNeeded("step was called before reset")
        a, following, seen, r_f, r_l = self._move(self._state[None], np.asarray(action)[None], "action", self.np_random)
        self._action, self._state = a[0], following[0]
        reward, leader_reward = float(r_f[0]), float(r_l[0])
        if self.render_mode is not None:
            self._last = f"action {_numbers(a[0])}: follower {reward:.3g}, leader {leader_reward:.3g}; "
        return seen[0], reward, False, False, {"leader_reward": leader_reward, "leader_draw": 0}

    def commitment(self, obs: Any) -> Observations:
        """The leader context: x in every state, ``[commitment_size]``."""
        return self._x.numpy().astype(np.float32)

    def _draw(self, panel: Axes) -> None:
        """Draw where the state lies between the bounds of each of its dimensions, and x in the title."""
        low, high = self.problem.state_low, self.problem.state_high
        share = np.zeros(len(low)) if self._state is None else (self._state - low) / (high - low)
        panel.bar(range(len(low)), share, color=FOLLOWER)
        panel.set(
            ylim=(0.0, 1.0), xticks=range(len(low)), xlabel="dimension of the state", ylabel="place in its interval"
        )
        panel.set_title(f"x = {_numbers(self.leader_x)}")

    def _text(self) -> str:
        return self._last + ("" if self._state is None else f"state {_numbers(self._state)}")


def _numbers(values: Floats) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
