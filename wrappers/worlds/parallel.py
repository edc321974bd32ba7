"""Parallel environments of Gymnasium's classic control under a leader, stepped together in numpy.

Each environment has the random generators that a single one has, with its own seed (seed, seed + 1, ...), and the arithmetic is
that of the single environment in the same order. So parallel environments give the numbers of as many single ones with these
seeds: to the bit where numpy's functions of arrays round as those of numbers do, else to 1e-12 relative (tested).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import NDArray

from ...envs.core import Flags, LeaderVectorEnv
from ...envs.mdp.checks import as_float64, require
from ..leader_wrapper import Floats, LeaderWrapper

Rows = NDArray[np.intp]


def squared(v: NDArray[Any]) -> Any:
    """v^2 as Python and numpy compute it for single numbers; the square of an array may differ in its last digit."""
    return np.power(v, np.full_like(v, 2.0))


class WrappedVectorEnv(LeaderVectorEnv):
    """Base class of parallel environments like one that puts a leader over an environment of Gymnasium's.

    All rewards, states and draws are in rows, one for each environment.

    Args:
        single: an environment of this kind; it computes the leader model.
        num_envs: number of parallel environments.
        max_episode_steps: steps after which an episode is truncated; None for never.

    Raises:
        ValueError: a size under one; in ``step``, actions that the environment does not take.
    """

    def __init__(self, single: LeaderWrapper, num_envs: int, max_episode_steps: int | None = None) -> None:
        super().__init__(num_envs, max_episode_steps, single.observation_space, single.action_space)
        self.single, self.gamma, self.leader_space = single, single.gamma, single.leader_space
        self.leader_set, self.commitment_size = single.leader_set, single.commitment_size
        self._x: Floats = single.leader_x
        self._generators: list[np.random.Generator] = []
        self._draws: list[np.random.Generator] = []

    # --- the leader's side ------------------------------------------------------------------------------------------------

    @property
    def leader_x(self) -> Floats:
        return self._x.copy()

    def set_leader(self, x: Any) -> None:
        point = as_float64(x, "x").detach()
        many = point.ndim == 2
        checked = self.leader_set.check_rows(point, self.num_envs) if many else self.leader_set.check(point)
        self._x = checked.numpy().copy()

    def leader_model(self) -> torch.nn.Module:
        """The step as a function of x.

        Raises:
            ValueError: if the environments have different x.
        """
        require(self._x.ndim == 1, "x", "one x for all environments", f"shape {self._x.shape}")
        self.single.set_leader(self._x)
        return self.single.leader_model()

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """The leader context of each environment: its x, ``[num_envs, commitment_size]``."""
        return np.broadcast_to(self._x, (self.num_envs, self._x.shape[-1])).astype(np.float32)

    # --- the environment --------------------------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, rows: Sequence[int]) -> Floats:
        """Draw start states for some environments, by their generators, ``[len(rows), d]``."""

    @abstractmethod
    def _seen(self, state: Floats) -> NDArray[np.float32]:
        """Observations of states ``[n, d]``."""

    @abstractmethod
    def _move(self, state: Floats, actions: Any) -> tuple[Floats, Floats, Flags]:
        """Next states ``[n, d]``, what the environment inside pays ``[n]``, and where it terminates ``[n]``."""

    @abstractmethod
    def _paid(self, r: Floats, before: Floats, seen: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
        """The follower's and the leader's rewards and draws, given r, the states before and observations after the step."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start every environment anew; ``options`` are not used."""
        super().reset(seed=seed)
        if seed is not None or not self._generators:
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
            self._generators = [seeding.np_random(one)[0] for one in seeds]
            self._draws = [generator.spawn(1)[0] for generator in self._generators]
        self._elapsed[:] = 0
        self._state = self._begin(range(self.num_envs))
        return self._seen(self._state), {}

    def step(self, actions: Any) -> tuple[NDArray[np.float32], Floats, Flags, Flags, dict[str, Any]]:
        """Step every environment; one whose episode ends is reset in the same step."""
        if self._state is None:
            raise gym.error.ResetNeeded("step was called before reset")
        following, r, terminated = self._move(self._state, np.asarray(actions))
        seen = self._seen(following)
        r_f, r_l, draw = self._paid(r, self._state, seen)
        infos: dict[str, Any] = {"leader_reward": r_l, "leader_draw": draw}
        infos |= {"_leader_reward": self._everyone, "_leader_draw": self._everyone}
        self._elapsed += 1
        truncated = self._elapsed >= self._limit
        done = terminated | truncated
        if done.any():
            (rows,) = done.nonzero()
            following[rows] = self._begin(rows.tolist())
            seen = self._restart(infos, done, seen, self._seen(following))
        self._state = following
        return seen, r_f, terminated, truncated, infos

    def _require_actions(self, fits: bool, actions: NDArray[Any]) -> None:
        if not fits:
            expected = f"{self.num_envs} actions in {self.single_action_space}"
            raise ValueError(f"actions: expected {expected}, got {np.array2string(actions, threshold=8)}")

    def place(self) -> dict[str, Any] | None:
        found = super().place()
        if found is None:
            return None
        several = [[g.bit_generator.state for g in column] for column in (self._generators, self._draws)]
        return found | {"generators": several}

    def stand(self, place: dict[str, Any]) -> None:
        super().stand(place)
        for column, states in zip((self._generators, self._draws), place["generators"], strict=True):
            for generator, state in zip(column, states, strict=True):
                generator.bit_generator.state = state
