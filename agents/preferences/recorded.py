"""A follower that is paid a learned reward and whose steps are recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ...envs.mdp.checks import require
from ...wrappers import LearnedReward, SegmentRecorder, VectorEnvAdapter
from ...wrappers.learned_reward import RewardFunction
from ..followers.replay import played_actions
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering, FollowerSpec
from .config import PreferenceConfig
from .worlds import PreferenceWorlds


class RecordedFollower:
    """An SB3 follower that is paid a learned reward and whose steps are recorded.

    Attributes:
        recorder: below the learned reward, so that it sees the true one.
        follower: the follower.
        begun: the recorder's steps when training first began; the replay buffer's first transition.
    """

    def __init__(self, worlds: PreferenceWorlds, spec: FollowerSpec, config: PreferenceConfig, seed: int) -> None:
        self._worlds, self._spec, self._seed = worlds, spec, seed
        self.recorder = SegmentRecorder(
            worlds.make(config.n_envs),
            config.length,
            config.recorded,
            worlds.true_reward,
            config.pictures,
            config.frame_stack,
        )
        self.begun: int | None = None

    def paid_by(self, venv: VecEnv) -> RecordedFollower:
        """Build the follower on ``venv``, which stands on the recorder."""
        w = self._worlds
        self.follower = SB3Follower(self._spec, venv, w.gamma, self._seed, w.linear, Answering())
        return self

    @property
    def on_policy(self) -> bool:
        """Whether it learns from whole rollouts of its own."""
        return isinstance(self.follower.model, OnPolicyAlgorithm)

    @property
    def replay(self) -> ReplayBuffer | None:
        """Its replay buffer, if it has a plain one."""
        held = getattr(self.follower.model, "replay_buffer", None)
        return held if isinstance(held, ReplayBuffer) else None

    def state(self) -> dict[str, Any]:
        """The follower, as tensors and numbers."""
        return self.follower.state_dict()

    def stand(self) -> dict[str, Any]:
        """Where the follower stands in its episodes, and where it was: beside :meth:`arrays` all that it goes on from."""
        model, scaling = self.follower.model, self.follower.model.get_vec_normalize_env()
        world = self.recorder.venv
        place = world.env.place() if isinstance(world, VectorEnvAdapter) else None
        memory = getattr(model, "_last_lstm_states", None)
        found: dict[str, Any] = _as_tensors(
            {
                "begun": self.begun,
                "recorder": self.recorder.state(),
                "place": None if place is None else {**place, "generator": json.dumps(place["generator"])},
                "last": {name: getattr(model, name, None) for name in _LAST},
                "memory": None if memory is None else [list(part) for part in memory],
                "returns": None if scaling is None else scaling.returns,
                "exploration": json.dumps(model.action_space.np_random.bit_generator.state),  # of SB3's random actions
            }
        )
        return found

    def take_stand(self, state: dict[str, Any]) -> bool:
        """Take back what :meth:`stand` gave; False where the world cannot, and episodes begin anew."""
        self.begun = None if state["begun"] is None else int(state["begun"])
        self.recorder.reset()
        self.recorder.restore(_as_arrays(state["recorder"]))
        world, model, place = self.recorder.venv, self.follower.model, state["place"]
        if not isinstance(world, VectorEnvAdapter) or place is None:
            self.follower.begin_episodes()
            return state["last"]["_last_obs"] is None
        world.env.stand({**_as_arrays(place), "generator": json.loads(place["generator"])})
        for name, value in _as_arrays(state["last"]).items():
            require(name in _LAST, "last", f"one of {_LAST}", name)
            setattr(model, name, value)
        memory: Any = getattr(model, "_last_lstm_states", None)
        if memory is not None:
            setattr(model, "_last_lstm_states", type(memory)(*(tuple(part) for part in state["memory"])))  # noqa: B010
        scaling = model.get_vec_normalize_env()
        if scaling is not None:
            scaling.returns = state["returns"].numpy().copy()
        model.action_space.np_random.bit_generator.state = json.loads(state["exploration"])
        venv: Any = self.follower.venv
        if isinstance(venv, LearnedReward):
            venv.observed(self.recorder.last_observation)
        return True

    def arrays(self, whole: bool = False) -> dict[str, NDArray[Any]]:
        """What was recorded and replayed, by name; ``whole``: to be read into."""
        replay = self.follower.replay_arrays(whole)
        return {
            **{f"recorder.{name}": array for name, array in self.recorder.arrays(whole).items()},
            **{f"replay.{name}": array for name, array in replay.items()},
        }

    def relabel(self, reward: RewardFunction, credit: Callable[[int, int], NDArray[np.float64] | None] | None) -> None:
        """Pay for every transition of the replay buffer what it is worth now.

        Args:
            reward: the learned reward.
            credit: what is added to the reward of the recorder's steps ``[first, last)``, ``[last - first, n]``.
        """
        buffer = self.replay
        if buffer is None or self.begun is None or buffer.size() == 0:
            return
        n, copies = buffer.size(), np.arange(self.recorder.num_envs)
        shape = buffer.observation_space.shape or ()
        obs = buffer.observations[:n].reshape(n * len(copies), *shape)
        paid = reward(obs, played_actions(buffer, copies, n)).reshape(n, len(copies))
        last = self.recorder.steps
        further = None if credit is None else credit(last - n, last)
        if further is not None:
            paid[(np.arange(last - n, last) - self.begun) % buffer.buffer_size] += further
        buffer.rewards[:n] = paid


_LAST = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def _as_tensors(value: Any) -> Any:
    """Nested arrays as tensors, which a file can hold."""
    if isinstance(value, dict):
        return {key: _as_tensors(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_tensors(part) for part in value]
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _as_arrays(value: Any) -> Any:
    """The inverse of :func:`_as_tensors`."""
    if isinstance(value, dict):
        return {key: _as_arrays(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_arrays(part) for part in value]
    return value.numpy().copy() if isinstance(value, Tensor) else value
