r"""The follower sees the leader's commitment at its state.

A follower that learns across many x answers each of them only if it can tell them apart. The feature map for a
discrete state is the product

    phi(s) = onehot(s) (x) k(s),        [S * width], flattened

with k the environment's commitment: the leader's policy pi_x(.|s) in a Stackelberg game, where a linear function of
phi is then an exact Q, and onehot(s) lies in its span because rows sum to one. A commitment that is no distribution
is given a leading 1 for the same reason. For a vector observation k is appended.

After ``set_leader`` the observation in hand still shows the old commitment; the next one shows the new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
from torch import Tensor, nn

from ..envs.mdp.checks import require

Features = NDArray[np.float32]


@dataclass(frozen=True)
class _Layout:
    """How an observation and a commitment become one vector, and back.

    Attributes:
        base: the observation space: Discrete, or a Box of one axis.
        size: entries of the commitment.
        is_distribution: whether they are non-negative and sum to one.
    """

    base: gym.spaces.Discrete | gym.spaces.Box
    size: int
    is_distribution: bool

    @staticmethod
    def of(space: gym.spaces.Space[Any], size: int, is_distribution: bool) -> _Layout:
        discrete = isinstance(space, gym.spaces.Discrete) and space.start == 0
        vector = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
        require(discrete or vector, "env", "observations Discrete (from 0) or Box with one axis", space)
        assert isinstance(space, gym.spaces.Discrete | gym.spaces.Box)
        return _Layout(space, size, is_distribution)

    @property
    def width(self) -> int:
        """Entries a state takes: the commitment, with a leading 1 unless it is a distribution."""
        return self.size + (not self.is_distribution)

    @property
    def space(self) -> gym.spaces.Box:
        """The space of the vectors."""
        bound = (0.0, 1.0) if self.is_distribution else (-np.inf, np.inf)
        if isinstance(self.base, gym.spaces.Discrete):
            return gym.spaces.Box(*bound, (int(self.base.n) * self.width,), np.float32)
        low, high = (
            np.concatenate([end.astype(np.float32), np.full(self.size, edge, np.float32)])
            for end, edge in zip((self.base.low, self.base.high), bound, strict=True)
        )
        return gym.spaces.Box(low, high, dtype=np.float32)

    def join(self, obs: NDArray[Any], shown: Features) -> Features:
        """Vectors ``[n, ...]`` of observations ``[n]`` or ``[n, d]`` and commitments ``[n, size]``."""
        if isinstance(self.base, gym.spaces.Box):
            return np.concatenate([obs.astype(np.float32), shown], axis=1)
        n, S = len(obs), int(self.base.n)
        features = np.zeros((n, S, self.width), dtype=np.float32)
        states, copies = obs.astype(np.intp, copy=False), np.arange(n)
        if self.is_distribution:
            features[copies, states] = shown
        else:
            features[copies, states, 0] = 1.0
            features[copies, states, 1:] = shown
        return features.reshape(n, -1)

    def base_observation(self, obs: Any) -> NDArray[Any]:
        """The observations inside vectors ``[..., D]``: states ``[...]``, or ``[..., d]``."""
        vectors = np.asarray(obs)
        if isinstance(self.base, gym.spaces.Box):
            return vectors[..., : self.base.shape[0]]
        states: NDArray[Any] = (vectors != 0).argmax(
            -1
        ) // self.width  # the first entry that is not 0 is of the state's own block
        return states

    def base_tensor(self, obs: Any) -> Tensor:
        """``base_observation`` in torch."""
        vectors = torch.as_tensor(obs)
        if isinstance(self.base, gym.spaces.Box):
            return vectors[..., : self.base.shape[0]]
        return torch.div((vectors != 0).to(torch.uint8).argmax(-1), self.width, rounding_mode="floor")


def commitment_features(
    space: gym.spaces.Space[Any], obs: NDArray[Any], shown: Features, is_distribution: bool
) -> Features:
    """What the wrappers below show, ``[n, D]``, of observations in ``space``, ``[n, ...]``, and commitments ``[n, size]``."""
    return _Layout.of(space, shown.shape[-1], is_distribution).join(obs, shown)


class CommitmentLeaderModel(nn.Module):
    """A leader model that reads observations with commitments: what it sees of them is the environment's own part.

    Attributes:
        x: the parameter of the inner model.
    """

    def __init__(self, inner: nn.Module, base_tensor: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.x = inner.get_parameter("x")
        self.inner = inner
        self._base_tensor = base_tensor

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """``(r_follower, r_leader, log_p)`` for observations ``[..., D]``; see ``LeaderEnv.leader_model``."""
        answer: tuple[Tensor, Tensor, Tensor] = self.inner(
            self._base_tensor(obs), action, draw, self._base_tensor(next_obs)
        )
        return answer


class ObserveCommitment(gym.Wrapper[Features, Any, Any, Any], RecordConstructorArgs):
    """An environment whose observations show the leader's commitment; see the module for the vectors.

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
        size, is_distribution = (
            env.get_wrapper_attr("commitment_size"),
            env.get_wrapper_attr("commitment_is_distribution"),
        )
        self._layout = _Layout.of(env.observation_space, size, is_distribution)
        self.observation_space: gym.spaces.Space[Any] = self._layout.space

    def observation(self, obs: Any) -> Features:
        """What the follower sees where the environment observes ``obs``, ``[D]``."""
        features: Features = self._layout.join(np.asarray(obs)[None], self._commitment(obs)[None])[0]
        return features

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Features, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self.observation(obs), info

    def step(self, action: Any) -> tuple[Features, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self.observation(obs), reward, terminated, truncated, info

    def base_observation(self, obs: Any) -> NDArray[Any]:
        """The environment's own observations inside vectors ``[..., D]``."""
        return self._layout.base_observation(obs)

    def leader_model(self) -> CommitmentLeaderModel:
        """The environment's leader model, for these observations."""
        return CommitmentLeaderModel(self.env.get_wrapper_attr("leader_model")(), self._layout.base_tensor)


class ObserveCommitmentVec(VecEnvWrapper):
    """``ObserveCommitment`` for the copies of a ``VectorEnvAdapter``, each under its own x, all at once.

    Args:
        venv: a ``VectorEnvAdapter``, or wrappers around one that leave observations alone.

    Raises:
        ValueError: a VecEnv without ``commitment``: wrap each of its environments in ``ObserveCommitment`` instead.
    """

    def __init__(self, venv: VecEnv) -> None:
        batched = hasattr(venv.unwrapped, "commitment")
        require(
            batched,
            "venv",
            "a VectorEnvAdapter (else wrap each environment in ObserveCommitment)",
            type(venv.unwrapped).__name__,
        )
        self._commitment: Callable[[Any], Features] = getattr(venv.unwrapped, "commitment")  # noqa: B009
        size, is_distribution = venv.get_attr("commitment_size")[0], venv.get_attr("commitment_is_distribution")[0]
        self._layout = _Layout.of(venv.observation_space, size, is_distribution)
        super().__init__(venv, observation_space=self._layout.space)

    def _join(self, obs: Any) -> Features:
        return self._layout.join(obs, self._commitment(obs))

    def reset(self) -> Features:
        return self._join(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(obs, np.ndarray)
        ended = dones.nonzero()[0]
        if len(ended):
            last = obs.copy()
            last[ended] = [infos[i]["terminal_observation"] for i in ended]
            vectors = self._join(last)
            for i in ended:
                infos[i]["terminal_observation"] = vectors[i]
        return self._join(obs), rewards, dones, infos

    def base_observation(self, obs: Any) -> NDArray[Any]:
        """The environment's own observations inside vectors ``[..., D]``."""
        return self._layout.base_observation(obs)

    def leader_model(self) -> CommitmentLeaderModel:
        """The environment's leader model, for these observations."""
        inner: nn.Module = self.venv.env_method("leader_model", indices=0)[0]
        return CommitmentLeaderModel(inner, self._layout.base_tensor)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """As below, but ``leader_model`` and ``base_observation`` are those of this wrapper."""
        if method_name in ("leader_model", "base_observation"):
            return [getattr(self, method_name)(*method_args, **method_kwargs)] * len(list(self._get_indices(indices)))
        return self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
