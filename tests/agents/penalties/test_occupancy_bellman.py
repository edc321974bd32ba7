"""The Bellman penalty weighted by pi_y's occupancy, as the sampled method has it, held to definitions and differences.

p(x,y) = tau sum_s d_y(s) KL(pi_y(.|s) || pi*_x(.|s)); where the last step earns no entropy, its states' terms are the regret.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from bilevel_gym.agents.held_policies import Solved
from bilevel_gym.agents.lower_levels import OneFollower
from bilevel_gym.agents.penalties import ValuePenalty
from bilevel_gym.envs.mdp import (
    TabularMDP,
    TabularProblem,
    action_value,
    policy_return,
    policy_return_gradient,
    policy_value,
    solve_soft,
    visitation,
)
from tests.problems import (
    PROBLEMS,
    array_problem,
    assert_gradient,
    autograd,
    numerical_gradient,
    random_mdp,
    random_policy,
    random_x,
    true_bellman_penalty,
    true_value_penalty,
)

TAU, LAM = 0.3, 3.0
ALIVE = ["reward", "dynamics", "terminal entropy", "contexts", "contexts, shared P", "Stackelberg"]


def lived(mdp: TabularMDP) -> TabularMDP:
    """Every step earns its entropy, as for learned followers."""
    return TabularMDP(mdp.P, mdp.r, mdp.rho, mdp.gamma, mdp.terminal, mdp.mask, terminal_entropy=True, validate=False)


def penalty(mdp: TabularMDP, pi: Tensor, tau: float = TAU) -> Tensor:
    """By the definition: KL to the pi* solved for here and now, weighted by the visitation of pi."""
    return true_bellman_penalty(mdp, pi, tau, visitation(mdp, pi))


def problem_and_policy(name: str, seed: int) -> tuple[TabularProblem, Tensor, Tensor]:
    problem = PROBLEMS[name](seed)
    x = random_x(problem, seed)
    return problem, x, random_policy(problem.follower_mdp(x), seed + 1)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(PROBLEMS))
def test_it_is_the_value_penalty_of_the_regularised_problem(name: str, seed: int) -> None:
    problem, x, pi = problem_and_policy(name, seed)
    mdp = lived(problem.follower_mdp(x))
    p = penalty(mdp, pi)
    assert float(p.min()) > 1e-3
    torch.testing.assert_close(p, true_value_penalty(mdp, pi, TAU), rtol=1e-10, atol=1e-11)
    best = solve_soft(mdp, TAU).pi
    torch.testing.assert_close(penalty(mdp, best), torch.zeros_like(p), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_gradient_in_x_is_that_of_two_regularised_returns(name: str) -> None:
    """Also where x moves the dynamics, and d_y with them: G_t of regularised returns is all that is added."""
    problem, x, pi = problem_and_policy(name, 2)
    star = solve_soft(lived(problem.follower_mdp(x)), TAU, tol=1e-13).pi

    def exact(z: Tensor) -> Tensor:
        return problem.over_contexts(penalty(lived(problem.follower_mdp(z)), pi))

    def value(z: Tensor) -> Tensor:
        mdp = lived(problem.follower_mdp(z))
        return problem.over_contexts(ValuePenalty().value(OneFollower(problem), mdp, (pi,), (star,), TAU))

    got = autograd(value, x)
    assert_gradient(got, numerical_gradient(exact, x))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_x_enters_the_reward_alone_the_occupancy_is_held(seed: int) -> None:
    """grad_x p = sum_s d_y(s) [ E_{pi*} - E_{pi_y} ] grad_x Q*(s,.); not so where x moves the dynamics."""
    apart = {}
    for dynamics in (False, True):
        problem = array_problem(random_mdp(seed), seed, dynamics)
        x = random_x(problem, seed)
        mdp = problem.follower_mdp(x)
        pi, star, d = random_policy(mdp, 1), solve_soft(mdp, TAU, tol=1e-13).pi, visitation(mdp, random_policy(mdp, 1))

        def stated(
            z: Tensor, problem: TabularProblem = problem, pi: Tensor = pi, star: Tensor = star, d: Tensor = d
        ) -> Tensor:
            model = problem.follower_mdp(z)
            Q = action_value(model, policy_value(model, star, TAU))
            return (d.unsqueeze(-1) * (star - pi) * Q).sum()

        def exact(z: Tensor, problem: TabularProblem = problem, pi: Tensor = pi) -> Tensor:
            return penalty(problem.follower_mdp(z), pi)

        got, numerical = autograd(stated, x), numerical_gradient(exact, x)
        apart[dynamics] = float((got - numerical).norm() / numerical.norm())
        if not dynamics:
            assert_gradient(got, numerical)
    assert apart[True] > 0.01


def test_in_the_reward_alone_it_holds_for_whatever_stands_for_the_best_response() -> None:
    problem = array_problem(random_mdp(3), 3, dynamics=False)
    x = random_x(problem, 3)
    mdp = problem.follower_mdp(x)
    pi, hat = random_policy(mdp, 1), random_policy(mdp, 2)

    def branched(z: Tensor) -> Tensor:
        model = problem.follower_mdp(z)
        Q = action_value(model, policy_value(model, hat, TAU))
        return (visitation(mdp, pi).unsqueeze(-1) * (hat - pi) * Q).sum()

    def from_the_start(z: Tensor) -> Tensor:
        model = problem.follower_mdp(z)
        return policy_return(model, hat) - policy_return(model, pi)

    torch.testing.assert_close(autograd(branched, x), autograd(from_the_start, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ALIVE)
def test_gradient_in_y(name: str) -> None:
    """The occupancy moves with y: it is a policy gradient, and not the Bellman penalty's with d_y in the place of mu."""
    problem, x, start = problem_and_policy(name, 4)
    mdp = lived(problem.follower_mdp(x)).detach()
    y = start.clamp_min(1e-30).log()

    def policy(z: Tensor) -> Tensor:
        return torch.softmax(z if mdp.mask is None else z.masked_fill(~mdp.mask, -torch.inf), -1)

    pi, star = policy(y), solve_soft(mdp, TAU, tol=1e-13).pi
    numerical = numerical_gradient(lambda z: penalty(mdp, policy(z)).sum(), y)

    def in_logits(slope: Tensor) -> Tensor:
        return pi * (slope - (pi * slope).sum(-1, keepdim=True))

    assert_gradient(in_logits(-policy_return_gradient(mdp, pi, TAU)), numerical)
    Q = action_value(mdp, policy_value(mdp, star, TAU))  # the Bellman penalty's slope, mu [-Q* + tau (1 + log pi)]
    held = in_logits(visitation(mdp, pi).unsqueeze(-1) * (TAU * pi.clamp_min(1e-300).log() - Q))
    assert float((held - numerical).norm()) > 0.01 * float(numerical.norm())


