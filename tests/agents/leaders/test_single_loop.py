"""The single-loop method: its sampled updates against exact gradients, what it is equal to, where it ends, and its verbs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import SingleLoop, SingleLoopConfig
from bilevel_gym.agents.leaders.single_loop import (
    Block,
    FiniteDifferences,
    FiniteDifferencesConfig,
    Followers,
    NestedLoopConfig,
    PartialSGD,
    Rates,
    World,
    finite_differences,
    frequencies,
    partial_sgd,
    single_loop,
    track,
)
from bilevel_gym.agents.schedules import Power
from bilevel_gym.envs.goal_placement import GoalPlacementProblem
from bilevel_gym.envs.mdp import (
    LeaderSet,
    TabularMDP,
    TabularProblem,
    policy_return,
    policy_value,
    random_stackelberg,
    solve_soft,
    suboptimality,
    visitation,
)
from bilevel_gym.envs.tabular import Floats
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import F64, PROBLEMS, array_problem, generator, random_mdp

S, A, DIM, TAU = 4, 3, 4, 0.3


class SmoothProblem(TabularProblem):
    """x enters the reward, not linearly, and a smooth f of x and the occupancy; everything takes leading axes."""

    batched_kernel: ClassVar[bool] = True

    def __init__(self, seed: int = 0) -> None:
        rng = generator(seed)
        self.base = random_mdp(seed, n_states=S, n_actions=A, gamma=0.7)
        self.leader_set = LeaderSet.box(DIM, -2.0, 2.0)
        self.tau = TAU
        self._phi = torch.randn(DIM, S * A, generator=rng, dtype=F64)
        self._psi = torch.randn(DIM, S * A, generator=rng, dtype=F64)
        self._target = torch.softmax(torch.randn(S * A, generator=rng, dtype=F64), -1).view(S, A)

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        return self.base.with_reward(self.base.r + 0.5 * (torch.sin(x) @ self._phi).unflatten(-1, (S, A)))

    def leader_reward(self, x: Tensor) -> None:
        return None

    def occupancy_return(self, x: Tensor, occupancy: Tensor) -> Tensor:
        priced = (occupancy * (x @ self._psi).unflatten(-1, (S, A))).sum((-2, -1))
        value: Tensor = -10.0 * (occupancy - self._target).square().sum((-2, -1)) - priced - 0.1 * x.square().sum(-1)
        return value

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        return self.occupancy_return(x, occupancy_of(self, x, pi))


def occupancy_of(problem: TabularProblem, x: Tensor, pi: Tensor) -> Tensor:
    mdp = problem.follower_mdp(x)
    return (1.0 - mdp.gamma) * visitation(mdp, pi).unsqueeze(-1) * pi


def softmax(theta: Floats) -> Tensor:
    return torch.softmax(torch.from_numpy(theta), -1)


def rates(n: int, alpha: float = 0.0, beta: float = 0.0, occupancy: float = 0.0, w: float = 0.5) -> Rates:
    return Rates(*(np.full(n, value) for value in (alpha, beta, occupancy, w, TAU)))


def at_equilibrium(world: World, theta: Floats, V: Floats, occupancy: Floats, n: int, seed: int = 0) -> Followers:
    """n copies of followers of these tables, ``[F, ...]``, whose states are drawn from their occupancies."""
    F = len(theta)
    rng = np.random.default_rng(seed)
    many = [np.repeat(table[:, None], n, 1) for table in (theta, V, occupancy)]
    followers = Followers(many[0], many[1], np.zeros((F, n), dtype=np.int64), many[2])
    followers = replace(followers, state=np.tile(world.begin(rng.random(n)), (F, 1)))
    reward = np.zeros((F, n, S, A))
    followers, _ = track(world, followers, reward, rates(n), rng.random((30, 3, n)))  # 0.7^30 = 2e-5
    return followers


def assert_mean(samples: Any, expected: Any) -> None:
    """Every entry of the mean over the first axis within 4.5 of its standard errors, and those errors small enough to tell."""
    samples, expected = np.asarray(samples), np.asarray(expected)
    stderr = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert np.linalg.norm(stderr) < 0.1 * np.linalg.norm(expected), "too noisy to prove anything"
    live = stderr > 1e-12
    z = (samples.mean(0) - expected)[live] / stderr[live]
    assert np.abs(z).max() < 4.5
    np.testing.assert_allclose(samples.mean(0)[~live], expected[~live], atol=1e-9)


def tables(problem: SmoothProblem, seed: int = 0) -> tuple[Floats, Floats]:
    """Logits of two policies, ``[2, S, A]``, and critics that are none of theirs, ``[2, S]``."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, S, A)), rng.normal(size=(2, S))


