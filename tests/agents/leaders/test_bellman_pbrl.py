"""PBRL with the sampled Bellman penalty: x's gradient, what followers train on, that it learns, its files, bad input."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import (
    PBRL,
    BellmanPenalty,
    Geometric,
    KnownModel,
    PBRLConfig,
    Rollouts,
    TabularPBRL,
    leader_return_at_best_response,
)
from bilevel_gym.agents.estimators.base import GradientEstimate
from bilevel_gym.agents.followers.soft_q import SoftQFollower
from bilevel_gym.agents.schedules import Constant
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP, TabularProblem, policy_return
from bilevel_gym.envs.tabular import TabularEnv
from tests.problems import assert_gradient, numerical_gradient, true_value_penalty

F64 = torch.float64
ENV_ID = "bilevel_gym/StackelbergGame-v0"
SMALL = PBRLConfig(n_envs=8, follower_steps=128, warmup_steps=128, estimator=Rollouts(8), eval_every=2)
TAU, LAM = 1.0, 3.0


def fixed(estimator: Rollouts | KnownModel) -> PBRLConfig:
    return PBRLConfig(estimator=estimator, q_temperature=Constant(TAU), n_envs=4)


def small(follower: Any = DQN, **changes: Any) -> PBRL:
    arguments: dict[str, Any] = {"env": ENV_ID, "penalty": BellmanPenalty(), "config": SMALL, **changes}
    kwargs = arguments.pop("env_kwargs", {"n_states": 5})
    return PBRL(arguments.pop("env"), follower, env_kwargs=kwargs, **arguments)


def moved_problem(dynamics: bool, ends: bool = False) -> TabularProblem:
    """x enters both rewards and, if asked, the transitions; if asked, the last state ends the episode."""
    rng = torch.Generator().manual_seed(4)
    S, A, dim = 4, 3, 3
    P, Q, r, g = (torch.rand(S, A, n, generator=rng, dtype=F64) for n in (S, S, dim, dim))
    terminal = torch.arange(S) == S - 1 if ends else None
    base = TabularMDP(P / P.sum(-1, keepdim=True), r[..., 0], torch.full((S,), 1 / S), 0.8, terminal)

    def transition(x: Tensor) -> Tensor:
        return torch.softmax(P + 2.0 * (x[0] * Q + x[1] * Q**2), -1)

    rewards = (lambda x: r @ x, lambda x: g @ (1 - x))
    return ArrayProblem(base, LeaderSet.box(dim, -2, 2), *rewards, transition if dynamics else None)


PROBLEMS: dict[str, Any] = {
    "reward": lambda: TabularEnv(moved_problem(dynamics=False)),
    "dynamics": lambda: TabularEnv(moved_problem(dynamics=True)),
    "dynamics, ends": lambda: TabularEnv(moved_problem(dynamics=True, ends=True)),
    "Stackelberg": lambda: gym.make(ENV_ID, n_states=4, n_leader_actions=3, n_follower_actions=3),
}


def held_policies(name: str, config: PBRLConfig) -> tuple[PBRL, TabularProblem, list[Tensor]]:
    """A leader whose two followers answer with fixed random policies of unlike entropy."""
    x0 = None if name == "Stackelberg" else 0.3 * np.arange(1, 4)
    leader = PBRL(PROBLEMS[name](), DQN, penalty=BellmanPenalty(lam=LAM), config=config, x0=x0)
    problem = leader.worlds.problem
    assert problem is not None
    shape, rng = problem.follower_mdp(problem.start_x()).r.shape, torch.Generator().manual_seed(1)
    policies = [torch.softmax(spread * torch.randn(shape, generator=rng, dtype=F64), -1) for spread in (0.5, 2.0)]
    for follower, pi in zip((leader.best_response, leader.penalised), policies, strict=True):

        def probabilities(obs: Any, pi: Tensor = pi) -> Any:
            return pi.numpy()[leader.worlds.base_observation(obs)]

        follower.probabilities = probabilities
    return leader, problem, policies


def lived_mdp(problem: TabularProblem, x: Tensor) -> TabularMDP:
    """M(x) as learned followers live in it: every step earns its entropy, and simulators take missing actions."""
    mdp = problem.follower_mdp(x)
    mask = None if problem.takes_missing_actions else mdp.mask
    return TabularMDP(mdp.P, mdp.r, mdp.rho, mdp.gamma, mdp.terminal, mask, terminal_entropy=True, validate=False)


def objective(problem: TabularProblem, x: Tensor, policies: list[Tensor], tau: float) -> Tensor:
    hat, pi_y = policies
    mdp = lived_mdp(problem, x)
    gap = policy_return(mdp, hat, tau) - policy_return(mdp, pi_y, tau)
    return problem.leader_return(x, pi_y) - LAM * gap


def estimated(leader: PBRL) -> GradientEstimate:
    found: GradientEstimate = leader.estimator(leader.state.x, leader.terms, leader.followers, leader.lam)
    return found


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_the_known_models_gradient_is_that_of_central_differences(name: str) -> None:
    leader, problem, policies = held_policies(name, fixed(KnownModel()))
    found, x = estimated(leader), torch.from_numpy(leader.last_x)
    assert_gradient(found.ascent, numerical_gradient(lambda z: objective(problem, z, policies, TAU), x))
    mdp = lived_mdp(problem, x)
    p = float(policy_return(mdp, policies[0], TAU) - policy_return(mdp, policies[1], TAU))
    assert found.penalty.mean == pytest.approx(p, abs=1e-12)
    assert found.steps == 0


@pytest.mark.parametrize(
    ("name", "gae_lambda"),
    [("reward", 1.0), ("dynamics", 1.0), ("dynamics", 0.0), ("dynamics, ends", 0.0)],
)
def test_the_sampled_gradient_is_the_exact_one_within_its_standard_error(name: str, gae_lambda: float) -> None:
    """And is not the one whose return to go forgets entropy, where x moves the dynamics."""
    leader, problem, policies = held_policies(name, fixed(Rollouts(512, 1e-3, gae_lambda, 0.9)))
    estimates, penalties = [], []
    for k in range(50):
        found = estimated(leader)
        if k >= 10:  # the critics have settled
            estimates.append(found.ascent.numpy())
            penalties.append(found.penalty)
    x = torch.from_numpy(leader.last_x).requires_grad_()
    exact, plain = (torch.autograd.grad(objective(problem, x, policies, tau), [x])[0].numpy() for tau in (TAU, 0.0))
    stderr = np.std(estimates, axis=0, ddof=1) / np.sqrt(len(estimates))
    z = (np.mean(estimates, axis=0) - exact) / stderr
    assert np.abs(z).max() < 4.5
    assert np.square(z).mean() < 3.0
    assert np.all(stderr < 0.1 * np.abs(exact).max())
    if name == "reward":
        np.testing.assert_allclose(plain, exact, rtol=1e-12)
    else:
        assert np.abs((np.mean(estimates, axis=0) - plain) / stderr).max() > 6.0
    mdp = lived_mdp(problem, x.detach())
    p = float(policy_return(mdp, policies[0], TAU) - policy_return(mdp, policies[1], TAU))
    mean, error = np.mean([e.mean for e in penalties]), np.mean([e.stderr for e in penalties]) / np.sqrt(len(penalties))
    assert abs(mean - p) < 4.0 * error
    assert error < 0.1 * abs(p)


def test_near_policies_are_compared_on_near_episodes() -> None:
    """Coupled actions: lam grad_x p of near policies has a fraction of the noise of episodes played apart."""

    def spread(coupled: bool) -> float:
        leader, _, policies = held_policies("reward", fixed(Rollouts(64, 1e-2, 1.0)))
        near = 0.95 * policies[0] + 0.05 * policies[1]
        leader.penalised.probabilities = lambda obs, _=None: near.numpy()[leader.worlds.base_observation(obs)]
        if not coupled:
            play, others = leader.penalised.coupled_player, count(10**6)
            leader.penalised.coupled_player = lambda seed: play(next(others))
        return float(np.std([estimated(leader).penalty.mean for _ in range(60)]))

    assert spread(coupled=True) < 0.6 * spread(coupled=False)


def test_followers_train_on_their_own_rewards_at_the_x_and_lam_of_now() -> None:
    config = replace(SMALL, noisy_share=0.0)
    leader = PBRL(
        TabularEnv(moved_problem(dynamics=False)), DQN, penalty=BellmanPenalty(lam=Geometric(2.0, 8.0)), config=config
    )
    problem, checked, train = leader.worlds.problem, [], type(leader.best_response).train
    assert problem is not None

    def checking(follower: Any, steps: int, planned: int) -> int:
        buffer, n = follower.replay, follower.replay.size()
        if n:
            x = torch.from_numpy(leader.last_x)
            s = buffer.base_obs[:n].reshape(n, 8)
            a = buffer.actions[:n, :, 0]
            own = problem.follower_mdp(x).r if follower is leader.best_response else problem.leader_reward(x)
            np.testing.assert_allclose(buffer.rewards[:n], own.numpy()[s, a], rtol=1e-5, atol=1e-6)
            checked.append(leader.lam)
        assert follower is leader.best_response or follower.lam == leader.lam
        return int(train(follower, steps, planned))

    for follower in (leader.best_response, leader.penalised):
        follower.train = lambda *asked, f=follower: checking(f, *asked)
    leader.learn(4000)
    assert len(checked) >= 6
    assert checked[0] < checked[-1]


@pytest.mark.long
def test_the_leader_learns_over_several_games() -> None:
    """More than half of what exact PBRL gains over the untrained leader."""
    gains = []
    for seed in range(3):
        config = PBRLConfig(follower_steps=512, warmup_steps=4_000, estimator=KnownModel(), learning_rate=0.15)
        leader = small(config=config, seed=seed, env_kwargs={"n_states": 5, "seed": seed}).learn(32_000)
        problem = leader.worlds.problem
        assert problem is not None
        untrained, reached = (
            leader_return_at_best_response(problem, torch.as_tensor(x)) for x in (problem.start_x(), leader.last_x)
        )
        exact = TabularPBRL(problem).learn(200).evaluate().leader_return
        gains.append((reached - untrained) / (exact - untrained))
    assert np.mean(gains) > 0.5
    assert min(gains) > 0.0


def test_one_seed_gives_one_result() -> None:
    def run(seed: int) -> Any:
        np.random.seed()  # whatever the caller's generators hold
        return small(seed=seed).learn(4000).last_x

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_the_record_is_of_the_regularised_problem() -> None:
    leader = small(config=replace(SMALL, q_temperature=Constant(TAU))).learn(3000)
    record, problem, x = leader.evaluate(), leader.worlds.problem, torch.from_numpy(leader.x)
    assert problem is not None
    mdp, pi_y = problem.follower_mdp(x), leader.level.table(leader.penalised, x)
    last = leader.history[-1]
    if np.array_equal(leader.x, leader.last_x):
        assert last.penalty == pytest.approx(float(true_value_penalty(mdp, pi_y, TAU)), rel=1e-9)
    assert record.tau == TAU
    assert record.penalty is not None
    assert record.penalty > 0.0
    assert record.leader_return == leader_return_at_best_response(problem, x)


def test_quantile_networks_too() -> None:
    sb3_contrib = pytest.importorskip("sb3_contrib")
    leader = small(sb3_contrib.QRDQN, config=replace(SMALL, estimator=KnownModel())).learn(5000)
    x = torch.from_numpy(leader.last_x)
    assert x.any()
    apart = (leader.level.table(leader.penalised, x) - leader.level.table(leader.best_response, x)).abs().max()
    assert 0.0 < float(apart) < 1.0


@pytest.mark.parametrize("observe_commitment", [True, False])
def test_without_a_model_a_fresh_best_response_judges(observe_commitment: bool) -> None:
    class Plain(gym.Wrapper[Any, Any, Any, Any]):
        """A wrapper that does nothing, but hides that the environment is tabular."""

    config = replace(SMALL, evaluation_steps=2000, observe_commitment=observe_commitment, eval_every=1000)
    leader = small(env=Plain(gym.make(ENV_ID, n_states=5)), env_kwargs=None, config=config).learn(6000)
    record = leader.evaluate()
    assert record.leader_return_stderr > 0.0
    assert record.tau == leader.best_response.temperature


@pytest.mark.filterwarnings("ignore:.*regularised at tau.*")
def test_missing_actions_that_simulators_take_are_actions() -> None:
    config = replace(SMALL, estimator=KnownModel(), q_temperature=0.5)
    leader = small(env="bilevel_gym/TollDesign-v0", env_kwargs={"n_nodes": 8}, config=config)
    record, problem, x = leader.evaluate(), leader.worlds.problem, torch.from_numpy(leader.x)
    assert problem is not None
    mdp = lived_mdp(problem, x)
    assert mdp.mask is None
    assert problem.follower_mdp(x).mask is not None
    pi_y = leader.level.table(leader.penalised, x).reshape(mdp.r.shape)
    assert bool((pi_y > 0).all())
    assert record.penalty == pytest.approx(float(problem.over_contexts(true_value_penalty(mdp, pi_y, 0.5))), rel=1e-9)
    assert record.penalty is not None
    assert record.penalty > 0.0


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_saved_leader_comes_back(tmp_path: Path) -> None:
    leader = small(penalty=BellmanPenalty(lam=Geometric(2.0, 8.0))).learn(4000)
    again = PBRL.load(leader.save(tmp_path / "leader"))
    assert isinstance(again.best_response, SoftQFollower)
    assert again.penalised.prior is again.best_response
    assert np.array_equal(again.x, leader.x)
    assert again.evaluate() == leader.evaluate()
    x = torch.from_numpy(leader.x)
    for a, b in ((leader.best_response, again.best_response), (leader.penalised, again.penalised)):
        assert np.array_equal(leader.level.table(a, x), again.level.table(b, x))
    before = again.num_timesteps
    assert again.learn(2000, reset_num_timesteps=False).num_timesteps >= before + 2000


# --- bad input -------------------------------------------------------------------------------------------------------


def scaled(venv: VecEnv) -> BaseAlgorithm:
    return DQN("MlpPolicy", VecNormalize(venv), gamma=0.9, device="cpu")


def of_several_steps(venv: VecEnv) -> BaseAlgorithm:
    return DQN("MlpPolicy", venv, gamma=0.9, n_steps=3, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"follower": PPO}, r"follower: expected an algorithm with a Q-network over discrete actions .* got PPO"),
        ({"follower": A2C}, r"follower: expected an algorithm with a Q-network over discrete actions .* got A2C"),
        ({"follower": of_several_steps}, r"follower: expected one-step targets \(n_steps=1\), .* got 3"),
        ({"follower": scaled}, "follower: expected a model without VecNormalize for a BellmanPenalty, got DQN"),
        (
            {"follower": SAC, "env": "bilevel_gym/LQStackelberg-v0", "env_kwargs": {}},
            r"follower: expected an algorithm with a Q-network over discrete actions .* got SAC",
        ),
        ({"penalty": BellmanPenalty(mu=[0.2] * 5)}, "mu: expected None for learned followers"),
        (
            {"env": "bilevel_gym/RandomMDP-v0", "env_kwargs": {}},
            "env: expected a leader whose objective is a return of the follower's MDP",
        ),
        ({"config": replace(SMALL, relabel=True)}, "relabel: expected None or False where x is the leader's policy"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*regularised at tau.*")
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        small(**changes)


def test_over_a_game_it_is_refused() -> None:
    with pytest.raises(ValueError, match="penalty: expected a NikaidoIsodaPenalty for a zero-sum game, got BellmanPen"):
        PBRL("bilevel_gym/incentive_design_v0", DQN, penalty=BellmanPenalty())


def test_another_temperature_than_the_environments_is_told() -> None:
    env_kwargs = {"tau": 0.5}
    with pytest.warns(UserWarning, match=r"regularised at tau=0.5, .* end at PBRLConfig.q_temperature=0.05"):
        small(env="bilevel_gym/FourRooms-v0", env_kwargs=env_kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(env="bilevel_gym/FourRooms-v0", env_kwargs=env_kwargs, config=replace(SMALL, q_temperature=0.5))
