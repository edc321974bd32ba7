"""A follower's own VecNormalize: what preferences pay it is in the unit of the rewards that it scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from bilevel_gym.agents import PreferencePBRL
from bilevel_gym.agents.leaders.preference_pbrl import PreferencePBRLMethod
from tests.agents.users import Users, preferences

pytestmark = pytest.mark.filterwarnings("ignore:.*queries are still without")
UNIT = 100.0


def scaled(algorithm: Any, **kwargs: Any) -> Any:
    """A follower that scales its observations and rewards."""

    def build(venv: VecEnv) -> Any:
        settings: dict[str, Any] = {"n_steps": 16} if algorithm is A2C else {"learning_starts": 8}
        return algorithm("MlpPolicy", VecNormalize(venv, gamma=0.99, **kwargs), gamma=0.99, seed=0, **settings)

    return build


@pytest.mark.parametrize(
    ("kwargs", "how"),
    [
        ({}, lambda c, s: np.clip(c / s, -10.0, 10.0)),
        pytest.param({"clip_reward": 0.05}, lambda c, s: np.clip(c / s, -0.05, 0.05), marks=pytest.mark.long),
        ({"norm_reward": False}, lambda c, s: c),
        pytest.param(
            {"norm_obs": False, "epsilon": 4.0}, lambda c, s: np.clip(c / s, -10.0, 10.0), marks=pytest.mark.long
        ),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else "",
)
def test_the_credit_is_scaled_as_rewards_are(kwargs: dict[str, Any], how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to a rollout is the credit over the deviation of the discounted return, by VecNormalize's own formula."""
    seen: list[tuple[Any, Any, float]] = []
    original = PreferencePBRLMethod.rollout_ended

    def watched(self: Any, state: Any, f: Any, progress: Any, begun: int, found: Any) -> None:
        model, credits = f.follower.model, list[Any]()
        own = type(self).credit

        def credit(*arguments: Any) -> Any:
            credits.append(own(*arguments))
            return credits[-1]

        monkeypatch.setattr(type(self), "credit", credit)
        before = model.rollout_buffer.rewards.copy()
        original(self, state, f, progress, begun, found)
        monkeypatch.setattr(type(self), "credit", own)
        scaling = model.get_vec_normalize_env()
        spread = float(np.sqrt(scaling.ret_rms.var + scaling.epsilon))
        seen.append((model.rollout_buffer.rewards - before, credits[0], spread))

    monkeypatch.setattr(PreferencePBRLMethod, "rollout_ended", watched)
    leader = preferences(Users(), scaled(A2C, **kwargs), PreferencePBRL, unit=UNIT, labels=40, follower_steps=64)
    leader.learn(450)
    paid = [(added, credit, spread) for added, credit, spread in seen if np.any(credit)]
    assert len(paid) >= 2
    for added, credit, spread in paid:
        assert spread > 1.5
        np.testing.assert_allclose(added, how(credit, spread), rtol=1e-4, atol=1e-4)
    if kwargs == {}:  # of the size of what is paid, 1, and not of the learned reward's unit
        assert max(float(np.abs(added).max()) for added, _, _ in paid) <= 10.0


def test_a_replay_buffer_holds_rewards_and_credit_unscaled() -> None:
    """SB3 scales them when it samples: they are what the learned reward pays, in its own unit."""
    leader = preferences(Users(), scaled(DQN), PreferencePBRL, unit=UNIT, labels=20, follower_steps=64).learn(500)
    model: Any = leader.observed.follower.model
    leader.method.relabel(leader.state, leader.observed)
    n = model.replay_buffer.size()
    obs = model.replay_buffer.observations[:n].reshape(-1, 2)
    pure = leader.model.reward(obs, model.replay_buffer.actions[:n].reshape(-1))
    credit = model.replay_buffer.rewards[:n].ravel() - pure
    unpaid = np.abs(credit) < 1e-3 * UNIT
    assert 0 < unpaid.sum() < len(unpaid)  # the credit is at the last steps of labelled segments alone
    sampled = model.replay_buffer.sample(32, env=model.get_vec_normalize_env())
    assert float(sampled.rewards.abs().max()) <= 10.0