# --- the sampled updates ------------------------------------------------------------------------------------------------


def test_actor_and_critic_step_along_their_expectations_whatever_the_critic() -> None:
    problem, n = SmoothProblem(), 10_000
    x = torch.full((DIM,), 0.3, dtype=F64)
    mdp, world = problem.follower_mdp(x), World.of(problem)
    theta, V = tables(problem)
    start = at_equilibrium(world, theta, V, np.full((2, S, A), 1 / (S * A)), n)
    u = np.random.default_rng(1).random((1, 3, n))
    paid = np.broadcast_to(mdp.r.numpy(), (2, n, S, A))
    after, _ = track(world, start, paid, rates(n, alpha=1.0, beta=1.0), u)
    for i in range(2):
        pi = softmax(theta[i])
        m = (1.0 - mdp.gamma) * visitation(mdp, pi)
        v = torch.from_numpy(V[i])
        delta = mdp.r - TAU * pi.log() + mdp.gamma * mdp.P @ v - v.unsqueeze(-1)  # expected over s', [S, A]
        weighted = m.unsqueeze(-1) * pi * delta
        assert_mean(after.V[i] - V[i], weighted.sum(-1))
        assert_mean(after.theta[i] - theta[i], weighted - pi * weighted.sum(-1, keepdim=True))


def test_with_its_own_value_as_critic_the_best_response_climbs_j_tau() -> None:
    problem, n = SmoothProblem(1), 10_000
    x = torch.full((DIM,), -0.4, dtype=F64)
    mdp, world = problem.follower_mdp(x), World.of(problem)
    theta, _ = tables(problem, 1)
    V = torch.stack([policy_value(mdp, softmax(t), TAU) for t in theta]).numpy()
    start = at_equilibrium(world, theta, V, np.full((2, S, A), 1 / (S * A)), n)
    paid = np.broadcast_to(mdp.r.numpy(), (2, n, S, A))
    u = np.random.default_rng(2).random((1, 3, n))
    after, _ = track(world, start, paid, rates(n, alpha=1.0, beta=1.0), u)
    y = torch.from_numpy(theta[0]).requires_grad_()
    (exact,) = torch.autograd.grad(policy_return(mdp, torch.softmax(y, -1), TAU), y)
    assert_mean(after.theta[0] - theta[0], (1.0 - mdp.gamma) * exact)
    drift = (after.V[0] - V[0]).mean(0) / ((after.V[0] - V[0]).std(0) / np.sqrt(n))
    assert np.abs(drift).max() < 4.5  # the critic's fixed point


def test_the_leader_and_the_penalised_follower_step_along_the_gradients_of_l() -> None:
    problem, n, w = SmoothProblem(2), 20_000, 0.5
    x = torch.tensor([0.5, -0.3, 0.2, 0.8], dtype=F64)
    mdp, world = problem.follower_mdp(x), World.of(problem)
    theta, _ = tables(problem, 2)
    pi, pi_L = softmax(theta[0]), softmax(theta[1])
    occupancy = torch.stack([occupancy_of(problem, x, p) for p in (pi, pi_L)])
    m = occupancy[1].clone().requires_grad_()
    (c,) = torch.autograd.grad(-problem.occupancy_return(x, m), m)
    paid = [mdp.r, mdp.r - w * (1.0 - mdp.gamma) * c]
    V = torch.stack([policy_value(mdp.with_reward(r), p, TAU) for r, p in zip(paid, (pi, pi_L), strict=True)])
    start = at_equilibrium(world, theta, V.numpy(), occupancy.numpy(), n)
    u = np.random.default_rng(3).random((1, 3, n))
    block = Block(problem, world, start, x.expand(n, -1), rates(n, alpha=1.0, w=w), u)
    after, gradient = single_loop(block)

    z, y = x.clone().requires_grad_(), torch.from_numpy(theta[1]).requires_grad_()
    p_L = torch.softmax(y, -1)
    penalty = policy_return(problem.follower_mdp(z), pi, TAU) - policy_return(problem.follower_mdp(z), p_L, TAU)
    L = -problem.leader_return(z, p_L) + penalty / w
    grad_x, grad_y = torch.autograd.grad(L, (z, y))
    assert_mean(gradient, grad_x)
    assert_mean(after.theta[1] - theta[1], -w * (1.0 - mdp.gamma) * grad_y)


