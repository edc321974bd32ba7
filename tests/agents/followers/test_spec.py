"""What a user gives as follower, and what a leader file may name as one."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO

from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts
from bilevel_gym.agents.followers.oracles import Oracle, SoftPolicyIteration
from bilevel_gym.agents.followers.sb3 import SB3Follower
from bilevel_gym.agents.followers.spec import AlgorithmSpec, Answering, build_model, follower_name, follower_of_file
from bilevel_gym.agents.learned.worlds import Worlds

GAME = "bilevel_gym/StackelbergGame-v0"


def venv() -> Any:
    return Worlds(GAME, {"n_states": 4}, observe_commitment=True).make(4)


def test_settings_of_ones_own_come_before_tuned_ones() -> None:
    spec = AlgorithmSpec(PPO, {"n_steps": 8, "policy_kwargs": {"net_arch": [4]}, "gae_lambda": 0.75})
    model: Any = build_model(spec, venv(), 0.9, 0, linear=True)
    assert (model.n_steps, model.gae_lambda, model.n_epochs, model.gamma) == (8, 0.75, 8, 0.9)
    assert model.policy.net_arch == [4]


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        (int, {}, r"^follower: expected an SB3 algorithm class, got <class 'int'>"),
        ("PPO", {}, r"^follower: expected an SB3 algorithm class, got 'PPO'"),
        (PPO, {"steps": 8}, r"^follower: expected settings of PPO: \['policy', 'learning_rate'.*, got \['steps'\]"),
        (PPO, {"env": None}, r"^follower: expected settings of PPO: .*, got \['env'\]"),
    ],
)
def test_a_spec_that_is_none(algorithm: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlgorithmSpec(algorithm, settings)


def test_parts_keep_their_protocols() -> None:
    follower = SB3Follower(A2C, venv(), 0.9, 0, True, Answering())
    assert follower.train(32, 64) == follower.num_timesteps == 32
    follower.load_state_dict(follower.state_dict())
    oracle: Oracle = SoftPolicyIteration()
    assert oracle is not None


# --- names in leader files ----------------------------------------------------------------------------------------------


class Own(A2C):
    """A user's own class."""


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_sb3s_classes_come_back_by_name(algorithm: Any) -> None:
    assert follower_of_file(follower_name(algorithm), None, "leader.zip") is algorithm


@pytest.mark.parametrize(
    "name",
    [
        "planted:PPO",
        "planted.stable_baselines3:PPO",
        "stable_baselines3_planted:PPO",
        "sb3_contrib_planted.ppo:PPO",
        "os:system",
        ":PPO",
        "PPO",
        "stable_baselines3:common",
        "stable_baselines3:__version__",
        "stable_baselines3:HerReplayBuffer",
        "stable_baselines3.common.base_class:no.such",
        f"{Own.__module__}:Own",
    ],
)
def test_a_file_names_no_code_of_its_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No module that lies beside it is imported."""
    for planted in ("planted", "stable_baselines3_planted", "sb3_contrib_planted"):
        (tmp_path / f"{planted}.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"^follower: expected the class {name} to be given again"):
        follower_of_file(name, None, "leader.zip")
    assert not [module for module in sys.modules if "planted" in module]


def test_a_users_class_or_callable_is_given_again(tmp_path: Path) -> None:
    config = PBRLConfig(n_envs=4, follower_steps=64, warmup_steps=64, estimator=Rollouts(4))
    build = partial(A2C, "MlpPolicy", gamma=0.9)
    for follower, message in (
        (Own, "expected the class .*:Own to be given again"),
        (build, "expected the callable that this leader was trained with"),
        (AlgorithmSpec(A2C, {"n_steps": 4}), "expected the callable that this leader was trained with"),
    ):
        path = PBRL(GAME, follower, config=config, env_kwargs={"n_states": 4}).save(tmp_path / "leader")
        with pytest.raises(ValueError, match=f"^follower: {message}"):
            PBRL.load(path)
        assert PBRL.load(path, follower).follower_spec is follower
    path = PBRL(GAME, Own, config=config, env_kwargs={"n_states": 4}).save(tmp_path / "leader")
    with pytest.raises(
        ValueError, match=r"^follower: expected .*:Own, which .*leader.zip was trained with, got .*:A2C"
    ):
        PBRL.load(path, A2C)
