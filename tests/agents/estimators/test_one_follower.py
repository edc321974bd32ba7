"""x's gradient over one follower: from rollouts within their standard errors, through the known model to rounding."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from torch import Tensor

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import PBRL, KnownModel, PBRLConfig, Rollouts, ValuePenalty
from bilevel_gym.agents.estimators.base import GradientEstimate
from bilevel_gym.agents.estimators.rollouts import LinearCritic, OneHot, RolloutEstimator, collect, episode_returns
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP, TabularProblem, policy_return
from bilevel_gym.envs.tabular import TabularEnv
from tests.problems import assert_gradient, numerical_gradient

ENV_ID = "bilevel_gym/StackelbergGame-v0"


def estimated(leader: PBRL) -> GradientEstimate:
    found: GradientEstimate = leader.estimator(leader.state.x, leader.terms, leader.followers, leader.lam)
    return found


def dynamics_problem() -> TabularProblem:
    """x enters rewards and transitions alike."""
    rng = torch.Generator().manual_seed(4)
    S, A, dim = 4, 3, 3
    P, Q, r, g = (torch.rand(S, A, n, generator=rng, dtype=torch.float64) for n in (S, S, dim, dim))
    base = TabularMDP(P / P.sum(-1, keepdim=True), r[..., 0], torch.full((S,), 1 / S), 0.8)

    def transition(x: Tensor) -> Tensor:
        return torch.softmax(P + x[0] * Q + x[1] * Q**2, -1)

    return ArrayProblem(base, LeaderSet.box(dim, -2, 2), lambda x: r @ x, lambda x: g @ (1 - x), transition)


ENVS: dict[str, Any] = {
    "Stackelberg": lambda: gym.make(ENV_ID, n_states=4, n_leader_actions=3, n_follower_actions=3),
    "TwoState": lambda: gym.make("bilevel_gym/TwoState-v0"),
    "dynamics": lambda: TabularEnv(dynamics_problem()),
}


def fixed_policy(problem: TabularProblem, seed: int) -> Tensor:
    mdp = problem.follower_mdp(problem.start_x())
    return torch.softmax(
        torch.randn(mdp.r.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), -1
    )


@pytest.mark.parametrize(
    ("name", "gae_lambda"),
    [
        ("Stackelberg", 0.0),
        ("TwoState", 1.0),
        ("dynamics", 0.0),
        pytest.param("dynamics", 1.0, marks=pytest.mark.long),
    ],
)
def test_sampled_gradient_is_the_exact_one_within_its_standard_error(name: str, gae_lambda: float) -> None:
    config = PBRLConfig(estimator=Rollouts(512, 1e-4, gae_lambda, 0.9), n_envs=4)
    x0 = 0.3 * np.arange(1, 4) if name == "dynamics" else None
    leader = PBRL(ENVS[name](), A2C, penalty=ValuePenalty(lam=3.0), config=config, x0=x0)
    problem = leader.worlds.problem
    assert problem is not None
    rng = np.random.default_rng(0)
    policies = [fixed_policy(problem, seed) for seed in (1, 2)]
    for follower, pi in zip((leader.best_response, leader.penalised), policies, strict=True):

        def act(obs: Any, pi: Tensor = pi) -> Any:
            rows = pi.numpy()[leader.worlds.base_observation(obs)]
            return (rows.cumsum(-1) < rng.random((len(rows), 1))).sum(-1)

        follower.act = act
    estimates = []
    for k in range(60):
        ascent = estimated(leader).ascent
        if k >= 20:  # the critics have settled
            estimates.append(ascent.numpy())
    x = torch.from_numpy(leader.last_x).requires_grad_()
    mdp = problem.follower_mdp(x)
    hat, pi_y = policies
    objective = problem.leader_return(x, pi_y) + 3.0 * (policy_return(mdp, pi_y) - policy_return(mdp, hat))
    (exact,) = torch.autograd.grad(objective, [x])
    stderr = np.std(estimates, axis=0, ddof=1) / np.sqrt(len(estimates))
    z = (np.mean(estimates, axis=0) - exact.numpy()) / stderr
    assert np.abs(z).max() < 4.5
    assert np.square(z).mean() < 3.0
    assert np.all(stderr < 0.1 * np.abs(exact.numpy()).max())  # small enough to tell a wrong gradient


@pytest.mark.parametrize("name", list(ENVS))
def test_the_known_models_gradient_is_that_of_central_differences(name: str) -> None:
    x0 = 0.3 * np.arange(1, 4) if name == "dynamics" else None
    leader = PBRL(
        ENVS[name](), A2C, penalty=ValuePenalty(lam=3.0), config=PBRLConfig(estimator=KnownModel(), n_envs=4), x0=x0
    )
    problem = leader.worlds.problem
    assert problem is not None
    hat, pi_y = policies = [fixed_policy(problem, seed) for seed in (1, 2)]
    for follower, pi in zip((leader.best_response, leader.penalised), policies, strict=True):

        def probabilities(obs: Any, pi: Tensor = pi) -> Any:
            return pi.numpy()

        follower.probabilities = probabilities

    def objective(x: Tensor) -> Tensor:
        mdp = problem.follower_mdp(x)
        gap = policy_return(mdp, hat) - policy_return(mdp, pi_y)
        found: Tensor = problem.leader_return(x, pi_y) - 3.0 * gap
        return found

    found, x = estimated(leader), torch.from_numpy(leader.last_x)
    assert_gradient(found.ascent, numerical_gradient(objective, x))
    mdp = problem.follower_mdp(x)
    assert found.penalty.mean == pytest.approx(float(policy_return(mdp, hat) - policy_return(mdp, pi_y)), abs=1e-12)
    gain = float(problem.leader_return(x, pi_y) - problem.leader_return(x, hat))
    assert found.penalty.margin == pytest.approx(found.penalty.mean + gain / 3.0, abs=1e-12)
    assert found.penalty.stderr == found.penalty.margin_stderr == 0.0
    assert found.steps == 0


def batches_of(leader_reward: str, batches: int, n_envs: int = 8) -> tuple[PBRL, list[GradientEstimate], list[int]]:
    """Estimates where x's gradient is the same in every episode, or noise of mean 0; and the steps that were taken for each."""
    S = 4
    base = TabularMDP(torch.full((S, 2, S), 0.25), torch.zeros(S, 2), torch.full((S,), 0.25), 0.5)
    g = torch.ones(S, 2) if leader_reward == "certain" else torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).expand(S, 2)
    problem = ArrayProblem(base, LeaderSet.box(1, -1, 1), lambda x: 0.0 * x + base.r, lambda x: g * x)
    config = PBRLConfig(n_envs=4, estimator=Rollouts(n_envs=n_envs, tail=0.05, batches=batches))
    leader = PBRL(TabularEnv(problem), A2C, config=config)
    taken, step, found, steps = 0, leader.estimator.venv.step, [], []

    def counting(actions: Any) -> Any:
        nonlocal taken
        taken += n_envs
        return step(actions)

    leader.estimator.venv.step = counting
    for _ in range(20):
        before = taken
        found.append(estimated(leader))
        steps.append(taken - before)
    return leader, found, steps


