"""SB3 followers: private generators, counted steps, honest policies, clear errors."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import Linear
from bilevel_gym.agents.followers.sb3 import Generators, SB3Follower
from bilevel_gym.agents.followers.spec import Answering, build_model
from bilevel_gym.agents.learned.worlds import Worlds

ENV_ID = "bilevel_gym/StackelbergGame-v0"


def make_venv(n_envs: int = 8) -> VecEnv:
    return Worlds(ENV_ID, {"n_states": 5}, observe_commitment=True).make(n_envs)


def make_follower(spec: Any = PPO, seed: int = 3, n_envs: int = 8) -> SB3Follower:
    return SB3Follower(spec, make_venv(n_envs), 0.9, seed, linear=True, answering=Answering())


def weights(follower: SB3Follower) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in follower.model.policy.parameters()])


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_a_second_follower_does_not_disturb_the_first(algorithm: type[BaseAlgorithm]) -> None:
    alone = make_follower(algorithm)
    for _ in range(3):
        alone.train(640, 2000)
    first = make_follower(algorithm)
    for seed in range(3):
        first.train(640, 2000)
        second = make_follower(algorithm, seed)
        second.train(256, 256)
        second.act(second.venv.reset())
        np.random.seed(seed)
    assert torch.equal(weights(alone), weights(first))
    second.train(256, 256)
    assert not torch.equal(weights(first), weights(second))


def test_a_follower_leaves_the_global_generators_alone() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    follower = make_follower(DQN)
    follower.train(512, 512)
    follower.probabilities(follower.venv.reset())
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected


def test_generators_come_back_after_an_error() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), Generators(5).active():
        raise RuntimeError(str(torch.rand(3)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("algorithm", "rollout"), [(PPO, 16 * 8), (A2C, 4 * 8), (DQN, 8)])
def test_steps_rounded_up_are_counted(algorithm: type[BaseAlgorithm], rollout: int) -> None:
    follower = make_follower(algorithm)
    taken = 0
    step = follower.venv.step_wait

    def counting() -> Any:
        nonlocal taken
        taken += follower.venv.num_envs
        return step()

    follower.venv.step_wait = counting  # type: ignore[method-assign]
    spent = follower.train(rollout + 1, 10_000)
    assert spent == follower.num_timesteps == taken == 2 * rollout


def test_schedules_run_over_the_whole_budget() -> None:
    seen: list[float] = []

    def watched(venv: VecEnv) -> BaseAlgorithm:
        def rate(progress_remaining: float) -> float:
            seen.append(progress_remaining)
            return 1e-3

        return A2C("MlpPolicy", venv, gamma=0.9, learning_rate=rate, device="cpu")

    follower = make_follower(watched)
    seen.clear()
    for _ in range(5):
        follower.train(200, 1000)
    assert all(a >= b for a, b in pairwise(seen))
    assert len(set(seen)) > 20
    assert seen[0] > 0.9
    assert seen[-1] == pytest.approx(0.0, abs=0.05)


def test_training_starts_from_fresh_episodes_under_the_new_x() -> None:
    follower = make_follower(A2C)
    follower.train(32, 32)
    x = np.tile([9.0, -9.0, -9.0, -9.0, -9.0], 5)
    follower.venv.env_method("set_leader", x)
    firsts: list[Any] = []

    class Watch(BaseCallback):
        def _on_rollout_start(self) -> None:
            firsts.append(np.array(self.model._last_obs))

        def _on_step(self) -> bool:
            return True

    model = follower.model
    model.set_env(model.env)  # type: ignore[arg-type]
    model.learn(32, callback=Watch(), reset_num_timesteps=False)
    assert firsts[0].max(-1) == pytest.approx(1.0, abs=1e-6)  # every copy sees the nearly pure commitment at once


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_probabilities_are_those_of_its_acts(algorithm: type[BaseAlgorithm]) -> None:
    follower = make_follower(algorithm)
    follower.train(2000, 2000)
    follower.q_temperature = 0.3
    obs = np.repeat(np.asarray(follower.venv.reset())[:1], 20_000, axis=0)
    p = follower.probabilities(obs[:1])[0]
    counts = np.bincount(follower.act(obs), minlength=len(p)) / len(obs)
    stderr = np.sqrt(p * (1 - p) / len(obs))
    assert p.sum() == pytest.approx(1.0)
    assert p.max() < 0.999
    assert np.all(np.abs(counts - p) <= 4 * stderr + 1e-12)


class Continuous(gym.Env[Any, Any]):
    """A Box of actions."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_an_algorithm_that_cannot_act_is_refused() -> None:
    with pytest.raises(ValueError, match=r"follower: expected an algorithm for actions in Box.*got DQN"):
        build_model(DQN, DummyVecEnv([Continuous]), 0.9, 0, linear=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda venv: "no model", "follower: expected a callable that returns an SB3 model, got str"),
        (
            lambda venv: A2C("MlpPolicy", venv),
            r"follower: expected a model with the environment's gamma=0.9, got gamma=0.99",
        ),
        (int, "follower: expected an SB3 algorithm class or a callable, got int"),
        ("PPO", "follower: expected an SB3 algorithm class or a callable .*, got 'PPO'"),
    ],
)
def test_a_follower_that_is_none_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(spec, make_venv(), 0.9, 0, linear=True)


