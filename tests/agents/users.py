"""Small environments as users write them: other spaces, other rewards, masks, numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from bilevel_gym.agents import DRLHF, PBRL, PBRLConfig, PreferenceConfig, PreferencePBRL, Rollouts
from bilevel_gym.envs.core import LeaderEnv
from bilevel_gym.wrappers import EventPayments, ShapedReward, Step

GAMMA = 0.9


class Users(gym.Env[Any, Any]):
    """Random observations, a reward of the action's; it insists on legal actions, and its episodes end by themselves.

    Args:
        observation_space: random samples of it are seen.
        action_space: each action has to lie in it.
        paid: from the number of the step since the environment was made and the action to the reward.
        length: steps of an episode; None for one that never ends.
        seen: from the number of the step to what is observed; by default samples.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        observation_space: gym.Space[Any] | None = None,
        action_space: gym.Space[Any] | None = None,
        paid: Callable[[int, Any], Any] = lambda step, action: float(np.sum(action)),
        length: int | None = 10,
        seen: Callable[[int], Any] | None = None,
    ) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,)) if observation_space is None else observation_space
        self.action_space = gym.spaces.Discrete(2) if action_space is None else action_space
        self._paid, self._length, self._seen = paid, length, seen
        self.steps = self.age = 0

    def _look(self) -> Any:
        return self.observation_space.sample() if self._seen is None else self._seen(self.steps)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.age = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, gym.spaces.Box):
            action = np.asarray(action, dtype=self.action_space.dtype)
        assert self.action_space.contains(action), f"the action {action!r} is not in {self.action_space}"
        self.steps, self.age = self.steps + 1, self.age + 1
        return self._look(), self._paid(self.steps, action), self.age == self._length, False, {}


class Masked(Users):
    """An illegal move is an error; which are legal changes from step to step."""

    def action_masks(self) -> np.ndarray:
        """As sb3-contrib has them: of each part of an action one block of flags; in each step one choice a part."""
        return np.concatenate(self._blocks())

    def _blocks(self) -> list[np.ndarray]:
        space: Any = self.action_space
        two = np.full(int(np.prod(space.shape)), 2)
        counts = (
            two
            if isinstance(space, gym.spaces.MultiBinary)
            else np.atleast_1d(getattr(space, "nvec", getattr(space, "n", 0)))
        )
        return [np.arange(n) == (self.age + part) % n for part, n in enumerate(counts)]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        taken = np.atleast_1d(np.asarray(action) - getattr(self.action_space, "start", 0))
        legal = all(block[int(choice)] for block, choice in zip(self._blocks(), taken, strict=True))
        assert legal, f"the move {action!r} is illegal in step {self.age}"
        return super().step(action)


class ChargedModel(torch.nn.Module):
    """The step of :class:`Charged` as a function of x, of the environment's own observations and actions."""

    def __init__(self, x: Any) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.as_tensor(x, dtype=torch.float64))

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
        """Both rewards and log p, ``[...]``."""
        seen, done = (torch.as_tensor(part, dtype=torch.float64) for part in (obs, action))
        seen, done = (part.flatten(1).mean(1) if part.ndim > 1 else part for part in (seen, done))
        return seen - self.x[0] * done, done + 0.0 * self.x[0], 0.0 * seen + 0.0 * self.x[0]


class Charged(Users, LeaderEnv[Any, Any]):
    """A user's own leader environment: the follower is paid what it sees and charged x for its action, which pays the leader."""

    gamma, commitment_size = GAMMA, 2
    leader_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)
    _x = np.full(1, 0.5)

    @property
    def leader_x(self) -> Any:
        """x, ``[1]``."""
        return self._x.copy()

    def set_leader(self, x: Any) -> None:
        """Take x, ``[1]``."""
        self._x = np.array(x, dtype=np.float64).reshape(1)

    def leader_model(self) -> ChargedModel:
        """The step as a function of x."""
        return ChargedModel(self._x)

    def commitment(self, obs: Any) -> Any:
        """x and what is observed."""
        return np.array([self._x[0], np.mean(obs)], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._now, info = super().reset(seed=seed)
        return self._now, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        before = self._now
        self._now, _, terminated, truncated, info = super().step(action)
        step = (torch.as_tensor(np.asarray(part)[None]) for part in (before, action, 0, self._now))
        follower, leader, _ = self.leader_model()(*step)
        # as some environments have them: both of shape (1,)
        told = {"leader_reward": leader.detach().numpy(), "leader_draw": 0}
        return self._now, follower.detach().numpy(), terminated, truncated, info | told


def always(obs: Any, action: Any, next_obs: Any) -> bool:
    """An event that happens in every step."""
    return True


def by_action(step: Step) -> float:
    """A leader that is paid by the action."""
    return float(np.sum(step.action))


def forgetful() -> gym.Env[Any, Any]:
    """An environment that nobody can look into."""
    return gym.make("bilevel_gym/ShapedMountainCar-v0", max_episode_steps=30)


def led(env: gym.Env[Any, Any], **kwargs: Any) -> ShapedReward:
    """The environment under a leader that may pay something in every step, and is paid by the action."""
    return ShapedReward(env, EventPayments([always]), gamma=GAMMA, **({"leader_reward": by_action} | kwargs))


def pbrl(env: Any, follower: Any, **kwargs: Any) -> PBRL:
    """PBRL with the least of everything."""
    small: dict[str, Any] = {
        "n_envs": 2,
        "follower_steps": 16,
        "warmup_steps": 16,
        "evaluation_steps": 16,
        "evaluation_followers": 1,
    }
    estimator, seed = {"estimator": Rollouts(2), "observe_commitment": False}, kwargs.pop("seed", 0)
    return PBRL(env, follower, config=PBRLConfig(**(small | estimator | kwargs)), seed=seed)


def once(leader: PBRL) -> PBRL:
    """One iteration and its record, whatever they cost."""
    return leader.learn(10**6, callback=lambda _: False)


def preferences(env: Any, follower: Any, leader: Any = DRLHF, **kwargs: Any) -> DRLHF | PreferencePBRL:
    """A learner of preferences with the least of everything."""
    small: dict[str, Any] = {"labels": 8, "first_labels": 4, "length": 4, "first_steps": 64, "follower_steps": 32}
    few = {"n_envs": 2, "ensemble": 1, "epochs": 1, "first_epochs": 2, "evaluation_episodes": 2}
    made: DRLHF | PreferencePBRL = leader(env, follower, config=PreferenceConfig(**(small | few | kwargs)))
    return made