def kept_near(P: Tensor, reward: Tensor, prior: Tensor, gamma: float, tau: float) -> tuple[Tensor, Tensor]:
    """Q = r + gamma E[ tau log sum_a' prior(a'|s') exp(Q(s',a')/tau) ] by plain iteration, and prior exp(Q/tau) / Z."""
    V = np.zeros(len(reward))
    for _ in range(3000):
        Q = reward.numpy() + gamma * (P.numpy() @ V)
        V = tau * logsumexp(Q / tau, b=prior.numpy(), axis=-1)
    pi = prior.numpy() * np.exp((Q - V[:, None]) / tau)
    return torch.from_numpy(Q), torch.from_numpy(pi)


@pytest.mark.parametrize(("name", "lam"), [("reward", 0.7), ("dynamics", 30.0), ("Stackelberg", 3.0)])
def test_the_problem_of_y_has_the_stated_optimum(name: str, lam: float) -> None:
    """Near pi* on r_l at temperature lam tau; the same as soft-optimal for r_f + r_l/lam; no policy does better."""
    problem, x, other = problem_and_policy(name, 5)
    mdp, reward = problem.follower_mdp(x).detach(), problem.leader_reward(x)
    assert reward is not None
    best = solve_soft(mdp, TAU, tol=1e-13)
    U, pi_y = kept_near(mdp.P, reward.detach(), best.pi, mdp.gamma, lam * TAU)
    solved, _ = Solved().solve(mdp, reward, lam, TAU, None)
    torch.testing.assert_close(pi_y, solved, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(pi_y, torch.softmax((best.Q + U / lam) / TAU, -1), rtol=1e-8, atol=1e-10)

    def objective(pi: Tensor) -> Tensor:
        return problem.leader_return(x, pi) - lam * penalty(mdp, pi)

    top = float(objective(pi_y))
    for step in (0.01, 0.1, 1.0):
        assert float(objective((1.0 - step) * pi_y + step * other)) < top
    slope = numerical_gradient(lambda y: objective(torch.softmax(y, -1)), pi_y.log())
    assert float(slope.abs().max()) < 1e-7 * max(1.0, lam)


def test_far_from_the_leaders_weight_it_is_the_best_response() -> None:
    """pi_y - pi* falls as 1/lam, and U tends to the leader's Q-function of pi*."""
    problem, x, _ = problem_and_policy("reward", 6)
    mdp, reward = problem.follower_mdp(x).detach(), problem.leader_reward(x)
    assert reward is not None
    star = solve_soft(mdp, TAU, tol=1e-13).pi
    Q_l = action_value(mdp.with_reward(reward), policy_value(mdp.with_reward(reward), star)).detach()
    found = [kept_near(mdp.P, reward.detach(), star, mdp.gamma, lam * TAU) for lam in (1e3, 1e4)]
    away = [[float((part - limit).abs().max()) for part, limit in zip(f, (Q_l, star), strict=True)] for f in found]
    assert away[0][0] / away[1][0] == pytest.approx(10.0, rel=0.05)
    assert away[0][1] / away[1][1] == pytest.approx(10.0, rel=0.05)