# --- what answers -----------------------------------------------------------------------------------------------------


def state_of(policy: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_the_answer_is_the_average_of_the_weights(algorithm: type[BaseAlgorithm]) -> None:
    """Equal shares at first, then (1 - averaging) to the newest."""
    worlds = Worlds("bilevel_gym/StackelbergGame-v0", {"n_states": 5}, observe_commitment=True)
    follower = SB3Follower(algorithm, worlds.make(8), 0.9, 0, linear=True, answering=Answering(averaging=0.75))
    expected: dict[str, torch.Tensor] = {}
    for k in range(6):
        follower.train(512, 3072)
        new, share = state_of(follower.model.policy), max(0.25, 1.0 / (k + 1))
        expected = {name: (1.0 - share) * expected.get(name, value) + share * value for name, value in new.items()}
    answering, trained = state_of(follower.policy), state_of(follower.model.policy)
    for name, value in expected.items():
        assert torch.allclose(answering[name], value, atol=1e-5)
    assert any(not torch.allclose(answering[name], trained[name], atol=1e-4) for name in expected)
    obs = np.asarray(follower.venv.reset())
    held = follower.probabilities(obs)
    follower.policy.load_state_dict(trained)
    assert not np.allclose(follower.probabilities(obs), held, atol=1e-4)


def test_without_averaging_the_trained_policy_answers() -> None:
    follower = make_follower(PPO)
    assert follower.policy is follower.model.policy


def test_the_entropy_bonus_falls_over_the_plan() -> None:
    worlds = Worlds("bilevel_gym/StackelbergGame-v0", {"n_states": 5}, observe_commitment=True)

    def build(spec: Any, entropy: Any) -> SB3Follower:
        return SB3Follower(spec, worlds.make(8), 0.9, 0, linear=True, answering=Answering(entropy=entropy))

    follower, seen = build(A2C, Linear(0.4, 0.0)), []
    for _ in range(4):
        follower.train(64, 256)
        seen.append(follower.model.ent_coef)  # type: ignore[attr-defined]
    assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1])
    own = build(lambda venv: A2C("MlpPolicy", venv, gamma=0.9, ent_coef=0.123, device="cpu"), None)
    own.train(64, 256)
    assert own.model.ent_coef == 0.123  # type: ignore[attr-defined]
    dqn = build(DQN, Linear(0.4, 0.0))
    dqn.train(64, 256)
    assert not hasattr(dqn.model, "ent_coef")


def test_the_temperature_of_a_q_network_falls_over_the_plan_and_is_kept() -> None:
    worlds = Worlds("bilevel_gym/StackelbergGame-v0", {"n_states": 5}, observe_commitment=True)
    answering = Answering(q_temperature=Linear(0.4, 0.0))
    follower, again = (SB3Follower(DQN, worlds.make(8), 0.9, 0, linear=True, answering=answering) for _ in range(2))
    seen = [follower.q_temperature]
    for _ in range(4):
        follower.train(64, 256)
        seen.append(follower.q_temperature)
    assert seen == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.1])
    again.load_state_dict(follower.state_dict())
    obs = np.asarray(follower.venv.reset())
    assert np.array_equal(again.probabilities(obs), follower.probabilities(obs))
