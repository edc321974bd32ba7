"""A trained follower is a plain SB3 model: SB3 loads it, without this library, and it answers as the leader saw it answer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy

from bilevel_gym.agents import DRLHF, PBRL, PBRLConfig, PreferenceConfig, Rollouts

SMALL = PBRLConfig(n_envs=4, warmup_steps=64, follower_steps=64, estimator=Rollouts(n_envs=4), evaluation_steps=64)
GAME, LINEAR = "bilevel_gym/StackelbergGame-v0", "bilevel_gym/LQStackelberg-v0"
CASES = [(GAME, "PPO"), (GAME, "A2C"), (GAME, "DQN"), (LINEAR, "SAC"), (LINEAR, "TD3"), (GAME, "ARS"), (GAME, "TRPO")]


def algorithm(name: str) -> type[BaseAlgorithm]:
    if hasattr(stable_baselines3, name):
        return getattr(stable_baselines3, name)  # type: ignore[no-any-return]
    return getattr(pytest.importorskip("sb3_contrib"), name)  # type: ignore[no-any-return]


def trained(env: str, name: str) -> PBRL:
    kwargs = {"n_states": 4} if env == GAME else None
    return PBRL(env, algorithm(name), config=SMALL, env_kwargs=kwargs).learn(800)


@pytest.mark.parametrize(("env", "name"), CASES)
def test_sb3_loads_it(env: str, name: str, tmp_path: Path) -> None:
    leader = trained(env, name)
    model = leader.follower.model
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    rate = vars(model).get("learning_rate")
    path = leader.follower.save(tmp_path / "follower")
    assert path == tmp_path / "follower.zip"
    assert [p.name for p in tmp_path.iterdir()] == ["follower.zip"]
    assert vars(model).get("learning_rate") is rate
    assert all(bool((value == before[key]).all()) for key, value in model.policy.state_dict().items())
    loaded: Any = algorithm(name).load(path, env=leader.follower_env(), device="cpu")
    obs = np.stack([leader.follower_env().observation_space.sample() for _ in range(20)])
    answer = leader.follower.policy.predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], answer)
    mean, _ = evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=1, deterministic=True, warn=False)
    assert np.isfinite(mean)
    loaded.learn(64)


def test_its_world_is_the_leaders() -> None:
    leader = trained(GAME, "PPO")
    env = leader.follower_env(render_mode="rgb_array")
    np.testing.assert_array_equal(env.get_wrapper_attr("leader_x"), leader.x)
    assert env.observation_space == leader.follower.venv.observation_space
    assert env.render_mode == "rgb_array"
    x = np.zeros_like(leader.x)
    np.testing.assert_array_equal(leader.follower_env(x).get_wrapper_attr("leader_x"), x)
    with pytest.raises(ValueError, match=r"^x: expected"):
        leader.follower_env(x[:-1])
    own = PBRL(gym.make(GAME, n_states=4), algorithm("A2C"), config=SMALL)
    assert own.follower_env().observation_space == leader.follower_env().observation_space
    with pytest.raises(ValueError, match="render_mode: expected None for an environment that is already made"):
        own.follower_env(render_mode="rgb_array")


def test_the_file_needs_sb3_alone(tmp_path: Path) -> None:
    """In a process that cannot import this library."""
    leader = trained(GAME, "PPO")
    path = leader.follower.save(tmp_path / "follower.zip")
    obs = np.stack([leader.follower_env().observation_space.sample() for _ in range(5)])
    np.save(tmp_path / "obs.npy", obs)
    code = f"""if True:
        import sys
        sys.modules["bilevel_gym"] = None
        import numpy as np
        from stable_baselines3 import PPO
        model = PPO.load({str(path)!r}, device="cpu")
        print(model.predict(np.load({str(tmp_path / "obs.npy")!r}), deterministic=True)[0].tolist())
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(leader.follower.policy.predict(obs, deterministic=True)[0].tolist())
    assert importlib.util.find_spec("bilevel_gym") is not None


def test_the_follower_of_a_learned_reward(tmp_path: Path) -> None:
    config = PreferenceConfig(labels=4, first_labels=2, length=5, first_steps=64, follower_steps=64, first_epochs=2)
    leader = DRLHF("bilevel_gym/RewardGrid-v0", algorithm("A2C"), config=config).learn(200)
    loaded: Any = algorithm("A2C").load(leader.follower.save(tmp_path / "follower.zip"), device="cpu")
    states = np.arange(5)
    expected = leader.follower.policy.predict(states, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(states, deterministic=True)[0], expected)
