"""``check_leader_env`` says nothing of the registered environments, and names what is wrong with broken ones."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_gym
from bilevel_gym.envs import check_leader_env
from bilevel_gym.envs.core import LeaderEnv
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
from bilevel_gym.envs.tabular import TabularEnv

assert bilevel_gym.__version__
IDS = [
    name
    for name in gym.registry
    if name.startswith("bilevel_gym/")
    and "HappyText" not in name  # no leader is in it
    and ("Hopper" not in name or importlib.util.find_spec("mujoco"))
]


@pytest.mark.parametrize("name", IDS)
def test_registered_environments_pass_and_keep_their_x(name: str) -> None:
    env = gym.make(name)
    before = env.get_wrapper_attr("leader_x")
    check_leader_env(env)
    np.testing.assert_array_equal(env.get_wrapper_attr("leader_x"), before)


def test_a_budget_and_masks_pass() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    base = TabularMDP(torch.full((2, 2, 2), 0.5), torch.eye(2), torch.tensor([0.5, 0.5]), 0.9, mask=mask)
    X = LeaderSet.box(4, -1, 1).intersect(budget=0.5)
    check_leader_env(TabularEnv(ArrayProblem(base, X, lambda x: base.r + x[0] - x[3], lambda x: base.r - x[1])))


class Model(torch.nn.Module):
    def __init__(self, x: Any, detached: bool = False, price: float = 1.0) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(x))
        self.detached, self.price = detached, price

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
        x = self.x.detach() if self.detached else self.x
        paid = self.price * action.double() * x[0]
        return -paid, paid, 0.0 * paid


class Toll(LeaderEnv[Any, Any]):
    """Action 1 costs x; what a subclass changes is wrong."""

    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(2)
    leader_space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
    gamma, commitment_size = 0.9, 1

    def __init__(self) -> None:
        self._x = np.full(1, 0.5)

    @property
    def leader_x(self) -> Any:
        return self._x.copy()

    def set_leader(self, x: Any) -> None:
        self._x = np.array(x)

    def leader_model(self) -> torch.nn.Module:
        return Model(self._x)

    def commitment(self, obs: Any) -> Any:
        return self._x.astype(np.float32)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return 0, {}

    def step(self, action: Any) -> Any:
        paid = float(action * self._x[0])
        return 0, -paid, False, False, {"leader_reward": paid, "leader_draw": 0}


class Deaf(Toll):
    def set_leader(self, x: Any) -> None: ...


class NotCopied(Toll):
    def set_leader(self, x: Any) -> None:
        self._x = x


class Shared(Toll):
    _of_all = np.full(1, 0.5)

    @property
    def leader_x(self) -> Any:
        return Shared._of_all.copy()

    def set_leader(self, x: Any) -> None:
        Shared._of_all = self._x = np.array(x)


class Silent(Toll):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], {"leader_reward": 0.0})


class Dearer(Toll):
    def leader_model(self) -> torch.nn.Module:
        return Model(self._x, price=2.0)


class Detached(Toll):
    def leader_model(self) -> torch.nn.Module:
        return Model(self._x, detached=True)


class Elsewhere(Toll):
    def leader_model(self) -> torch.nn.Module:
        return Model(0.0 * self._x)


class Shy(Toll):
    commitment_size = 2


class Single(Toll):
    leader_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Deaf, "^set_leader: expected leader_x"),
        (NotCopied, "^set_leader: expected leader_x = .* after it"),
        (Shared, "^set_leader: expected the x of other copies"),
        (Silent, "^info: expected the key 'leader_draw'"),
        (Dearer, "^leader_model: expected the follower's reward that a step pays"),
        (Detached, "^leader_model: expected an answer that is differentiable in x"),
        (Elsewhere, "^leader_model: expected its Parameter x at the leader's x"),
        (Shy, r"^commitment: expected shape \(2,\)"),
        (Single, "^leader_space: expected a Box of one axis, float64"),
    ],
)
def test_what_is_wrong_is_named(broken: type[Toll], message: str) -> None:
    check_leader_env(Toll())
    with pytest.raises(ValueError, match=message):
        check_leader_env(broken())


def test_an_environment_without_a_leader_is_named() -> None:
    with pytest.raises(ValueError, match=r"^env: expected a leader environment, with the attribute leader_space"):
        check_leader_env(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"^env: expected a Gymnasium environment"):
        check_leader_env(3)  # type: ignore[arg-type]
