"""Product features by their blocks: the same batches as whole ones, in a small part of the memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts
from bilevel_gym.agents.followers import product_features
from bilevel_gym.agents.followers.product_features import DENSE, Blocks, ProductFeatures, ProductRollouts
from bilevel_gym.agents.followers.replay import TrueReplay, buffer_arrays
from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.envs.tabular import TabularEnv, TabularVectorEnv
from bilevel_gym.wrappers import FiniteSteps, RewardMixing, VectorEnvAdapter, set_leader

GAME = "bilevel_gym/StackelbergGame-v0"
CONFIG = PBRLConfig(n_envs=4, follower_steps=64, warmup_steps=64, estimator=Rollouts(4, tail=0.5), eval_every=10**6)


def features(n: int = 7, S: int = 300, width: int = 5, seed: int = 0) -> tuple[ProductFeatures, torch.Tensor]:
    rng = np.random.default_rng(seed)
    states, blocks = rng.integers(S, size=n), rng.random((n, width), dtype=np.float32)
    dense = np.zeros((n, S, width), np.float32)
    dense[np.arange(n), states] = blocks
    made = Blocks(S, width).join(states, blocks)
    assert isinstance(made, ProductFeatures) == (S * width > DENSE)
    return made, torch.from_numpy(dense.reshape(n, -1))  # type: ignore[return-value]


@pytest.mark.parametrize(("S", "width"), [(300, 5), (2000, 1), (130, 8), (5, 3)])
@pytest.mark.parametrize("hidden", [[], [16], [32, 16]])
def test_networks_and_their_gradients_are_those_of_the_plain_tensor(S: int, width: int, hidden: list[int]) -> None:
    made, dense = features(40, S, width)
    sizes = [S * width, *hidden, 3]
    layers = [torch.nn.Linear(a, b).double() for a, b in pairwise(sizes)]
    net = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.Tanh())))
    answers, gradients = [], []
    double = ProductFeatures.of(made.states, made.blocks.double(), S) if S * width > DENSE else made.double()
    for obs in (double, dense.double()):
        net.zero_grad()
        answer = net(obs.flatten(1))
        answer.square().sum().backward()
        answers.append(answer.detach())
        gradients.append([torch.as_tensor(p.grad).clone() for p in net.parameters()])
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-13, atol=1e-14)
    assert type(answers[0]) is torch.Tensor
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert float(b.abs().max()) > 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda obs: obs * 2.0,
        lambda obs: 1.0 - obs,
        lambda obs: obs[2:5, 3:],
        lambda obs: obs[::2],
        lambda obs: obs.mean(0),
        lambda obs: torch.cat([obs, obs], 1),
        lambda obs: torch.nn.functional.layer_norm(obs, obs.shape[1:]),
        lambda obs: torch.relu(obs).double().clone(),
        lambda obs: obs.to(torch.float64),
        lambda obs: obs.view(len(obs), -1, 5)[..., 0],
        lambda obs: torch.as_tensor(obs.numpy()),
        lambda obs: obs.matmul(torch.arange(obs.shape[1], dtype=torch.float32)),
        lambda obs: torch.nn.functional.linear(torch.ones(2, obs.shape[1]), obs),
        lambda obs: torch.stack([obs[0], obs[1]]).nonzero(),
    ],
)
def test_any_other_function_sees_the_plain_tensor(call: Any) -> None:
    made, dense = features()
    found = call(made)
    assert not isinstance(found, ProductFeatures)
    assert torch.equal(found, call(dense))


def test_their_form_is_read_without_making_them() -> None:
    made, dense = features(3, 1000, 5)
    assert (made.shape, made.ndim, made.dtype, made.device) == (dense.shape, 2, torch.float32, dense.device)
    assert (made.size(1), made.dim(), len(made)) == (5000, 2, 3)
    assert made.float() is made
    with torch._C.DisableTorchFunctionSubclass():  # what is read past torch's functions is one NaN
        assert made.untyped_storage().nbytes() == 4
        assert bool(made.isnan().all())


def small(observe: bool = True) -> RewardMixing:
    """Four environments of a game with six states and three leader's actions, which end after nine steps."""
    simulator = TabularVectorEnv(random_stackelberg(6, 3, 4, seed=3), 4, 9)
    return RewardMixing(FiniteSteps(VectorEnvAdapter(simulator, observe, infos=False), "game"), 0.5)


class Negated(VecEnvWrapper):
    """A user's wrapper that changes observations."""

    def reset(self) -> Any:
        return -np.asarray(self.venv.reset())

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return -np.asarray(obs), rewards, dones, infos


def dqn(venv: VecEnv, size: int = 256) -> DQN:
    return DQN("MlpPolicy", venv, gamma=0.9, buffer_size=size, learning_starts=10**9, seed=0, device="cpu")


def played(model: DQN, steps: int) -> None:
    venv: Any = model.get_env()
    while hasattr(venv, "venv"):
        venv = venv.venv
    rng = np.random.default_rng(0)
    set_leader(model.get_env(), rng.uniform(-2, 2, (4, 18)))  # type: ignore[arg-type]
    model.learn(steps)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("steps", [100, 600])  # a part of the buffer, and more than all of it