def test_common_random_numbers_take_the_noise_out_of_the_difference() -> None:
    problem, n = SmoothProblem(3), 500
    world, rng = World.of(problem), np.random.default_rng(0)
    theta = np.repeat(rng.normal(size=(1, S, A)), 2, 0)
    theta[1] += 0.05 * rng.normal(size=(S, A))
    u = rng.random((200, 3, n))
    reward = np.zeros((2, n, S, A))
    start = at_equilibrium(world, theta, np.zeros((2, S)), np.full((2, S, A), 1 / (S * A)), n)
    _, pairs = track(world, start, reward, rates(n), u)
    _, apart = track(world, start, reward, rates(n), rng.random((200, 3, n)))
    (one, two), (_, other) = frequencies(world, pairs), frequencies(world, apart)
    assert (one - two).std(0).sum() < 0.3 * (one - other).std(0).sum()


def test_finite_differences_average_to_the_gradient() -> None:
    """Followers held: f at the occupancies of both is a quadratic of x alone, and the estimate unbiased."""
    problem, n = SmoothProblem(4), 5000
    world = World.of(problem)
    x = torch.tensor([0.5, -0.3, 0.2, 0.8], dtype=F64)
    theta = np.repeat(tables(problem)[0][:1], 2, 0)
    start = at_equilibrium(world, theta, np.zeros((2, S)), np.full((2, S, A), 1 / (S * A)), n)
    u = np.random.default_rng(5).random((20, 3, n))
    directions = torch.randn(n, DIM, generator=generator(6), dtype=F64)
    block = Block(problem, world, start, x.expand(n, -1), rates(n), u)
    _, gradient = finite_differences(block, directions, 0.01)
    m = occupancy_of(problem, x, softmax(theta[0]))
    z = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(-problem.occupancy_return(z, m), z)
    assert_mean(gradient, exact)


def test_partial_sgd_follows_the_partial_derivative_at_its_estimate_of_the_occupancy() -> None:
    problem = SmoothProblem(5)
    world = World.of(problem)
    x = torch.tensor([[0.5, -0.3, 0.2, 0.8]], dtype=F64)
    followers = Followers.new(world, 1, np.array([0.5]))
    followers, gradient = partial_sgd(Block(problem, world, followers, x, rates(1), np.full((1, 3, 1), 0.5)))
    z = x.clone().requires_grad_()
    uniform = torch.full((1, S, A), 1 / (S * A), dtype=F64)
    (exact,) = torch.autograd.grad(-problem.occupancy_return(z, uniform).sum(), z)
    torch.testing.assert_close(gradient, exact)


# --- what it is equal to ------------------------------------------------------------------------------------------------


def random_block(n: int, K: int, seed: int = 0) -> Block:
    problem, rng = SmoothProblem(seed), np.random.default_rng(seed)
    world = World.of(problem)
    followers = replace(Followers.new(world, 2, rng.random(n)), theta=rng.normal(size=(2, n, S, A)))
    x = torch.from_numpy(rng.normal(size=(n, DIM)))
    return Block(problem, world, followers, x, rates(n, 0.5, 0.3, 0.1), rng.random((K, 3, n)))


def test_runs_side_by_side_are_runs_one_by_one() -> None:
    block = random_block(3, 7)
    after, gradient = single_loop(block)
    for i in range(3):
        own = Followers(**{name: value[:, i : i + 1] for name, value in vars(block.followers).items()})
        alone = replace(
            block, followers=own, x=block.x[i : i + 1], rates=rates(1, 0.5, 0.3, 0.1), u=block.u[..., i : i + 1]
        )
        after_alone, gradient_alone = single_loop(alone)
        torch.testing.assert_close(gradient_alone[0], gradient[i])
        for name, value in vars(after_alone).items():
            np.testing.assert_allclose(value[:, 0], vars(after)[name][:, i], rtol=1e-12)