def test_batches_grow_while_two_halves_of_the_episodes_disagree() -> None:
    leader, found, steps = batches_of("certain", batches=3)
    batch = 2 * 8 * leader.estimator.horizon
    assert steps == [batch] * 20 == [estimate.steps for estimate in found]
    assert [estimate.agreement for estimate in found] == pytest.approx([1.0] * 20)
    leader, found, steps = batches_of("noise", batches=3)
    assert steps == [estimate.steps for estimate in found]
    assert set(steps) == {batch, 2 * batch, 3 * batch}
    # It stops early only where the halves agree, and goes on to the last batch where they never do.
    agreed = [estimate.agreement >= 0.5 for estimate in found]
    assert all(agreed[i] for i in range(20) if steps[i] < 3 * batch)
    assert not all(agreed)
    assert np.mean([estimate.agreement for estimate in found]) < 0.6


@pytest.mark.parametrize(("batches", "n_envs"), [(1, 8), (1, 1)])
def test_one_batch_does_not_grow(batches: int, n_envs: int) -> None:
    leader, found, steps = batches_of("noise", batches, n_envs)
    assert set(steps) == {2 * n_envs * leader.estimator.horizon}
    assert {estimate.agreement for estimate in found} == {1.0}
    with pytest.raises(ValueError, match="batches: expected None or 1 where a batch is one episode"):
        Rollouts(n_envs=1, batches=2)


@pytest.mark.parametrize("name", ["Stackelberg", "TwoState", "dynamics"])
def test_two_halves_give_the_gradient_of_the_whole(name: str) -> None:
    whole, halves = (
        PBRL(ENVS[name](), A2C, config=PBRLConfig(n_envs=4, estimator=Rollouts(n_envs=16, batches=n)), seed=3)
        for n in (1, 2)
    )
    halves.estimator.most = 1  # one batch, in halves
    for _ in range(2):
        one, other = (estimated(leader) for leader in (whole, halves))
        assert torch.allclose(one.ascent, other.ascent, rtol=1e-12, atol=1e-12)
        assert one.steps == other.steps
        assert (one.penalty.mean, one.penalty.margin) == (other.penalty.mean, other.penalty.margin)


