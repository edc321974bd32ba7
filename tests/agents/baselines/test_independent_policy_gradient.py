"""Independent policy gradient: its step, and what it cannot see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import Geometric, IndependentPolicyGradient, TabularPBRL
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.held_policies import Direct, Softmax
from bilevel_gym.envs.mdp import joint_return, policy_return, random_incentive_design
from bilevel_gym.envs.mdp.simplex import project_simplex
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import F64, PROBLEMS, assert_gradient, generator, numerical_gradient, random_x


@pytest.mark.parametrize("follower", [Softmax(), Direct(learning_rate=1e-3)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_each_level_steps_up_its_own_value(name: str, follower: Softmax | Direct) -> None:
    problem, tau, alpha = PROBLEMS[name](1), 0.2, 1e-3
    x_0 = random_x(problem, 1)
    mdp_0 = problem.follower_mdp(x_0)
    y_0 = follower.start(mdp_0)
    config = IndependentPolicyGradientConfig(
        follower=follower, learning_rate=alpha, tau=tau, optimizer_class=torch.optim.SGD
    )
    leader = IndependentPolicyGradient(problem, config=config, x0=x_0.numpy()).learn(1)
    pi_0 = follower.policy(y_0, mdp_0)
    assert_gradient(
        (torch.from_numpy(leader.last_x) - x_0) / alpha,
        numerical_gradient(lambda x: problem.leader_return(x, pi_0), x_0),
    )

    def own_value(y: Tensor) -> Tensor:
        return problem.over_contexts(policy_return(mdp_0, follower.policy(y, mdp_0), tau))

    assert leader.held is not None
    y_1 = y_0 + alpha * numerical_gradient(own_value, y_0)
    if isinstance(follower, Direct):
        y_1 = project_simplex(y_1, mdp_0.mask, follower.floor)
    assert_gradient((leader.held.ys[0].detach() - y_0) / alpha, (y_1 - y_0) / alpha)


def test_it_does_not_foresee_the_follower() -> None:
    """On the two-state problem the leader's own slope in x is always down: the price ends at its bound, the return near 0."""
    problem = TwoStateProblem()
    independent = IndependentPolicyGradient(problem, x0=[0.7]).learn(300)
    assert independent.last_x[0] == -1.0
    foreseeing = TabularPBRL(problem, x0=[0.7]).learn(100)
    assert foreseeing.evaluate().leader_return > 6.0 > 0.1 > independent.evaluate().leader_return


def test_the_last_x_is_the_answer() -> None:
    leader = IndependentPolicyGradient(TwoStateProblem(), x0=[0.7]).learn(25)
    np.testing.assert_array_equal(leader.x, leader.last_x)
    assert leader.evaluate().leader_return < max(record.leader_return for record in leader.history)
    best = IndependentPolicyGradient(
        TwoStateProblem(), config=IndependentPolicyGradientConfig(keep_best=True), x0=[0.7]
    )
    assert best.learn(25).evaluate().leader_return == max(record.leader_return for record in leader.history)


def test_the_follower_takes_the_leader_s_step_where_it_has_none_of_its_own() -> None:
    rates = []
    config = IndependentPolicyGradientConfig(learning_rate=Geometric(0.1, 0.001))
    IndependentPolicyGradient(TwoStateProblem(), config=config).learn(
        4,
        callback=lambda leader: rates.append([g["lr"] for g in leader.optimizer.param_groups]),
    )
    expected = [Geometric(0.1, 0.001)(1 - k / 4) for k in range(4)]
    assert rates == [[rate, rate] for rate in expected]


def test_over_a_game_each_player_steps_up_its_own_value() -> None:
    problem, tau, alpha = random_incentive_design(3, 2, 3, gamma=0.8, seed=1), 0.2, 1e-3
    config = IndependentPolicyGradientConfig(learning_rate=alpha, tau=tau, optimizer_class=torch.optim.SGD)
    leader = IndependentPolicyGradient(problem, config=config)
    assert leader.held is not None
    ys = [torch.randn(y.shape, generator=generator(i), dtype=F64) for i, y in enumerate(leader.held.ys)]
    with torch.no_grad():
        for y, start in zip(leader.held.ys, ys, strict=True):
            y.copy_(start)
    leader.learn(1)
    game = problem.game(problem.start_x())

    def value(y1: Tensor, y2: Tensor) -> Tensor:
        return joint_return(game, torch.softmax(y1, -1), torch.softmax(y2, -1), tau)

    up, down = (
        numerical_gradient(lambda y: value(y, ys[1]), ys[0]),
        numerical_gradient(lambda y: value(ys[0], y), ys[1]),
    )
    for y_0, y_1, ascent in zip(ys, leader.held.ys, (up, -down), strict=True):
        assert_gradient((y_1.detach() - y_0) / alpha, ascent)
    np.testing.assert_array_equal(leader.last_x, problem.start_x())  # x moves the designer's return through them alone
