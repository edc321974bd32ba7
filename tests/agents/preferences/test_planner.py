"""The follower that plans: exact answers, what it is paid beside, the penalty's exact gradient, files."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import DRLHF, MirrorDescent, PreferenceConfig, PreferencePBRL, ValuePenalty
from bilevel_gym.agents.followers.oracles import mirror_descent_step
from bilevel_gym.agents.leader import Progress
from bilevel_gym.agents.leaders.preference_pbrl import PreferencePBRLMethod, Tracked
from bilevel_gym.agents.preferences.planner import Planner
from bilevel_gym.envs.mdp import TabularMDP, policy_value, solve_soft, visitation
from bilevel_gym.envs.mdp.tabular import action_value
from bilevel_gym.envs.reward_grid import RewardGridProblem
from bilevel_gym.wrappers import LearnedReward, VectorEnvAdapter

GRID, SIZE, GAMMA, TAU = "bilevel_gym/RewardGrid-v0", 3, 0.9, 0.3
WORLD = {"size": SIZE, "gamma": GAMMA, "seed": 4}
S, A = SIZE**2, 4
SMALL = PreferenceConfig(
    labels=12,
    first_labels=6,
    length=5,
    first_steps=64,
    follower_steps=256,
    first_epochs=10,
    epochs=2,
    n_envs=4,
    ensemble=2,
)
best = partial(Planner, "MlpPolicy", tau=TAU, n_steps=64)
slow = partial(Planner, "MlpPolicy", tau=TAU, n_steps=64, oracle=MirrorDescent(eta=0.5, iterations=1))


def paid(r: np.ndarray) -> LearnedReward:
    venv = VectorEnvAdapter(gym.make_vec(GRID, num_envs=4, size=SIZE, gamma=GAMMA, seed=4, max_episode_steps=20))
    return LearnedReward(venv, lambda obs, actions: r[np.asarray(obs).astype(int), np.asarray(actions).astype(int)])


def world(r: np.ndarray) -> TabularMDP:
    problem = RewardGridProblem(SIZE, GAMMA, seed=4)
    return problem.follower_mdp(problem.start_x()).with_reward(torch.from_numpy(r))


@pytest.fixture
def reward() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(S, A))


def test_it_answers_with_the_soft_optimum_of_what_it_is_paid(reward: np.ndarray) -> None:
    """Also where episodes are cut: SB3 adds the critic's value to the last reward, and the critic is 0."""
    planner = best(paid(reward), seed=0)
    planner.learn(256)
    expected = solve_soft(world(reward), TAU).pi
    torch.testing.assert_close(planner.table(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(planner.table().sum(-1), torch.ones(S).double())


def test_a_slow_one_moves_by_one_step_of_mirror_descent(reward: np.ndarray) -> None:
    planner, mdp = slow(paid(reward), seed=0), world(reward)
    for _ in range(3):
        pi = planner.table()
        Q = action_value(mdp, policy_value(mdp, pi, TAU))
        planner.learn(256, reset_num_timesteps=False)
        torch.testing.assert_close(planner.table(), mirror_descent_step(mdp, pi, Q, TAU, 0.5), rtol=1e-4, atol=1e-6)


def test_what_a_rollout_was_paid_beside_counts_by_the_mean_over_visits(reward: np.ndarray) -> None:
    planner = best(paid(reward), seed=0)
    planner.learn(256)
    rollout = planner.rollout_buffer
    states, actions = rollout.observations.ravel().astype(int), rollout.actions.ravel().astype(int)
    at = (states == states[7]) & (actions == actions[7])
    rollout.rewards.reshape(-1)[7] += 2.0
    planner.train()
    further = reward.copy()
    further[states[7], actions[7]] += 2.0 / at.sum()
    torch.testing.assert_close(planner.table(), solve_soft(world(further), TAU).pi, rtol=1e-4, atol=1e-6)


def test_its_occupancy_is_exact(reward: np.ndarray) -> None:
    planner, mdp = best(paid(reward), seed=0), world(reward)
    planner.learn(256)
    d, pi = planner.occupancy(), planner.table()
    assert float(d.sum()) == pytest.approx(1.0, abs=1e-12)
    value = (mdp.rho @ policy_value(mdp, pi, 0.0)) * (1.0 - GAMMA)
    assert float((d * mdp.r).sum()) == pytest.approx(float(value), abs=1e-12)
    torch.testing.assert_close(d.sum(-1), (1.0 - GAMMA) * visitation(mdp, pi))


def test_the_penaltys_gradient_is_that_of_exact_values() -> None:
    """lam (V^{pihat} - V^{pi_y})(1 - gamma), the policies held, by central differences in the weights of each net."""
    lam = 0.7
    learner = PreferencePBRL(GRID, Tracked(best, slow), penalty=ValuePenalty(lam), config=SMALL, env_kwargs=WORLD)
    learner.learn(1_000)
    mdp = learner.worlds.true_mdp()
    assert mdp is not None
    state, method = learner.state, learner.method
    assert isinstance(method, PreferencePBRLMethod)
    policies = [f.follower.model.table() for f in state.followers.values()]
    model = learner.model.double()
    penalty = method.further(state, dict.fromkeys(state.followers, 0), Progress(learner.num_timesteps, 1_000))
    net = model.members[0]
    weights = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    states, actions = torch.arange(S).repeat_interleave(A), torch.arange(A).repeat(S)

    def p(w: torch.Tensor) -> float:
        torch.nn.utils.vector_to_parameters(w, net.parameters())
        r = net(states, actions).reshape(S, A).detach()
        V = [float(mdp.rho @ policy_value(mdp.with_reward(r), pi, 0.0)) for pi in policies]
        return lam * (1.0 - GAMMA) * (V[0] - V[1])

    assert p(weights) > 0.0
    for member in model.members:
        member.zero_grad()
    penalty().backward()
    gradient = torch.cat([torch.zeros_like(w).ravel() if w.grad is None else w.grad.ravel() for w in net.parameters()])
    rng = np.random.default_rng(1)
    for _ in range(5):
        direction = torch.from_numpy(rng.normal(size=len(weights)))
        h = 1e-6
        slope = (p(weights + h * direction) - p(weights - h * direction)) / (2 * h)
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    torch.nn.utils.vector_to_parameters(weights, net.parameters())


def test_two_algorithms_learn_and_go_on_to_the_bit(tmp_path: Path) -> None:
    whole = PreferencePBRL(GRID, Tracked(best, slow), config=SMALL, seed=3, env_kwargs=WORLD).learn(2_112)
    part = PreferencePBRL(GRID, Tracked(best, slow), config=SMALL, seed=3, env_kwargs=WORLD)
    part.learn(2_112, callback=lambda learner: learner.iteration < 2)
    path = part.save(tmp_path / "part", replay=True)
    with pytest.raises(ValueError, match="callable that this leader was trained with"):
        PreferencePBRL.load(path)
    again = PreferencePBRL.load(path, Tracked(best, slow)).resume()
    np.testing.assert_array_equal(again.x, whole.x)
    for role, f in again.followers.items():
        assert torch.equal(f.follower.model.table(), whole.followers[role].follower.model.table())
    assert again.evaluate() == whole.evaluate()
    assert whole.evaluate().labels == 12


def test_it_is_an_sb3_model(tmp_path: Path, reward: np.ndarray) -> None:
    """The class itself is a follower; a saved one is read back to act with."""
    learner = DRLHF(GRID, Planner, config=replace(SMALL, labels=6), env_kwargs=WORLD).learn(600)
    planner = learner.best_response.follower.model
    assert isinstance(planner, Planner)
    planner.save(tmp_path / "planner")
    found = Planner.load(tmp_path / "planner")
    torch.testing.assert_close(found.table(), planner.table(), rtol=0.0, atol=0.0)
    action, _ = found.predict(np.array(3), deterministic=True)
    assert int(action) == int(planner.table()[3].argmax())


def test_other_worlds_and_wrong_arguments_are_refused(reward: np.ndarray) -> None:
    with pytest.raises(ValueError, match="env: expected a native tabular environment"):
        best(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    with pytest.raises(ValueError, match="env: expected a native tabular environment"):
        DRLHF("CartPole-v1", Planner, config=SMALL)
    with pytest.raises(ValueError, match="tau"):
        Planner("MlpPolicy", paid(reward), tau=0.0)
    with pytest.raises(ValueError, match="oracle"):
        Planner("MlpPolicy", paid(reward), oracle=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="follower"):
        PreferencePBRL(GRID, Tracked(A2C, 7), config=SMALL)  # type: ignore[arg-type]
