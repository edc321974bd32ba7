"""A single environment whose follower is shown the leader's commitment; see :mod:`.vec_env` for the vectors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from .vec_env import CommitmentLeaderModel, Features, Layout


class ObserveCommitment(gym.Wrapper[Features, Any, Any, Any], RecordConstructorArgs):
    """An environment whose observations show the leader's commitment.

    ``info`` has ``base_obs`` and ``base_next_obs``, the environment's own observations before the step and after it, as they
    stand in the vectors.

    Args:
        env: a leader environment, observations Discrete or Box with one axis.

    Raises:
        ValueError: observations of another kind.
        AttributeError: an env without ``commitment``.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._commitment = env.get_wrapper_attr("commitment")
        size, is_distribution = (env.get_wrapper_attr(f"commitment_{name}") for name in ("size", "is_distribution"))
        self._layout = Layout(env.observation_space, size, is_distribution)
        self.observation_space: gym.spaces.Space[Any] = self._layout.space
        self._base: Any = None

    def observation(self, obs: Any) -> Features:
        """What the follower sees where the environment observes ``obs``, ``[D]``."""
        return self._layout.join(np.asarray(obs)[None], self._commitment(obs)[None])[0]  # type: ignore[no-any-return]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Features, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._base = self._layout.seen(obs)
        return self.observation(obs), info

    def step(self, action: Any) -> tuple[Features, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        before, self._base = self._base, self._layout.seen(obs)
        info = {**info, "base_obs": before, "base_next_obs": self._base}
        return self.observation(obs), reward, terminated, truncated, info

    def base_observation(self, obs: Any) -> NDArray[Any]:
        """The environment's own observations inside vectors ``[..., D]``."""
        return self._layout.base_observation(obs)

    def leader_model(self) -> CommitmentLeaderModel:
        """The environment's leader model, for these observations."""
        return CommitmentLeaderModel(self.env.get_wrapper_attr("leader_model")(), self._layout.base_tensor)
