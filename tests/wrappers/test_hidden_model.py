"""An environment whose model is hidden has everything but the model."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO

import bilevel_gym
from benchmarks.worlds import fishery, hidden
from bilevel_gym.agents import PBRL, Hypergradient, PBRLConfig
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs import check_leader_env
from bilevel_gym.envs.mdp.problem import ArrayProblem
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import HiddenModel, VectorEnvAdapter, hide_model

assert bilevel_gym.__version__
IDS = ("TwoState-v0", "LQStackelberg-v0", "SubsidisedPendulum-v0", "ShapedCartPole-v0")


@pytest.mark.parametrize("name", IDS)
def test_all_but_the_problem_is_there(name: str) -> None:
    env = hide_model(gym.make(f"bilevel_gym/{name}"))
    with pytest.raises(AttributeError, match="the problem of this environment is hidden"):
        _ = env.unwrapped.problem  # type: ignore[attr-defined]
    assert not env.has_wrapper_attr("problem")
    assert getattr(env.unwrapped, "problem", None) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_leader_env(env)
    plain = gym.make(f"bilevel_gym/{name}")
    x = plain.get_wrapper_attr("leader_space").sample()
    for one in (env, plain):
        one.get_wrapper_attr("set_leader")(x)
    action = plain.action_space.sample()
    steps = [[one.reset(seed=3)[0], *one.step(action)] for one in (env, plain)]
    np.testing.assert_equal(steps[0], steps[1])
    assert isinstance(env, gym.wrappers.TimeLimit)
    assert env._max_episode_steps == gym.spec(f"bilevel_gym/{name}").max_episode_steps
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        np.testing.assert_array_equal(twin.get_wrapper_attr("leader_x"), x)
        assert not twin.has_wrapper_attr("problem")


def test_the_set_and_the_native_simulator_are_those_of_the_model() -> None:
    env = hidden(TabularEnv, fishery())
    worlds = Worlds(env, None, observe_commitment=True)
    assert worlds.problem is None
    assert worlds.model is None
    assert worlds.leader_set.budget == 2.0
    assert env.unwrapped.leader_set.contains(worlds.leader_set.high) is False  # type: ignore[attr-defined]
    venv = worlds.make(3)
    assert isinstance(venv.unwrapped, VectorEnvAdapter)
    ended = [venv.reset() is None]
    for _ in range(100):
        ended.append(bool(venv.step(np.zeros(3, dtype=np.int64))[2].all()))
    assert ended == [False] * 100 + [True]


@pytest.mark.filterwarnings("ignore::UserWarning")  # a run this short does not learn
def test_a_leader_learns_from_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never solves the table, nor reads a return from it; the simulator alone reads the table."""
    env = hidden(TabularEnv, fishery())
    monkeypatch.setattr("bilevel_gym.agents.lower_levels.lower_level", refuse)
    monkeypatch.setattr("bilevel_gym.agents.learned.worlds.lower_level", refuse)
    for name in ("leader_return", "occupancy_return", "measured_units"):
        monkeypatch.setattr(ArrayProblem, name, refuse)
    config = PBRLConfig(n_envs=32, follower_steps=800, evaluation_steps=800, evaluation_followers=1)
    leader = PBRL(env, PPO, config=config, seed=0)
    leader.learn(20_000)
    assert np.isfinite(leader.evaluate().leader_return)
    assert leader.num_timesteps > 10_000
    leader.close()


def refuse(*args: Any) -> Any:
    raise AssertionError("the model was asked")


def test_exact_leaders_and_wrapped_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="problem: expected a TabularProblem"):
        Hypergradient(hide_model(gym.make("bilevel_gym/TwoState-v0")))
    with pytest.raises(ValueError, match="env: expected an environment without wrappers that change it"):
        hide_model(gym.wrappers.TransformReward(gym.make("bilevel_gym/TwoState-v0"), lambda r: 2.0))
    with pytest.raises(ValueError, match="env: expected a LeaderEnv without wrappers"):
        HiddenModel(gym.make("CartPole-v1"))
    short = hide_model(gym.make("bilevel_gym/TwoState-v0"), 7)
    assert isinstance(short, gym.wrappers.TimeLimit)
    assert short._max_episode_steps == 7
    assert isinstance(hide_model(gym.make("bilevel_gym/TwoState-v0").unwrapped), HiddenModel)
