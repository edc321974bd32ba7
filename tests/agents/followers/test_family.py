"""Every algorithm of SB3 and sb3-contrib as a follower: it trains, answers, comes back from a file, refuses what it cannot."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import ARS, QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import PBRL, KnownModel, PBRLConfig, Rollouts
from bilevel_gym.agents.estimators.rollouts import collect
from bilevel_gym.agents.followers.sb3 import SB3Follower
from bilevel_gym.agents.followers.spec import Answering
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP, TabularProblem
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import set_leader

GAMMA = 0.9
ENVS: dict[str, tuple[str, dict[str, Any]]] = {
    "discrete": ("bilevel_gym/StackelbergGame-v0", {"n_states": 4, "max_episode_steps": 10}),
    "continuous": ("bilevel_gym/LQStackelberg-v0", {"max_episode_steps": 10}),
}
DISCRETE = (PPO, A2C, DQN, TRPO, QRDQN, MaskablePPO, RecurrentPPO, ARS)
CONTINUOUS = (PPO, A2C, SAC, TD3, DDPG, TRPO, TQC, RecurrentPPO, ARS)
FAMILY = [(algorithm, "discrete") for algorithm in DISCRETE] + [(algorithm, "continuous") for algorithm in CONTINUOUS]
Algorithm = type[BaseAlgorithm]

family = pytest.mark.parametrize(("algorithm", "actions"), FAMILY, ids=lambda part: getattr(part, "__name__", part))


def worlds(actions: str) -> Worlds:
    env_id, kwargs = ENVS[actions]
    return Worlds(env_id, kwargs, observe_commitment=True)


def make_follower(algorithm: Any, actions: str, n_envs: int = 64, seed: int = 0) -> SB3Follower:
    world = worlds(actions)
    return SB3Follower(algorithm, world.make(n_envs), GAMMA, seed, world.linear, Answering(averaging=0.5))


def weights(follower: SB3Follower) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in follower.model.policy.parameters()])


def tiny(algorithm: Any) -> Any:
    """A callable that builds the algorithm small, so that it learns from its first few steps."""

    def build(venv: VecEnv) -> BaseAlgorithm:
        chosen: dict[str, Any] = {"seed": 1, "device": "cpu", "gamma": GAMMA}
        name = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
        if algorithm is ARS:
            name, chosen = "LinearPolicy", {"seed": 1, "n_delta": 1, "n_eval_episodes": venv.num_envs}
        elif issubclass(algorithm, OffPolicyAlgorithm):
            chosen |= {"learning_starts": 8, "batch_size": 8, "train_freq": 4, "policy_kwargs": {"net_arch": [8]}}
            if algorithm in (TD3, DDPG):
                chosen["action_noise"] = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
        else:
            chosen |= {"n_steps": 8, "policy_kwargs": {"net_arch": [8]}}
            if algorithm is not A2C:
                chosen["batch_size"] = 16
            if algorithm is RecurrentPPO:
                chosen |= {"policy_kwargs": {"net_arch": [], "lstm_hidden_size": 8}, "n_epochs": 1}
        model: BaseAlgorithm = algorithm(name, venv, **chosen)
        return model

    return build


@family
def test_a_class_trains_and_answers(algorithm: Algorithm, actions: str) -> None:
    follower = make_follower(algorithm, actions)
    before, taken = weights(follower), 0
    step = follower.venv.step_wait

    def counting() -> Any:
        nonlocal taken
        taken += follower.venv.num_envs
        return step()

    follower.venv.step_wait = counting  # type: ignore[method-assign]
    spent = follower.train(1100, 1100)
    assert spent == taken == follower.num_timesteps >= 1100
    assert not torch.equal(weights(follower), before)
    obs = np.asarray(follower.venv.reset())
    for acting in (follower.act, partial(follower.act, greedily=True), follower.player(follower.venv)):
        played = acting(obs)
        assert len(played) == len(obs)
        assert all(follower.model.action_space.contains(action) for action in played)
    if actions == "discrete" and algorithm is not RecurrentPPO:
        pi = follower.probabilities(obs)
        np.testing.assert_allclose(pi.sum(-1), 1.0, rtol=1e-6)
        np.testing.assert_array_equal(pi.argmax(-1), follower.act(obs, greedily=True))
        deterministic = bool(np.isin(pi, (0.0, 1.0)).all())
        assert deterministic == (algorithm is ARS)


@family
def test_a_callable_moves_x(algorithm: Algorithm, actions: str) -> None:
    env_id, kwargs = ENVS[actions]
    config = PBRLConfig(n_envs=2, follower_steps=16, warmup_steps=16, estimator=Rollouts(4), eval_every=3)
    seed = 1 if algorithm is DDPG else 2  # in which p^ is not always negative
    leader = PBRL(env_id, tiny(algorithm), config=config, seed=seed, env_kwargs=kwargs)
    followers = (leader.best_response, leader.penalised)
    start, before = leader.last_x, [weights(follower) for follower in followers]
    leader.learn(400)
    assert leader.iteration - leader.oracle_failures > 0
    assert not np.allclose(leader.last_x, start, atol=1e-3)
    for follower, held in zip(followers, before, strict=True):
        assert not torch.equal(weights(follower), held)
        assert type(follower.model) is algorithm
    record = leader.evaluate()
    for value in (record.leader_return, record.leader_return_at_pi_y, record.gap):
        assert value is not None
        assert np.isfinite(value)


@family
def test_a_follower_comes_back(algorithm: Algorithm, actions: str) -> None:
    first = make_follower(tiny(algorithm), actions, 4)
    first.train(64, 128)
    second = make_follower(tiny(algorithm), actions, 4, seed=9)
    second.load_state_dict(first.state_dict())
    obs = np.asarray(first.venv.reset())
    np.testing.assert_array_equal(first.act(obs, greedily=True), second.act(obs, greedily=True))
    assert torch.equal(weights(first), weights(second))
    if algorithm is ARS:  # it searches from a vector that is no part of its policy
        assert torch.equal(first.model.weights, second.model.weights)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("algorithm", "actions"),
    [(algorithm, "discrete") for algorithm in (SAC, TD3, DDPG, TQC)]
    + [(algorithm, "continuous") for algorithm in (DQN, QRDQN, MaskablePPO)],
)
def test_an_algorithm_that_cannot_act_is_refused(algorithm: Algorithm, actions: str) -> None:
    space = {"discrete": "Discrete", "continuous": "Box"}[actions]
    with pytest.raises(
        ValueError, match=rf"follower: expected an algorithm for actions in {space}.*{algorithm.__name__}"
    ):
        make_follower(algorithm, actions, 2)


# --- Q as the mean of quantiles ---------------------------------------------------------------------------------------


def test_qrdqn_answers_by_the_mean_of_its_quantiles() -> None:
    follower = make_follower(QRDQN, "discrete")
    follower.train(1100, 1100)
    follower.q_temperature = 0.3
    obs = np.repeat(np.asarray(follower.venv.reset())[:1], 20_000, axis=0)
    with torch.no_grad():
        Q = follower.policy.quantile_net(torch.as_tensor(obs[:1])).mean(1) / 0.3
    p = follower.probabilities(obs[:1])[0]
    np.testing.assert_allclose(p, torch.softmax(Q, -1)[0].numpy(), rtol=1e-6)
    counts = np.bincount(follower.act(obs), minlength=len(p)) / len(obs)
    assert p.max() < 0.999
    assert np.all(np.abs(counts - p) <= 4 * np.sqrt(p * (1 - p) / len(obs)) + 1e-12)


# --- masks ------------------------------------------------------------------------------------------------------------


def masked_problem() -> TabularProblem:
    """Action 1 is missing in state 1."""
    mask = torch.tensor([[True, True], [True, False]])
    base = TabularMDP(torch.full((2, 2, 2), 0.5), torch.eye(2), torch.full((2,), 0.5), GAMMA, mask=mask)
    return ArrayProblem(base, LeaderSet.box(1, -1, 1), lambda x: base.r + x * base.r, lambda x: base.r - x)


def test_maskable_ppo_never_takes_a_missing_action() -> None:
    """The simulator raises where one is taken; PPO, which cannot know, is refused."""
    env = gym.wrappers.TimeLimit(TabularEnv(masked_problem()), 10)
    config = PBRLConfig(n_envs=2, follower_steps=16, warmup_steps=16, estimator=Rollouts(4))
    leader = PBRL(env, tiny(MaskablePPO), config=config).learn(400)
    assert leader.iteration > 2
    table = leader.level.table(leader.penalised, torch.from_numpy(leader.x))
    assert table[1].tolist() == [1.0, 0.0]
    assert 0.0 < float(table[0, 0]) < 1.0
    with pytest.raises(ValueError, match="env: expected an environment without action masks"):
        PBRL(env, tiny(PPO), config=config)


@pytest.mark.filterwarnings("ignore:.*regularised at tau.*")
def test_drivers_with_masks_take_no_missing_road() -> None:
    world = Worlds("bilevel_gym/TollDesign-v0", {"n_nodes": 8}, observe_commitment=False)
    follower = SB3Follower(MaskablePPO, world.make(8), 0.999, 0, world.linear, Answering())
    follower.train(256, 256)
    assert world.problem is not None
    x = world.problem.start_x()
    mdp, venv = world.problem.follower_mdp(x), world.make(32)
    pi = follower.table(mdp, world.every_observation(x.numpy()))
    assert mdp.mask is not None
    assert float(pi.reshape(mdp.r.shape)[~mdp.mask.expand(mdp.r.shape)].max()) == 0.0
    played = collect(venv, follower.player(venv), 20, seed=3)
    live = played.alive == 1.0
    exists = mdp.mask.expand(mdp.r.shape).reshape(-1, mdp.n_actions).numpy()
    assert exists[played.base_obs[live], played.action[live]].all()
    told_nothing = collect(venv, follower.act, 20, seed=3)
    live = told_nothing.alive == 1.0
    assert not exists[told_nothing.base_obs[live], told_nothing.action[live]].all()


def test_without_masks_maskable_ppo_is_ppo() -> None:
    venv = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    follower = SB3Follower(tiny(MaskablePPO), venv, GAMMA, 0, linear=False, answering=Answering())
    before = weights(follower)
    assert follower.train(32, 32) == 32
    assert not torch.equal(weights(follower), before)
    assert follower.player(venv)(venv.reset()).shape == (2,)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_recurrent_follower_remembers_its_episode_and_no_other() -> None:
    follower = make_follower(RecurrentPPO, "continuous", 4)
    follower.train(256, 256)
    venv = worlds("continuous").make(3)
    played = collect(venv, follower.player(venv, greedily=True), 8, seed=5, seen=True)
    assert played.obs is not None
    state, starts, forgetful = None, np.ones(3, dtype=bool), []
    for t in range(8):
        expected, state = follower.policy.predict(played.obs[t], state, starts, deterministic=True)
        np.testing.assert_array_equal(played.action[t], expected)
        starts = np.zeros(3, dtype=bool)
        forgetful.append(follower.act(played.obs[t], greedily=True))
    np.testing.assert_array_equal(played.action[0], forgetful[0])
    assert not np.allclose(played.action[1:], forgetful[1:], atol=1e-4)
    again = collect(venv, follower.player(venv, greedily=True), 8, seed=5)
    np.testing.assert_array_equal(again.action, played.action)


def test_a_recurrent_follower_has_no_policy_table() -> None:
    follower = make_follower(RecurrentPPO, "discrete", 4)
    with pytest.raises(
        ValueError, match=r"follower: expected a policy that is a function of the observation.*Recurrent"
    ):
        follower.probabilities(follower.venv.reset())
    env_id, kwargs = ENVS["discrete"]
    config = PBRLConfig(n_envs=2, estimator=KnownModel())
    with pytest.raises(ValueError, match=r"estimator: expected Rollouts\(\) for a recurrent follower"):
        PBRL(env_id, tiny(RecurrentPPO), config=config, env_kwargs=kwargs)


# --- what a callable may wrap around its world --------------------------------------------------------------------------


def normalised(venv: VecEnv, **kwargs: Any) -> BaseAlgorithm:
    return PPO("MlpPolicy", VecNormalize(venv, gamma=GAMMA, **kwargs), n_steps=16, gamma=GAMMA, device="cpu")


def test_observations_are_normalised_as_in_training() -> None:
    follower = make_follower(normalised, "continuous", 8)
    follower.train(256, 256)
    scaling = follower.model.get_vec_normalize_env()
    assert scaling is not None
    obs = 3.0 * np.asarray(follower.venv.reset())
    expected, _ = follower.policy.predict(scaling.normalize_obs(obs), deterministic=True)
    np.testing.assert_array_equal(follower.act(obs, greedily=True), expected)
    np.testing.assert_array_equal(follower.player(follower.venv, greedily=True)(obs), expected)
    assert not np.allclose(expected, follower.policy.predict(obs, deterministic=True)[0], atol=1e-4)
    second = make_follower(normalised, "continuous", 8, seed=5)
    second.load_state_dict(follower.state_dict())
    np.testing.assert_array_equal(second.act(obs, greedily=True), expected)


@pytest.mark.long
def test_the_scale_of_rewards_follows_x() -> None:
    """Rewards fall to a hundredth after 20 calls: eight calls later the scale is that of the new rewards."""
    base = masked_problem().follower_mdp(torch.zeros(1, dtype=torch.float64))
    base = TabularMDP(base.P, base.r, base.rho, GAMMA)
    problem = ArrayProblem(base, LeaderSet.box(1, 0.01, 1), lambda x: base.r * x, lambda x: base.r - x)
    world = Worlds(gym.wrappers.TimeLimit(TabularEnv(problem), 10), None, observe_commitment=False)

    def scaled(venv: VecEnv) -> BaseAlgorithm:
        return normalised(venv, norm_obs=False)

    def scale(forgets: bool) -> float:
        follower = SB3Follower(scaled, world.make(8), GAMMA, 0, world.linear, Answering())
        if not forgets:
            follower._forget_scales = lambda steps: None  # type: ignore[method-assign]
        set_leader(follower.venv, [1.0])
        for _ in range(20):
            follower.train(128, 4096)
        set_leader(follower.venv, [0.01])
        for _ in range(8):
            follower.train(128, 4096)
        scaling = follower.model.get_vec_normalize_env()
        assert scaling is not None
        return float(np.sqrt(scaling.ret_rms.var))

    follower = SB3Follower(scaled, world.make(8), GAMMA, 0, world.linear, Answering())
    set_leader(follower.venv, [1.0])
    follower.train(128, 4096)
    scaling = follower.model.get_vec_normalize_env()
    assert scaling is not None
    first = float(np.sqrt(scaling.ret_rms.var))
    assert scale(forgets=True) < 0.5 * first
    assert scale(forgets=False) > 0.9 * first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            lambda venv: normalised(venv, training=False),
            "follower: expected a VecNormalize whose scale of rewards follows x",
        ),
        (
            lambda venv: PPO("MlpPolicy", worlds("continuous").make(2), gamma=GAMMA, device="cpu"),
            r"follower: expected a model on the VecEnv it is given \(x is set there only\)",
        ),
        (
            lambda venv: PPO("MlpPolicy", VecFrameStack(venv, 2), gamma=GAMMA, device="cpu"),
            r"follower: expected a model on the environment.s observations, of shape \(4,\), got shape \(8,\)",
        ),
        (lambda venv: None, "follower: expected a callable that returns an SB3 model, got NoneType"),
        (lambda venv: SAC, "follower: expected a callable that returns an SB3 model"),
    ],
)
def test_a_factory_of_something_else_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_follower(spec, "continuous", 2)
    assert make_follower(lambda venv: normalised(venv, training=False, norm_reward=False), "continuous", 2).model
