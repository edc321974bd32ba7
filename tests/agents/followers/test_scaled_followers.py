"""A follower under the user's own VecNormalize: its statistics go where the model goes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from bilevel_gym.agents import DRLHF, PBRL, PBRLConfig, PreferenceConfig, Rollouts
from bilevel_gym.agents.model_card import ZOO_NAME, load_follower, write_model_card, write_zoo_folder

ENV = "bilevel_gym/ShapedCartPole-v0"
pytestmark = pytest.mark.filterwarnings("ignore:the best response was certified", "ignore:.*queries are still without")


def scaled(venv: VecEnv) -> A2C:
    return A2C("MlpPolicy", VecNormalize(venv, gamma=0.99), gamma=0.99, seed=0, n_steps=8)


def plain(venv: VecEnv) -> A2C:
    return A2C("MlpPolicy", venv, gamma=0.99, seed=0, n_steps=8)


@pytest.fixture(scope="module")
def leader() -> PBRL:
    config = PBRLConfig(
        n_envs=4,
        warmup_steps=64,
        follower_steps=64,
        estimator=Rollouts(n_envs=2, tail=0.9),
        evaluation_steps=32,
        evaluation_followers=1,
    )
    return PBRL(ENV, scaled, config=config).learn(10**6, callback=lambda _: False)


def same_policy(follower: Any, model: Any) -> None:
    """The model, given what its environment observes, acts as the follower does on what the world shows, and not without."""
    obs = follower.venv.reset()
    obs = obs * np.linspace(0.1, 30.0, 4, dtype=np.float32)[: len(obs), None]
    scaling = model.get_vec_normalize_env()
    assert not scaling.training
    assert not scaling.norm_reward

    def values(seen: Any) -> Any:
        return model.policy.predict_values(model.policy.obs_to_tensor(seen)[0]).detach().numpy()

    own = follower.policy
    expected = own.predict_values(own.obs_to_tensor(follower._seen(obs))[0]).detach().numpy()
    np.testing.assert_allclose(values(scaling.normalize_obs(obs)), expected, rtol=1e-6)
    assert not np.allclose(values(obs), expected, rtol=1e-3)


def test_save_leaves_the_statistics_beside_the_model(leader: PBRL, tmp_path: Path) -> None:
    path = leader.follower.save(tmp_path / "follower.zip")
    statistics = tmp_path / "follower" / "vecnormalize.pkl"
    assert statistics.is_file()
    own: Any = leader.follower.model.get_vec_normalize_env()
    kept: Any = VecNormalize.load(str(statistics), DummyVecEnv([leader.follower_env]))
    np.testing.assert_array_equal(kept.obs_rms.mean, own.obs_rms.mean)
    assert kept.ret_rms.var == own.ret_rms.var
    for env in (leader.follower_env(), DummyVecEnv([leader.follower_env])):
        same_policy(leader.follower, load_follower(path, A2C, env, trust_pickle=True))
    with pytest.raises(
        ValueError, match=r"env: expected the follower's environment, since .*vecnormalize.pkl scales its"
    ):
        load_follower(path, A2C, trust_pickle=True)
    with pytest.raises(ValueError, match="trust_pickle: expected True"):
        load_follower(path, A2C, leader.follower_env())


def test_statistics_of_another_model_are_not_left_behind(leader: PBRL, tmp_path: Path) -> None:
    """Two models in one folder keep theirs apart, and one without any takes away those of the file that it replaces."""
    for name in ("best_response", "penalised"):
        getattr(leader, name).save(tmp_path / f"{name}.zip")
    moments = [
        VecNormalize.load(str(tmp_path / name / "vecnormalize.pkl"), DummyVecEnv([leader.follower_env])).ret_rms.var
        for name in ("best_response", "penalised")
    ]
    assert moments == [
        getattr(leader, name).model.get_vec_normalize_env().ret_rms.var for name in ("best_response", "penalised")
    ]
    assert moments[0] != moments[1]
    unscaled = PBRL(ENV, plain, config=leader.method.config)
    unscaled.follower.save(tmp_path / "best_response.zip")
    assert not (tmp_path / "best_response" / "vecnormalize.pkl").exists()
    assert load_follower(tmp_path / "best_response.zip", A2C, trust_pickle=True).get_env() is None
    (tmp_path / "other").write_text("a file where the statistics' folder would be")
    unscaled.follower.save(tmp_path / "other.zip")


def test_a_card_and_an_agents_folder_have_them_too(leader: PBRL, tmp_path: Path) -> None:
    folder = write_model_card(leader, tmp_path / "card")
    for name in ("best_response", "penalised"):
        model = load_follower(folder / "followers" / f"{name}.zip", A2C, trust_pickle=True)
        same_policy(getattr(leader, name), model)
    agent = write_zoo_folder(leader, tmp_path / "zoo")
    assert yaml.load((agent / ZOO_NAME / "config.yml").read_text(), Loader=yaml.UnsafeLoader) == {"normalize": True}
    env = VecNormalize.load(str(agent / ZOO_NAME / "vecnormalize.pkl"), DummyVecEnv([leader.follower_env]))
    env.training = env.norm_reward = False  # as rl_zoo3.enjoy does
    same_policy(leader.follower, A2C.load(agent / f"{ZOO_NAME}.zip", env=env, device="cpu"))


def run_snippet(folder: Path, leader: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the card says of loading its follower."""
    monkeypatch.chdir(folder)
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[-1]
    names: dict[str, Any] = {"leader": leader}
    exec(code, names)
    return names["model"]


def test_the_cards_own_words_load_it(leader: PBRL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same_policy(leader.follower, run_snippet(write_model_card(leader, tmp_path / "card"), leader, monkeypatch))
    few = PreferenceConfig(
        labels=4, first_labels=2, length=5, first_steps=64, follower_steps=64, n_envs=4, first_epochs=1
    )
    learner = DRLHF("CartPole-v1", scaled, config=few).learn(200)
    card = write_model_card(learner, tmp_path / "preferences")
    same_policy(learner.follower, run_snippet(card, learner, monkeypatch))
