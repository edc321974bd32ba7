"""Native simulators of environments of Gymnasium's: the numbers of as many single environments, in a fraction of the time."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv

import bilevel_gym
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.core import LeaderVectorEnv
from bilevel_gym.wrappers import VectorEnvAdapter, hide_model, set_leader

assert bilevel_gym.__version__
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "cart pole": ("ShapedCartPole-v0", {}, 500),
    "cart pole, other arguments": ("ShapedCartPole-v0", {"gamma": 0.9, "target": -0.7, "leader_pays": 0.6}, 500),
    "pendulum": ("DesignedPendulum-v0", {}, 200),
    "pendulum, g shown": ("DesignedPendulum-v0", {"show_draw": True, "std": 3.0, "value": -0.4, "gamma": 0.9}, 200),
}
N = 7


def both(case: str, n: int = N) -> tuple[Any, Any]:
    """Parallel environments of the native simulator, and single ones that are stepped in turn."""
    name, kwargs, _ = CASES[case]
    env = gym.make(f"bilevel_gym/{name}", **kwargs)
    made = [Worlds(env, None, False, vec_env).make(n) for vec_env in ("native", "dummy")]
    assert isinstance(made[0].unwrapped, VectorEnvAdapter)
    assert isinstance(made[1].unwrapped, DummyVecEnv)
    return made[0], made[1]


def points(env: Any, n: int) -> Any:
    space = env.get_attr("leader_space")[0]
    return np.random.default_rng(0).uniform(space.low, space.high, (n, *space.shape))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_single_environments(case: str, each: bool) -> None:
    """Over many episodes, from one seed; x for all, or one for each."""
    native, single = both(case)
    x = points(native, N)
    rng = np.random.default_rng(1)
    box = bool(native.action_space.shape)
    for venv in (native, single):
        set_leader(venv, x if each else x[0])
        venv.seed(5)
    np.testing.assert_array_equal(native.reset(), single.reset())
    ends = 0
    for t in range(450):
        # torques beyond the bounds too
        action: Any = rng.uniform(-2.5, 2.5, (N, 1)).astype(np.float32) if box else rng.integers(2, size=N)
        if t == 230:  # x moves in the middle of episodes, which go on
            for venv in (native, single):
                set_leader(venv, x[::-1].copy() if each else x[1])
        found, told = native.step(action), single.step(action)
        for one, other in zip(found[:3], told[:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
            assert one.dtype == other.dtype
        for name, value in native.unwrapped.arrays.items():
            if name in told[3][0]:
                np.testing.assert_allclose(value, [info[name] for info in told[3]], rtol=1e-12, atol=1e-12)
        for i in found[2].nonzero()[0]:
            ends += 1
            assert found[3][i]["TimeLimit.truncated"] == told[3][i]["TimeLimit.truncated"]
            np.testing.assert_array_equal(found[3][i]["terminal_observation"], told[3][i]["terminal_observation"])
        shown = native.unwrapped.commitment(found[0])
        np.testing.assert_array_equal(shown, single.env_method("commitment", found[0][0]))
    assert ends >= 2 * N


@pytest.mark.parametrize("case", ["cart pole", "pendulum, g shown"])
def test_a_follower_learns_the_same(case: str) -> None:
    """To the last bits of a float32 network, whichever way the environments are stepped; and again from one seed."""
    weights = []
    for venv in (*both(case, 4), both(case, 4)[0]):
        gamma = venv.get_attr("gamma")[0]
        set_leader(venv, points(venv, 1)[0])
        model = A2C("MlpPolicy", venv, gamma=gamma, n_steps=8, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
        weights.append(model.learn(160).policy.state_dict())
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(tensor, weights[1][name], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(tensor, weights[2][name])


@pytest.mark.parametrize("case", CASES)
def test_the_leader_model_gives_the_rewards(case: str) -> None:
    import torch

    native, _ = both(case)
    x = points(native, 1)[0]
    set_leader(native, x)
    native.seed(0)
    obs = native.reset()
    action = np.array([native.action_space.sample() for _ in range(N)])
    after, reward, _, _ = native.step(action)
    arrays = native.unwrapped.arrays
    model = native.unwrapped.leader_model()
    r_f, r_l, log_p = model(*(torch.as_tensor(part) for part in (obs, action, arrays["leader_draw"], after)))
    np.testing.assert_allclose(r_f.detach(), reward, rtol=1e-6)
    np.testing.assert_allclose(r_l.detach(), arrays["leader_reward"], rtol=1e-12)
    if "pendulum" in case:
        std = CASES[case][1].get("std", 1.0)
        z = (arrays["leader_draw"][:, 3] - x[0]) / std
        np.testing.assert_allclose(log_p.detach(), -0.5 * z**2 - math.log(std * math.sqrt(2.0 * math.pi)), rtol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_a_place_is_stood_in_again(case: str) -> None:
    """After the generators have drawn, so that the next episodes begin alike."""
    name, kwargs, _ = CASES[case]
    env: Any = gym.make_vec(f"bilevel_gym/{name}", num_envs=3, max_episode_steps=6, **kwargs)
    assert isinstance(env.unwrapped, LeaderVectorEnv)
    assert env.unwrapped.place() is None
    env.reset(seed=0)
    actions = [np.zeros_like(env.action_space.sample()) for _ in range(20)]
    for action in actions:
        env.step(action)
    place: Any = copy.deepcopy(env.unwrapped.place())
    first = [env.step(action)[:4] for action in actions]
    env.unwrapped.stand(place)
    for one, action in zip(first, actions, strict=True):
        for part, other in zip(one, env.step(action)[:4], strict=True):
            np.testing.assert_array_equal(part, other)
    fewer: Any = gym.make_vec(f"bilevel_gym/{name}", num_envs=2, max_episode_steps=6, **kwargs)
    fewer.reset(seed=0)
    with pytest.raises(ValueError, match=r"^place: expected"):
        fewer.unwrapped.stand(place)


def test_hidden_models_and_x_shown_keep_it() -> None:
    for name in ("ShapedCartPole-v0", "DesignedPendulum-v0"):
        env = hide_model(gym.make(f"bilevel_gym/{name}", gamma=0.9))
        for shown in (False, True):
            venv = Worlds(env, None, shown).make(3)
            assert isinstance(venv.unwrapped, VectorEnvAdapter)
            assert venv.reset().shape == (3, venv.observation_space.shape[0])  # type: ignore[union-attr,index]


def test_the_limit_truncates_and_a_fall_at_the_limit_terminates() -> None:
    env: Any = gym.make_vec("bilevel_gym/ShapedCartPole-v0", num_envs=2, max_episode_steps=5)
    env.reset(seed=0)
    for _ in range(4):
        *_, terminated, truncated, _ = env.step(np.array([0, 1]))
        assert not (terminated | truncated).any()
    env.unwrapped._state[0, 2] = 1.0  # the first one falls in its last step
    *_, terminated, truncated, infos = env.step(np.array([0, 1]))
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [True, True]
    assert infos["_final_obs"].all()


@pytest.mark.parametrize(
    ("name", "actions"),
    [
        ("ShapedCartPole-v0", np.array([0, 2])),
        ("ShapedCartPole-v0", np.array([0.0, 1.0])),
        ("ShapedCartPole-v0", np.array([1])),
        ("ShapedCartPole-v0", np.array([[0], [1]])),
        ("DesignedPendulum-v0", np.array([[0.0], [math.nan]])),
        ("DesignedPendulum-v0", np.array([[0.0], [math.inf]])),
        ("DesignedPendulum-v0", np.array([0.0, 0.0])),
        ("DesignedPendulum-v0", np.array([["0"], ["1"]])),
    ],
)
def test_bad_actions_are_named(name: str, actions: Any) -> None:
    env = gym.make_vec(f"bilevel_gym/{name}", num_envs=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(actions)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^actions: expected 2 actions in "):
        env.step(actions)


@pytest.mark.parametrize("x", [[3.0, 0.0], [[0.0, 0.0]] * 3, [0.0], [math.nan, 0.0]])
def test_bad_x_is_named(x: Any) -> None:
    env: Any = gym.make_vec("bilevel_gym/ShapedCartPole-v0", num_envs=2)
    with pytest.raises(ValueError, match=r"^x: expected"):
        env.unwrapped.set_leader(x)
