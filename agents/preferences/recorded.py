"""A follower that is paid a learned reward and whose steps are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ...wrappers import LearnedReward, SegmentRecorder, VectorEnvAdapter
from ...wrappers.segments import RewardFunction
from ..followers.replay import played_actions
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering, FollowerSpec
from .config import PreferenceConfig
from .worlds import PreferenceWorlds

_LAST = ("_last_obs", "_last_episode_starts", "_last_original_obs")
"""SB3 attributes that hold the last step."""


class RecordedFollower:
    """An SB3 follower that is paid a learned reward and whose steps are recorded.

    Args:
        worlds: its environment.
        spec: the algorithm that the user gave.
        config: settings of the recorder.
        seed: seed of the follower and its environments.
        paying: makes the follower's training environment from the recorder.

    Attributes:
        recorder: the recorder, inside the learned reward, so that it sees the true one.
        follower: the follower.
        begun: number of recorded steps when training first began, where the replay buffer starts.
    """

    def __init__(
        self,
        worlds: PreferenceWorlds,
        spec: FollowerSpec,
        config: PreferenceConfig,
        seed: int,
        paying: Callable[[SegmentRecorder], VecEnv],
    ) -> None:
        venv, key = worlds.make(config.n_envs), worlds.true_reward
        self.recorder = SegmentRecorder(venv, config.length, config.recorded, key, config.pictures, config.frame_stack)
        self.follower = SB3Follower(spec, paying(self.recorder), worlds.gamma, seed, worlds.linear, Answering())
        self.begun: int | None = None

    @property
    def on_policy(self) -> bool:
        """Whether the algorithm is on-policy and learns from whole rollouts."""
        return isinstance(self.follower.model, OnPolicyAlgorithm)

    @property
    def replay(self) -> ReplayBuffer | None:
        """The replay buffer, if it is a plain one, else None."""
        held = getattr(self.follower.model, "replay_buffer", None)
        return held if isinstance(held, ReplayBuffer) else None

    def train(self, steps: int, planned: int, rollout_ended: Callable[[dict[str, Any]], None] | None) -> int:
        """Train for at least ``steps`` of about ``planned`` total steps, continuing the episodes; return the steps spent.

        Args:
            steps: environment steps to train for.
            planned: total steps over which the model's own schedules run.
            rollout_ended: called with SB3's local variables at the end of each rollout of an on-policy algorithm.
        """
        self.begun = self.recorder.steps if self.begun is None else self.begun
        callback = _RolloutEnd(rollout_ended) if rollout_ended is not None and self.on_policy else None
        return self.follower.train(steps, planned, callback, fresh_episodes=False)

    def relabel(self, reward: RewardFunction, credit: Callable[[int, int], NDArray[np.float64] | None]) -> None:
        """Update the rewards of all transitions in the replay buffer.

        Args:
            reward: the learned reward.
            credit: returns the additional reward of the recorded steps ``[first, last)``, ``[last - first, n]``, or None.
        """
        buffer = self.replay
        if buffer is None or self.begun is None or buffer.size() == 0:
            return
        n, copies = buffer.size(), np.arange(self.recorder.num_envs)
        shape = buffer.observation_space.shape or ()
        obs = buffer.observations[:n].reshape(n * len(copies), *shape)
        paid = reward(obs, played_actions(buffer, copies, n)).reshape(n, len(copies))
        last = self.recorder.steps
        further = credit(last - n, last)
        if further is not None:
            paid[(np.arange(last - n, last) - self.begun) % buffer.buffer_size] += further
        buffer.rewards[:n] = paid

    # --- files ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the follower's state, except its environments' states (:meth:`place`)."""
        return self.follower.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.follower.load_state_dict(state)

    def arrays(self, whole: bool = False) -> dict[str, NDArray[Any]]:
        """Return the recorded and replayed arrays by name; ``whole`` returns whole arrays, to read into."""
        replay = self.follower.replay_arrays(whole)
        return {
            **{f"recorder.{name}": array for name, array in self.recorder.arrays(whole).items()},
            **{f"replay.{name}": array for name, array in replay.items()},
        }

    def place(self) -> dict[str, Any]:
        """Return the states of the follower's environments; with :meth:`arrays` it is all that training continues from."""
        model, world = self.follower.model, self.recorder.unwrapped
        scaling = model.get_vec_normalize_env()
        return {
            "begun": self.begun,
            "recorder": self.recorder.state(),
            "world": world.env.place() if isinstance(world, VectorEnvAdapter) else None,
            "last": [getattr(model, name, None) for name in _LAST],
            "memory": getattr(model, "_last_lstm_states", None),
            "returns": None if scaling is None else scaling.returns,
            "exploration": model.action_space.np_random.bit_generator.state,  # for SB3's random actions
        }

    def stand(self, place: dict[str, Any]) -> bool:
        """Restore the states of :meth:`place`; return False, and begin new episodes, if the environment cannot restore them."""
        self.begun = None if place["begun"] is None else int(place["begun"])
        self.recorder.reset()
        self.recorder.restore(place["recorder"])
        world, model = self.recorder.unwrapped, self.follower.model
        if not isinstance(world, VectorEnvAdapter) or place["world"] is None:
            self.follower.begin_episodes()
            return place["last"][0] is None
        world.env.stand(place["world"])
        for name, value in zip(_LAST, place["last"], strict=True):
            setattr(model, name, None if value is None else np.array(value))
        memory: Any = getattr(model, "_last_lstm_states", None)
        if memory is not None:
            parts = [tuple(torch.from_numpy(np.array(part)) for part in pair) for pair in place["memory"]]
            setattr(model, "_last_lstm_states", type(memory)(*parts))  # noqa: B010
        scaling = model.get_vec_normalize_env()
        if scaling is not None:
            scaling.returns = np.array(place["returns"])
        model.action_space.np_random.bit_generator.state = place["exploration"]
        if isinstance(self.follower.venv, LearnedReward):
            self.follower.venv.now = np.array(self.recorder.now)
        return True


class _RolloutEnd(BaseCallback):
    """A callback that calls a function with SB3's local variables at the end of each rollout."""

    def __init__(self, function: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._function = function

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._function(self.locals)