def test_a_batch_is_that_of_sb3s_buffer_to_the_bit(steps: int, scaled: bool) -> None:
    models = []
    for own in (False, True):
        venv = small()
        model = dqn(VecNormalize(venv, norm_reward=False, gamma=0.9) if scaled else venv)
        if own:
            assert TrueReplay.in_place_of(model, venv, gym.spaces.Discrete(6)) is model.replay_buffer
        played(model, steps)
        models.append(model)
    batches = []
    for model in models:
        np.random.seed(5)
        batches.append([model.replay_buffer.sample(64, env=model._vec_normalize_env) for _ in range(3)])  # type: ignore[union-attr]
    for plain, ours in zip(*batches, strict=True):
        for name, a, b in zip(plain._fields, plain, ours, strict=True):
            if (
                scaled and name == "next_observations"
            ):  # SB3 scales an episode's last observation back, and so rounds it
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            else:
                assert a is b is None or (torch.equal(a, b) and a.dtype == b.dtype), name
    assert len(torch.unique(batches[0][0].observations, dim=0)) > 10
    assert models[1].replay_buffer.observations.shape == (64, 4, 3)  # type: ignore[union-attr]


def test_a_users_wrapper_keeps_whole_observations() -> None:
    venv = small()
    model = dqn(Negated(venv))
    buffer = TrueReplay.in_place_of(model, venv, gym.spaces.Discrete(6))
    played(model, 40)
    assert buffer is not None
    assert buffer.observations.shape == (64, 4, 18)
    assert float(buffer.observations.max()) == 0.0 > float(buffer.observations.min())
    on_policy = PPO("MlpPolicy", Negated(venv), gamma=0.9, n_steps=8, batch_size=32, device="cpu")
    ProductRollouts.in_place_of(on_policy, venv, gym.spaces.Discrete(6))
    assert type(on_policy.rollout_buffer) is RolloutBuffer


@pytest.mark.parametrize("hidden", [[], [16]])
@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_training_by_blocks_is_training_on_whole_observations(
    algorithm: Any, hidden: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same random numbers, weights agree up to the order of a few sums in single precision."""
    found = []
    for dense in (0, 10**9):
        monkeypatch.setattr(product_features, "DENSE", dense)
        venv = small()
        settings: dict[str, Any] = {"gamma": 0.9, "seed": 0, "device": "cpu"}
        settings |= {"policy_kwargs": {"net_arch": hidden}, "learning_rate": 1e-3}
        settings |= {"learning_starts": 20, "batch_size": 32} if algorithm is DQN else {"n_steps": 16}
        model: Any = algorithm("MlpPolicy", venv, **settings)
        if algorithm is DQN:
            TrueReplay.in_place_of(model, venv, gym.spaces.Discrete(6))
        else:
            ProductRollouts.in_place_of(model, venv, gym.spaces.Discrete(6))
            assert (type(model.rollout_buffer) is ProductRollouts) == (dense == 0)
        played(model, 128)
        found.append(model.policy.state_dict())
    start = algorithm("MlpPolicy", small(), **settings).policy.state_dict()
    moved = 0.0
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=2e-6)
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("S", [400, 1000])
def test_a_large_tables_buffers_are_small(S: int) -> None:
    """By the sizes of arrays: 50,000 transitions of 5 S numbers each, twice, would take 0.8 and 2 GB."""
    leader = PBRL(GAME, DQN, config=CONFIG, env_kwargs={"n_states": S, "n_follower_actions": 1})
    for follower in (leader.best_response, leader.penalised):
        model: Any = follower.model
        assert isinstance(model.replay_buffer, ReplayBuffer)
        arrays = buffer_arrays(model.replay_buffer, whole=True)
        assert arrays["observations"].shape == (12_500, 4, 5)
        assert sum(array.nbytes for array in arrays.values()) < 5e6
    leader.close()
    leader = PBRL(GAME, PPO, config=CONFIG, env_kwargs={"n_states": S, "n_follower_actions": 1})
    buffer: Any = leader.best_response.model.rollout_buffer
    assert buffer.observations.shape == (16, 4, 5)
    leader.close()


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_large_table_resumes_to_the_bit(algorithm: type[BaseAlgorithm], tmp_path: Any) -> None:
    kwargs: dict[str, Any] = {"env_kwargs": {"n_states": 250, "n_follower_actions": 2}, "seed": 1, "config": CONFIG}
    half, full = (PBRL(GAME, algorithm, **kwargs) for _ in range(2))
    for _ in range(2):
        full.learn(400)
    half.learn(400)
    half.save(tmp_path / "half.zip", replay=True)
    again = PBRL.load(tmp_path / "half.zip").learn(400)
    assert np.array_equal(again.last_x, full.last_x)
    assert float(np.abs(full.last_x).max()) > 0.0


def test_an_example_of_every_state_is_split_and_joined() -> None:
    env = TabularEnv(random_stackelberg(30, 3, 2, seed=0))
    native = VectorEnvAdapter(env.vectorised(1, None), observe_commitment=True)
    seen = native.every_observation(np.random.default_rng(0).uniform(-9, 9, 90))
    blocks = Blocks(30, 3)
    states = blocks.states(seen)
    assert states.tolist() == list(range(30))
    assert torch.equal(blocks.join(states, blocks.split(seen, states)), torch.from_numpy(seen))