def test_a_block_is_its_iterates_one_by_one_under_the_same_rewards() -> None:
    block = random_block(2, 6)
    reward = np.random.default_rng(1).normal(size=(2, 2, S, A))
    whole, pairs = track(block.world, block.followers, reward, block.rates, block.u)
    followers, seen = block.followers, []
    for t in range(6):
        followers, pair = track(block.world, followers, reward, block.rates, block.u[t : t + 1])
        seen.append(pair)
    np.testing.assert_array_equal(pairs, np.concatenate(seen))
    for name, value in vars(whole).items():
        np.testing.assert_allclose(value, vars(followers)[name], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(whole.occupancy.sum((-2, -1)), 1.0)


def test_nothing_passed_in_is_changed() -> None:
    block = random_block(2, 5)
    before = {name: value.copy() for name, value in vars(block.followers).items()}
    single_loop(block)
    for name, value in before.items():
        np.testing.assert_array_equal(vars(block.followers)[name], value)


def test_a_fixed_tau_is_a_schedule_that_stands_still() -> None:
    problem = TwoStateProblem()
    one = SingleLoop(problem, config=SingleLoopConfig(tau=0.2), x0=[0.5]).learn(2000)
    two = SingleLoop(problem, config=SingleLoopConfig(tau=Power(0.2, 0.2, 0.05)), x0=[0.5]).learn(2000)
    np.testing.assert_array_equal(one.x, two.x)
    assert one.tau == two.tau == 0.2


def test_a_nested_loop_s_gradient_is_that_of_the_block_s_last_part() -> None:
    block = random_block(1, 10)
    after, gradient = single_loop(replace(block, burn_in=6))
    half, _ = single_loop(replace(block, u=block.u[:6], burn_in=0))
    whole, everything = single_loop(block)
    for name, value in vars(after).items():
        np.testing.assert_array_equal(value, vars(whole)[name])
    held = replace(block, rates=rates(1))  # nothing learns: the parts of a block average to the whole
    _, last = single_loop(replace(held, burn_in=6))
    _, all_of_it = single_loop(held)
    then, first = single_loop(replace(held, u=held.u[:6]))
    torch.testing.assert_close(0.6 * first + 0.4 * last, all_of_it)
    assert not torch.equal(gradient, everything)
    assert not np.array_equal(half.state, then.state) or half.state.shape == (2, 1)


# --- where it ends ------------------------------------------------------------------------------------------------------


def test_it_arrives_at_the_two_state_optimum() -> None:
    """The closed form at tau = 0.3; at the start the follower declines and F is nearly flat."""
    problem = TwoStateProblem(tau=0.3)
    config = SingleLoopConfig(
        learning_rate=Power(3e-4, 3e-5, 0.9),
        tau=0.3,
        w=Power(0.5, 0.15, 0.5),
        alpha=Power(1.0, 0.1, 0.5),
        beta=Power(0.3, 0.04, 0.5),
        eval_every=5000,
    )
    leader = SingleLoop(problem, config=config, seed=0, x0=[0.0]).learn(60_000)
    optimum = problem.optimum(0.3)
    assert leader.x[0] == pytest.approx(float(optimum.x), abs=0.15)
    assert leader.evaluate().leader_return > 0.95 * optimum.leader_return


def test_it_learns_where_to_place_reward() -> None:
    """At tau = 0.1, against the leader that places nothing."""
    config = SingleLoopConfig(
        learning_rate=Power(1e-4, 1e-5, 0.9), tau=Power(0.3, 0.1, 0.5), w=Power(2.0, 0.7, 0.15), eval_every=5000
    )
    leader = SingleLoop(GoalPlacementProblem(size=5, tau=0.1, seed=0), config=config, seed=0).learn(60_000)
    assert leader.evaluate().leader_return > 0.4 * leader.history[0].leader_return  # both below 0


# --- its verbs ----------------------------------------------------------------------------------------------------------

SMALL = GoalPlacementProblem(size=3)


@pytest.mark.parametrize(
    ("method", "config", "spent"),
    [
        (SingleLoop, SingleLoopConfig(block=7), 14),
        (SingleLoop, NestedLoopConfig(block=30, burn_in=10), 60),
        (PartialSGD, SingleLoopConfig(block=7), 7),
        (FiniteDifferences, FiniteDifferencesConfig(block=30, burn_in=10), 60),
    ],
    ids=["single loop", "nested loop", "partial SGD", "finite differences"],
)
def test_transitions_are_counted_and_a_file_goes_on_bit_for_bit(
    method: type[SingleLoop], config: SingleLoopConfig, spent: int, tmp_path: Path
) -> None:
    config = replace(config, eval_every=5, learning_rate=1e-3)
    leader = method("bilevel_gym/GoalPlacement-v0", config=config, seed=3, env_kwargs={"size": 3}, x0=[0.5] * 9)
    leader.learn(8 * spent - 1)
    assert (leader.num_timesteps, leader.iteration) == (8 * spent, 8)
    assert [record.steps for record in leader.history] == [0, 5 * spent, 8 * spent]
    path = leader.save(tmp_path / "leader")
    twin = method.load(path)
    assert twin.evaluate() == leader.evaluate()
    np.testing.assert_array_equal(twin.x, leader.x)
    for one in (leader, twin):
        one.learn(5 * spent, reset_num_timesteps=False)
    np.testing.assert_array_equal(twin.x, leader.x)
    assert twin.history == leader.history
    for name, value in vars(leader.followers).items():
        np.testing.assert_array_equal(vars(twin.followers)[name], value)
    moved = method(SMALL, config=config, seed=4, x0=[0.5] * 9).learn(13 * spent)
    assert np.array_equal(moved.x, leader.x) == (method is PartialSGD)  # d_x f = 0 in this problem


def test_evaluation_is_that_of_the_penalised_follower() -> None:
    leader = SingleLoop(SMALL, config=SingleLoopConfig(w=Power(2.0, 0.5, 0.15))).learn(400)
    record = leader.evaluate()
    pi_L = torch.from_numpy(leader.followers.policies[1, 0])
    x = torch.from_numpy(leader.x)
    assert record.leader_return_at_pi_y == pytest.approx(float(SMALL.leader_return(x, pi_L)), abs=1e-12)
    assert record.lam == pytest.approx(1.0 / leader.w)
    assert 0.5 < leader.w < 0.6
    mdp, answer = SMALL.follower_mdp(x), torch.from_numpy(leader.followers.policies[0, 0])
    optimum = solve_soft(mdp, leader.tau)
    assert record.penalty == pytest.approx(float(suboptimality(mdp, pi_L, leader.tau, optimum)), abs=1e-9)
    assert record.follower_regret == pytest.approx(float(suboptimality(mdp, answer, leader.tau, optimum)), abs=1e-9)
    assert PartialSGD(SMALL).learn(50).evaluate().lam is None


def test_a_file_of_another_problem_is_refused(tmp_path: Path) -> None:
    """Problems that differ in what the leader wants and in nothing else."""
    path = SingleLoop(SMALL).learn(100).save(tmp_path / "leader")
    with pytest.raises(ValueError, match=r"^problem: expected the problem of"):
        SingleLoop.load(path, GoalPlacementProblem(size=3, width=2.0))
    with pytest.raises(ValueError, match=r"^path: expected the file of a PartialSGD, got that of a SingleLoop"):
        PartialSGD.load(path, SMALL)


@pytest.mark.parametrize(
    ("problem", "wanted"),
    [
        (random_stackelberg(4, 2, 2), "an x that affects the follower's reward and not its transitions"),
        (PROBLEMS["contexts"](0), "a single context"),
        (array_problem(random_mdp(0, terminal=True), 0, dynamics=False), "no terminal states"),
        (array_problem(random_mdp(0, masked=True), 0, dynamics=False), "all actions available"),
        ("bilevel_gym/RandomMDP-v0", "a J_L that is a function of x and the occupancy"),
    ],
)
def test_problems_it_is_not_for_are_named(problem: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"^problem: expected .*{wanted}"):
        SingleLoop(problem)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"block": 0}, "block: expected"),
        ({"block": 5, "burn_in": 5}, "burn_in: expected less than block, 5, got 5"),
        ({"burn_in": -1}, "burn_in: expected"),
        ({"w": 0.0}, "w: expected"),
        ({"alpha": -1.0}, "alpha: expected"),
        ({"beta": float("nan")}, "beta: expected"),
        ({"occupancy_rate": 1.5}, "occupancy_rate: expected"),
        ({"learning_rate": Power(1.0, 0.1, 0.5), "eval_every": 0}, "eval_every: expected"),
    ],
)
def test_wrong_settings_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SingleLoopConfig(**kwargs)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^tau: expected"):
        SingleLoop(SMALL, config=SingleLoopConfig(tau=-0.1))
    with pytest.raises(ValueError, match=r"^config: expected a FiniteDifferencesConfig"):
        FiniteDifferences(SMALL, config=SingleLoopConfig())
    with pytest.raises(ValueError, match=r"^h: expected"):
        FiniteDifferencesConfig(h=0.0)
    with pytest.raises(ValueError, match=r"^total_timesteps: expected"):
        SingleLoop(SMALL).learn(0)
    with pytest.raises(ValueError, match=r"^seed: expected"):
        SingleLoop(SMALL, seed=-1)
