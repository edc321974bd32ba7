"""Mixed rewards."""

import math

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import bilevel_gym
from bilevel_gym.envs.two_state import TwoStateEnv
from bilevel_gym.wrappers import RewardMixing, VectorEnvAdapter, set_leader

assert bilevel_gym.__version__


@pytest.mark.parametrize("native", [True, False])
def test_the_mixture_follows_the_weight(native: bool) -> None:
    """At x = 2, in state 1, action 1 pays the follower 2 - 1 + 0.5 and the leader 1.5 - 2."""
    inner: VecEnv = VectorEnvAdapter(TwoStateEnv.vector(2))
    if not native:
        inner = DummyVecEnv([lambda: gym.make("bilevel_gym/TwoState-v0") for _ in range(2)])
    venv = RewardMixing(inner, weight=0.0)
    set_leader(venv, [2.0])
    venv.reset()
    ones = np.ones(2, dtype=np.int64)
    venv.step(ones)
    for weight in (0.0, 2.0, -0.5):
        venv.weight = weight
        _, rewards, _, infos = venv.step(ones)
        assert rewards.dtype == np.float32
        np.testing.assert_allclose(rewards, 1.5 - 0.5 * weight)
        assert [(info["follower_reward"], info["leader_reward"]) for info in infos] == [(1.5, -0.5)] * 2


@pytest.mark.parametrize("weight", [math.inf, math.nan, "much"])
def test_a_weight_is_a_finite_number(weight: float) -> None:
    venv = RewardMixing(VectorEnvAdapter(TwoStateEnv.vector(2)), weight=1.0)
    with pytest.raises(ValueError, match=r"^weight: expected"):
        venv.weight = weight
    with pytest.raises(ValueError, match=r"^weight: expected"):
        RewardMixing(venv, weight)