@pytest.mark.parametrize(
    ("env", "n_envs", "tail", "certain"),
    [(ENV_ID, 64, 0.05, True), ("bilevel_gym/LQStackelberg-v0", 16, 0.2, False)],
)
def test_observations_decide_how_many_episodes_are_played(env: str, n_envs: int, tail: float, certain: bool) -> None:
    leader = PBRL(env, A2C, config=PBRLConfig(n_envs=4))
    estimator = leader.estimator
    assert estimator.venv.num_envs == n_envs
    assert estimator.horizon == leader.worlds.horizon(tail)
    batch = 2 * n_envs * estimator.horizon
    assert estimator.certain == certain == leader.plan(200_000).certain
    # The leader's episodes take at most as many steps as the followers' training.
    assert estimator.most == (1 if certain else max(1, 2 * leader.config.follower_steps // batch))
    # A number of episodes is kept.
    fixed = PBRL(env, A2C, config=PBRLConfig(n_envs=4, estimator=Rollouts(6))).estimator
    assert (fixed.venv.num_envs, fixed.horizon, fixed.most) == (6, leader.worlds.horizon(0.05), 1)


def test_without_the_best_responses_term_the_gradient_is_wrong() -> None:
    problem = gym.make(ENV_ID, n_states=4).unwrapped.problem  # type: ignore[attr-defined]
    x = problem.start_x().requires_grad_()
    hat, pi_y = fixed_policy(problem, 1), fixed_policy(problem, 2)
    mdp = problem.follower_mdp(x)
    right = policy_return(mdp, pi_y) - policy_return(mdp, hat)
    wrong = policy_return(mdp, pi_y)
    a, b = (torch.autograd.grad(f, [x], retain_graph=True)[0] for f in (right, wrong))
    assert (a - b).norm() > 0.5 * a.norm()


def test_penalty_estimate_is_unbiased() -> None:
    config = PBRLConfig(estimator=Rollouts(4000, 1e-3, 0.0), n_envs=4)
    leader = PBRL(ENV_ID, A2C, config=config, env_kwargs={"n_states": 5})
    problem = leader.worlds.problem
    assert problem is not None
    mdp = problem.follower_mdp(problem.start_x())
    best, worst = mdp.r.argmax(-1), mdp.r.argmin(-1)
    leader.best_response.act = lambda obs: best.numpy()[leader.worlds.base_observation(obs)]
    leader.penalised.act = lambda obs: worst.numpy()[leader.worlds.base_observation(obs)]
    estimate = estimated(leader).penalty
    one_hot = (torch.nn.functional.one_hot(a, 5).double() for a in (best, worst))
    exact = float(policy_return(mdp, next(one_hot)) - policy_return(mdp, next(one_hot)))
    assert abs(estimate.mean - exact) < 4 * estimate.stderr
    assert estimate.stderr < 0.1 * exact


@pytest.mark.parametrize(("name", "value"), [("n_envs", 0), ("tail", 1.0), ("critic_memory", 1.0), ("gae_lambda", 1.5)])
def test_bad_rollouts_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Rollouts(**{name: value})


def test_a_time_limit_is_no_end() -> None:
    env = gym.make(ENV_ID, n_states=5, max_episode_steps=5)
    leader = PBRL(env, A2C, config=PBRLConfig(estimator=Rollouts(4000), n_envs=4))
    problem, pi = env.unwrapped.problem, fixed_policy(env.unwrapped.problem, 3)  # type: ignore[attr-defined]
    rng = np.random.default_rng(99)  # not the seed of the episodes: the draws would go together

    def act(obs: Any) -> Any:
        rows = pi.numpy()[leader.worlds.base_observation(obs)]
        return (rows.cumsum(-1) < rng.random((len(rows), 1))).sum(-1)

    assert leader.worlds.horizon(0.01) == 5
    assert isinstance(leader.estimator, RolloutEstimator)
    rollout = collect(leader.estimator.venv, act, 5, seed=0)
    sampled = episode_returns(rollout, leader.worlds.base_space, leader.worlds.gamma)
    x = problem.start_x()
    exact = policy_return(problem.follower_mdp(x), pi), problem.leader_return(x, pi)
    for values, value in zip(sampled, exact, strict=True):
        stderr = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - float(value)) < 4 * stderr + 0.01
        assert stderr < 0.02


@pytest.mark.parametrize("n", [3, 40])
def test_counted_transitions_give_the_sums_of_one_hot_features(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []
    for dense in (n, n - 1):  # products of matrices, then counts
        monkeypatch.setattr("bilevel_gym.agents.estimators.rollouts.DENSE", dense)
        rng, critic = np.random.default_rng(n), LinearCritic(OneHot(n), gamma=0.9, memory=0.7)
        for _ in range(3):
            obs, after = rng.integers(n, size=(2, 300))
            alive, terminated = (rng.random((2, 300)) < [[0.8], [0.3]]).astype(np.float64)
            critic.update(obs, after, rng.normal(size=(300, 2)), alive, terminated)
        fitted.append(critic)
    np.testing.assert_allclose(fitted[1].A, fitted[0].A, atol=1e-11)
    np.testing.assert_allclose(fitted[1].b, fitted[0].b, atol=1e-11)
    states = np.arange(n)
    np.testing.assert_allclose(fitted[1](states), np.eye(n) @ fitted[0].theta, rtol=1e-8)
