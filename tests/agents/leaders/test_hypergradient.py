"""The exact hypergradient against central differences of the leader's return at the follower solved anew, and where it leads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import (
    Geometric,
    Hypergradient,
    HypergradientConfig,
    Linear,
    leader_return_at_best_response,
)
from bilevel_gym.agents.leaders.hypergradient import hypergradient, soft_leader_return
from bilevel_gym.agents.schedules import Constant, Quench
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    TabularMDP,
    TabularProblem,
    ZeroSumGame,
    action_value,
    attach_nash,
    random_incentive_design,
    random_stackelberg,
    soft_policy,
    solve_nash,
    solve_soft,
)
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import (
    PROBLEMS,
    array_problem,
    assert_gradient,
    autograd,
    generator,
    numerical_gradient,
    random_mdp,
    random_x,
    relative_error,
)


def solved_anew(problem: TabularProblem, x: Tensor, tau: float) -> Tensor:
    return problem.leader_return(x, solve_soft(problem.follower_mdp(x).detach(), tau, tol=1e-13).pi)


@pytest.mark.parametrize("tau", [0.5, 0.1, 1e-3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_hypergradient_is_the_gradient(name: str, seed: int, tau: float) -> None:
    problem = PROBLEMS[name](seed)
    x = random_x(problem, seed)
    numerical = numerical_gradient(lambda z: solved_anew(problem, z, tau), x, h=2e-3 * tau)
    assert_gradient(autograd(lambda z: soft_leader_return(problem, z, tau)[0], x), numerical)
    value, gradient, _ = hypergradient(problem, x, tau)
    assert_gradient(gradient, numerical)
    assert float(value) == pytest.approx(float(solved_anew(problem, x, tau)), rel=1e-9)


@pytest.mark.parametrize(
    "base",
    [
        random_mdp(7, n_states=1, n_actions=2, gamma=0.9),
        random_mdp(7, n_states=2, n_actions=2, gamma=0.0),
        random_mdp(7, n_states=3, gamma=0.99, scale=100.0),
        random_mdp(7, n_states=1, n_actions=3, terminal=True, terminal_entropy=True),
        random_mdp(7, batch=(2,), n_states=3, gamma=0.5, masked=True),
    ],
    ids=["one state", "gamma 0", "big rewards", "one step", "contexts"],
)
def test_the_hypergradient_at_the_edges(base: TabularMDP) -> None:
    weights = torch.full(base.batch_shape, 0.5, dtype=torch.float64) if base.batch_shape else None
    problem, tau = array_problem(base, 7, dynamics=True, context_probs=weights), 1.0
    x = random_x(problem, 7)
    numerical = numerical_gradient(lambda z: solved_anew(problem, z, tau), x)
    assert_gradient(autograd(lambda z: soft_leader_return(problem, z, tau)[0], x), numerical)
    assert_gradient(hypergradient(problem, x, tau)[1], numerical)


@pytest.mark.parametrize("name", ["dynamics", "terminal, masked", "Stackelberg", "contexts"])
def test_without_the_adjoint_solve_it_is_wrong(name: str) -> None:
    """The direct derivative alone, and the one that lets the follower look one step ahead only."""
    problem, tau = PROBLEMS[name](0), 0.5
    x = random_x(problem, 0)
    answer = solve_soft(problem.follower_mdp(x), tau)

    def follower_that_looks_one_step_ahead(z: Tensor) -> Tensor:
        mdp = problem.follower_mdp(z)
        return problem.leader_return(z, soft_policy(mdp, action_value(mdp, answer.V), tau))

    numerical = numerical_gradient(lambda z: solved_anew(problem, z, tau), x)
    for wrong in (lambda z: problem.leader_return(z, answer.pi), follower_that_looks_one_step_ahead):
        assert relative_error(autograd(wrong, x), numerical) > 1e-3  # a thousand times the tolerance


@pytest.mark.parametrize("tau", [0.5, 0.1, 0.03])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95])
def test_it_arrives_at_the_two_state_optimum(gamma: float, tau: float) -> None:
    problem = TwoStateProblem(gamma=gamma, tau=tau)
    config = HypergradientConfig(tau=tau, learning_rate=Geometric(0.2, 1e-3), eval_every=1000, keep_best=False)
    leader = Hypergradient(problem, config=config, x0=[0.5]).learn(300)
    optimum = problem.optimum(tau)
    assert leader.last_x[0] == pytest.approx(float(optimum.x), abs=1e-6)
    assert leader.evaluate().leader_return == pytest.approx(optimum.leader_return, rel=1e-9)


def test_the_gradient_vanishes_at_the_two_state_optimum_and_nowhere_near() -> None:
    problem, tau = TwoStateProblem(), 0.1
    x_star = problem.optimum(tau).x
    for shift in (-0.05, 0.0, 0.05):
        slope = float(autograd(lambda z: soft_leader_return(problem, z, tau)[0], x_star + shift))
        assert abs(slope) < 1e-9 if shift == 0.0 else slope * shift < -0.01


def test_an_objective_that_is_no_return_is_left_to_autograd() -> None:
    class Squared(ArrayProblem):
        def leader_reward(self, x: Tensor) -> None:  # type: ignore[override]
            return None

        def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
            return -(pi.square().sum() + x.square().sum())

    base = array_problem(random_mdp(3), 3, dynamics=True)
    problem = Squared(base.base, base.leader_set, base._follower_reward, base._leader_reward, base._transition)
    x, tau = random_x(problem, 3), 0.2
    numerical = numerical_gradient(lambda z: solved_anew(problem, z, tau), x)
    assert_gradient(hypergradient(problem, x, tau)[1], numerical)


def test_a_leader_that_moves_nothing_has_no_gradient() -> None:
    base = random_mdp(3)
    problem = ArrayProblem(base, LeaderSet.box(2, -1.0, 1.0), lambda x: base.r, lambda x: base.r.square())
    value, gradient, _ = hypergradient(problem, problem.start_x(), 0.2)
    assert gradient.tolist() == [0.0, 0.0]
    assert float(value) == pytest.approx(float(solved_anew(problem, problem.start_x(), 0.2)), rel=1e-12)


def test_a_warm_start_changes_nothing() -> None:
    problem = PROBLEMS["dynamics"](1)
    x = random_x(problem, 1)
    near = soft_leader_return(problem, x + 0.01, 0.1)[1]
    (cold, _), (warm, answer) = soft_leader_return(problem, x, 0.1), soft_leader_return(problem, x, 0.1, near)
    assert float(warm.detach()) == pytest.approx(float(cold.detach()), rel=1e-11)
    assert answer.residual < 1e-10


def test_a_quench_is_one_leader_after_another() -> None:
    """Hot first, then cold from where the hot one ended, with an optimiser of its own."""
    problem = PROBLEMS["dynamics"](1)

    def learned(tau: Any, iterations: int, x0: Any = None) -> Hypergradient:
        return Hypergradient(
            problem, config=HypergradientConfig(learning_rate=0.1, tau=tau, eval_every=1000), x0=x0
        ).learn(iterations)

    hot = learned(0.5, 10).last_x
    cold = learned(0.05, 15, hot).last_x
    both = learned(Quench(0.5, 0.05, 0.4), 25)
    np.testing.assert_allclose(both.last_x, cold, rtol=1e-9)
    assert np.abs(cold - hot).max() > 0.1
    both.learn(25)  # counting anew it is hot again
    np.testing.assert_allclose(both.last_x, learned(0.05, 15, learned(0.5, 10, cold).last_x).last_x, rtol=1e-7)


def test_the_leader_learns() -> None:
    games = [random_stackelberg(5, 3, 3, gamma=0.8, sparsity=0.3, seed=seed) for seed in range(5)]
    config = HypergradientConfig(keep_best=False, eval_every=1000)
    xs = [torch.from_numpy(Hypergradient(game, config=config).learn(80).last_x) for game in games]
    learned = np.array([leader_return_at_best_response(game, x) for game, x in zip(games, xs, strict=True)])
    start = np.array([leader_return_at_best_response(game, game.start_x()) for game in games])
    others = np.array([leader_return_at_best_response(game, xs[k - 1]) for k, game in enumerate(games)])
    assert bool((learned > start).all())
    assert bool((learned > others).all())


def test_its_own_follower_is_the_best_response() -> None:
    record = Hypergradient(TwoStateProblem(), config=HypergradientConfig(tau=0.1)).learn(3).evaluate()
    assert record.gap == pytest.approx(0.0, abs=1e-11)
    assert record.leader_return_at_pi_y == pytest.approx(record.leader_return, rel=1e-11)
    assert record.penalty is None
    assert record.lam is None


@pytest.mark.parametrize("tau", [0.5, 0.1, 0.05])
@pytest.mark.parametrize("seed", range(2))
def test_over_a_game_it_is_the_derivative_through_the_equilibrium(seed: int, tau: float) -> None:
    problem = random_incentive_design(3, 2, 3, gamma=0.8, seed=seed)
    x = 0.5 * torch.randn(problem.leader_dim, generator=generator(seed), dtype=torch.float64)

    def at_nash(z: Tensor) -> Tensor:
        nash = solve_nash(problem.game(z), tau, tol=1e-13)
        return problem.leader_return(z, (nash.pi1, nash.pi2))

    numerical = numerical_gradient(at_nash, x, h=1e-2 * tau)
    implicit = autograd(lambda z: soft_leader_return(problem, z, tau)[0], x)
    assert_gradient(implicit, numerical)

    def players_that_look_one_step_ahead(z: Tensor) -> Tensor:
        game, nash = problem.game(z), solve_nash(problem.game(z).detach(), tau)
        one_shot = ZeroSumGame(game.P, game.r + problem.gamma * (game.P @ nash.V), game.rho, 0.0, validate=False)
        attached = attach_nash(one_shot, tau, nash)
        return problem.leader_return(z, (attached.pi1, attached.pi2))

    assert relative_error(autograd(players_that_look_one_step_ahead, x), numerical) > 1e-3


def test_over_games_it_learns_and_its_players_are_at_equilibrium(tmp_path: Path) -> None:
    for seed in range(2):
        problem = random_incentive_design(seed=seed)
        leader = Hypergradient(problem, config=HypergradientConfig(tau=problem.tau)).learn(100)
        assert leader.history[-1].leader_return > leader.history[0].leader_return + 2.0
        record = leader.evaluate()
        assert record.gap == pytest.approx(0.0, abs=1e-9)
        assert record.leader_return_at_pi_y == pytest.approx(record.leader_return, rel=1e-8)
    loaded = Hypergradient.load(leader.save(tmp_path / "leader"), problem)
    for one in (leader, loaded):
        one.learn(3, reset_num_timesteps=False)
    np.testing.assert_array_equal(loaded.last_x, leader.last_x)


@pytest.mark.parametrize("tau", [0.0, -0.1, float("nan"), Linear(0.1, 0.0), Constant(0.0)])
def test_it_needs_entropy(tau: Any) -> None:
    with pytest.raises(ValueError, match=r"^tau: expected a number in \("):
        Hypergradient(TwoStateProblem(), config=HypergradientConfig(tau=tau))
    with pytest.raises(ValueError, match=r"^tau: "):
        Hypergradient(TwoStateProblem(tau=0.0), config=HypergradientConfig(tau=0.0))


@pytest.mark.parametrize("tau", [0.5, 0.1, 0.001, 0.0])
def test_the_default_temperature_ends_at_that_of_evaluation(tau: float) -> None:
    """From 0.4 units of the reward; where the problem states no temperature, to 0.003 of them."""
    leader = Hypergradient(TwoStateProblem(tau=tau))
    unit = leader.problem.reward_unit
    end = tau or 0.003 * unit
    assert leader.tau == pytest.approx(max(0.4 * unit, end))
    assert leader.schedule(0.0) == pytest.approx(end)
