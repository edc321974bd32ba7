"""Small leader environments from nothing, right ones, for tests to break in one place."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from bilevel_gym.envs.core import LeaderEnv


class TollModel(torch.nn.Module):
    """Action 1 costs x."""

    def __init__(self, x: Any) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(x))

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
        paid = action.double() * self.x[0]
        return -paid, paid, 0.0 * paid


class Toll(LeaderEnv[Any, Any]):
    """Action 1 costs x and leads to a random state."""

    observation_space = gym.spaces.Discrete(3)
    action_space = gym.spaces.Discrete(2)
    leader_space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
    gamma, commitment_size = 0.9, 1
    model: type[torch.nn.Module] = TollModel

    def __init__(self) -> None:
        self._x = np.full(1, 0.5)

    @property
    def leader_x(self) -> Any:
        return self._x.copy()

    def check(self, x: Any) -> Any:
        x = np.array(x, dtype=np.float64)
        if x.shape != self.leader_space.shape or not self.leader_space.contains(x):
            raise ValueError(f"x: expected a point of {self.leader_space}, got {x}")
        return x

    def set_leader(self, x: Any) -> None:
        self._x = self.check(x)

    def leader_model(self) -> torch.nn.Module:
        return self.model(self._x)

    def commitment(self, obs: Any) -> Any:
        return self._x.astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return int(self.np_random.integers(3)), {}

    def step(self, action: Any) -> Any:
        paid = float(action * self._x[0])
        after = int(self.np_random.integers(3))
        return after, -paid, False, False, {"leader_reward": paid, "leader_draw": 0}


class LotteryModel(torch.nn.Module):
    """log p of a draw from softmax(x)."""

    def __init__(self, x: Any) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(x))

    def log_p(self, draw: Any) -> Any:
        return torch.log_softmax(self.x, 0)[draw.long()]

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
        won = (action == draw).double() - 0.1 * self.x[0]
        return won, -won, self.log_p(draw)


class Lottery(Toll):
    """The leader draws one of three by softmax(x); a follower who guesses it is paid 1 by the leader, for a fee of x_0 / 10."""

    action_space = gym.spaces.Discrete(3)
    leader_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float64)
    commitment_size = 3
    model = LotteryModel

    def __init__(self) -> None:
        self._x = np.zeros(3)

    def p(self) -> Any:
        weights = np.exp(self._x)
        return weights / weights.sum()

    def step(self, action: Any) -> Any:
        w = int(self.np_random.choice(3, p=self.p()))
        won = float(action == w) - 0.1 * self._x[0]
        return w, float(won), False, False, {"leader_reward": float(-won), "leader_draw": w}


class WindModel(torch.nn.Module):
    """log p of a wind from N(x, 1), in the episode's first step."""

    def __init__(self, x: Any) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(x))

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
        attached = 0.0 * self.x.sum()
        first, wind = draw[..., 0], draw[..., 1]
        r = -((next_obs[..., 0].double()) ** 2) + attached
        return r, r + wind, -0.5 * first * (wind - self.x[0]) ** 2


class Wind(Toll):
    """Each episode has a wind, drawn from N(x, 1); the follower keeps its place in it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)  # type: ignore[assignment]
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)  # type: ignore[assignment]
    leader_space = gym.spaces.Box(-3.0, 3.0, (1,), np.float64)
    draws_once = True
    model = WindModel

    def __init__(self) -> None:
        self._x = np.zeros(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        gym.Env.reset(self, seed=seed)
        self._wind = float(self._x[0]) + self.blow()
        self._place, self._first = self.np_random.uniform(-1.0, 1.0, 1), 1.0
        return self._place.copy(), {}

    def blow(self) -> float:
        return float(self.np_random.standard_normal())

    def step(self, action: Any) -> Any:
        self._place = 0.5 * self._place + np.asarray(action, dtype=np.float64) + 0.1 * self._wind
        paid, draw = -float(self._place[0] ** 2), np.array([self._first, self._wind])
        self._first = 0.0
        return self._place.copy(), paid, False, False, {"leader_reward": paid + self._wind, "leader_draw": draw}
