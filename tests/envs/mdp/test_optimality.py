"""The follower's soft optimum: its equation, brute force, a second implementation, rates, and derivatives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.envs.mdp import (
    SoftOptimum,
    TabularMDP,
    attach,
    policy_value,
    solve_soft,
    suboptimality,
    value_iteration,
)
from tests.problems import (
    F64,
    MDPS,
    PROBLEMS,
    assert_gradient,
    autograd,
    generator,
    instances,
    numerical_gradient,
    random_mdp,
    random_policy,
    random_x,
    residual,
    slope,
)

TEMPERATURES = [1.0, 0.1, 0.01, 0.001, 1e-4, 0.0]


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("name", MDPS)
def test_the_answer_solves_the_soft_optimality_equation(name: str, tau: float) -> None:
    mdp = MDPS[name](5)
    answer = solve_soft(mdp, tau)
    assert residual(mdp, answer.V, tau) < 1e-10
    assert answer.residual == pytest.approx(residual(mdp, answer.V, tau), abs=1e-13)
    assert answer.iterations <= 15
    torch.testing.assert_close(answer.pi.sum(-1), torch.ones_like(answer.V))
    if mdp.mask is not None:
        assert bool((answer.pi[~mdp.mask.expand_as(answer.pi)] == 0.0).all())
    torch.testing.assert_close(policy_value(mdp, answer.pi, tau), answer.V, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("tau", [1.0, 0.03, 0.001, 0.0])
def test_value_iteration_agrees(gamma: float, tau: float) -> None:
    mdp = random_mdp(6, n_states=7, gamma=gamma, batch=(3,), masked=True)
    V = value_iteration(mdp, tau, torch.zeros(3, 7, dtype=F64), round(np.log(1e-14) / np.log(gamma)))
    answer = solve_soft(mdp, tau)
    error = float((answer.V - V).abs().max())
    assert error <= answer.residual / (1 - gamma) + 1e-11  # the stated bound; the rest is value iteration's rounding


def test_without_entropy_it_is_the_best_of_all_deterministic_policies() -> None:
    mdp = random_mdp(7, n_states=4, n_actions=3, terminal=True)
    values = [
        policy_value(mdp, torch.eye(3, dtype=F64)[list(actions)]) for actions in itertools.product(range(3), repeat=4)
    ]
    answer = solve_soft(mdp, 0.0)
    torch.testing.assert_close(answer.V, torch.stack(values).amax(0), rtol=0.0, atol=1e-12)
    for tau in (0.1, 0.001):  # entropy adds at most tau log A a step
        soft = solve_soft(mdp, tau).V
        assert bool((soft >= answer.V - 1e-12).all())
        assert bool((soft <= answer.V + tau * np.log(3) / (1 - 0.9)).all())


@pytest.mark.parametrize("tau", [0.05, 0.0])
def test_no_policy_is_better(tau: float) -> None:
    mdp = random_mdp(8, batch=(4,), terminal=True, masked=True)
    answer = solve_soft(mdp, tau)
    gaps = torch.stack([suboptimality(mdp, random_policy(mdp, k, 3.0), tau, answer) for k in range(50)])
    assert float(gaps.min()) > 0.0
    assert float(suboptimality(mdp, answer.pi, tau, answer).abs().max()) < 1e-11


@pytest.mark.parametrize("tau", [0.1, 1e-3, 0.0])
def test_a_batch_is_solved_as_its_instances_are_alone(tau: float) -> None:
    """Among instances whose rewards differ by eight orders of magnitude, each is solved on its own scale."""
    mdp = random_mdp(9, batch=(5,), masked=True, terminal=True)
    mdp = mdp.with_reward(mdp.r * torch.tensor([1.0, 1e8, 1e-2, 1e4, 0.0], dtype=F64)[:, None, None])
    together = solve_soft(mdp, tau)
    for index, one in instances(mdp):
        alone = solve_soft(one, tau)
        scale = max(1.0, float(alone.V.abs().max()))
        torch.testing.assert_close(together.V[index], alone.V, rtol=0.0, atol=1e-10 * scale)
        if tau > 0.0:
            torch.testing.assert_close(together.pi[index], alone.pi, rtol=0.0, atol=1e-9 * scale / tau)


def test_rewards_and_temperature_scale_together() -> None:
    mdp = random_mdp(10, gamma=0.99)
    one, many = solve_soft(mdp, 0.01), solve_soft(mdp.with_reward(1e6 * mdp.r), 1e4)
    torch.testing.assert_close(many.V, 1e6 * one.V, rtol=1e-11, atol=0.0)
    torch.testing.assert_close(many.pi, one.pi, rtol=1e-8, atol=1e-300)


def test_a_warm_start_is_faster_and_answers_the_same() -> None:
    mdp, near = random_mdp(11, n_states=20), random_mdp(11, n_states=20, scale=1.001)
    cold, warm = solve_soft(near, 0.1), solve_soft(near, 0.1, solve_soft(mdp, 0.1).V)
    assert warm.iterations < cold.iterations
    assert solve_soft(near, 0.1, cold.V).iterations == 0
    torch.testing.assert_close(warm.V, cold.V, rtol=0.0, atol=1e-11)


def test_states_that_are_never_reached_are_solved_too() -> None:
    mdp = random_mdp(12)
    P = mdp.P.clone()
    P[..., 2] = 0.0
    rho = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=F64)
    lonely = TabularMDP(P / P.sum(-1, keepdim=True), mdp.r, rho, 0.9)
    assert residual(lonely, solve_soft(lonely, 0.01).V, 0.01) < 1e-11


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("tau", [0.5, 0.0])
def test_value_iteration_contracts_at_gamma(gamma: float, tau: float) -> None:
    mdp = random_mdp(13, gamma=gamma)
    V_star, V, errors = solve_soft(mdp, tau).V, torch.zeros(5, dtype=F64), []
    for _ in range(25):
        V = value_iteration(mdp, tau, V, 1)
        errors.append(float((V - V_star).abs().max()))
    assert all(after <= gamma * before + 1e-13 for before, after in itertools.pairwise(errors))
    assert np.exp(slope(range(10, 25), np.log(errors[10:]))) == pytest.approx(gamma, rel=1e-3)


def test_newton_is_quadratic() -> None:
    pairs = []
    for seed in range(20):
        mdp = random_mdp(seed, n_states=10, n_actions=5, gamma=0.95, scale=10.0)
        P = mdp.P**10  # nearly deterministic: values differ, and there is a way to go
        mdp = TabularMDP(P / P.sum(-1, keepdim=True), mdp.r, mdp.rho, mdp.gamma)
        V_star = solve_soft(mdp, 1.0, tol=1e-14, max_iterations=20).V
        steps = [solve_soft(mdp, 1.0, tol=0.0, max_iterations=k).V for k in range(8)]
        errors = [float((V - V_star).abs().max()) for V in steps]
        pairs += [(a, b) for a, b in itertools.pairwise(errors) if a < 1.0 and b > 1e-11]
    assert len(pairs) > 20
    assert slope(*np.log(pairs).T) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("field", ["V", "Q", "pi"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_attached_derivatives_of_the_optimum(name: str, field: str) -> None:
    """The implicit function theorem on V* = T(x, V*), against central differences of the optimum solved anew."""
    problem, tau = PROBLEMS[name](3), 0.3
    x = random_x(problem, 3)
    weights = torch.randn(
        getattr(solve_soft(problem.follower_mdp(x), tau), field).shape, generator=generator(3), dtype=F64
    )

    def total(answer: SoftOptimum) -> Tensor:
        return torch.sum(weights * getattr(answer, field))

    def solved(z: Tensor) -> Tensor:
        return total(solve_soft(problem.follower_mdp(z), tau, tol=1e-13))

    def attached(z: Tensor) -> Tensor:
        mdp = problem.follower_mdp(z)
        return total(attach(mdp, tau, solve_soft(mdp.detach(), tau)))

    assert_gradient(autograd(attached, x), numerical_gradient(solved, x))


@pytest.mark.parametrize("tau", [-0.1, float("nan"), float("inf")])
def test_a_bad_temperature_is_named(tau: float) -> None:
    with pytest.raises(ValueError, match=r"^tau: expected a number in \[0, inf\)"):
        solve_soft(random_mdp(), tau)
