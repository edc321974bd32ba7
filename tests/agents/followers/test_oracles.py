"""Oracles: each held to the follower's optimum, to its stated rate, and to the residual that it reports."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bilevel_gym.agents.followers import MirrorDescent, Oracle, OracleAnswer, PolicyGradient, SoftPolicyIteration
from bilevel_gym.agents.followers.oracles import mirror_descent_step, softmax_policy_gradient
from bilevel_gym.envs.mdp import (
    TabularMDP,
    action_value,
    policy_return,
    policy_value,
    solve_soft,
    start_value,
    suboptimality,
)
from tests.problems import (
    F64,
    MDPS,
    assert_gradient,
    generator,
    numerical_gradient,
    random_mdp,
    random_policy,
    residual,
    slope,
)

ORACLES: dict[str, Oracle] = {
    "soft policy iteration": SoftPolicyIteration(),
    "mirror descent": MirrorDescent(),
    "policy gradient": PolicyGradient(),
}


def answer_of(mdp: TabularMDP, pi: torch.Tensor, tau: float) -> OracleAnswer:
    return OracleAnswer(pi, policy_value(mdp, pi, tau), math.nan, 0)


@pytest.mark.parametrize("tau", [0.2, 0.0])
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("name", MDPS)
def test_an_answer_is_a_policy_with_its_true_residual(name: str, oracle: str, tau: float) -> None:
    mdp = MDPS[name](1)
    first = ORACLES[oracle].solve(mdp, tau)
    for answer in (first, ORACLES[oracle].solve(mdp, tau, first)):
        torch.testing.assert_close(answer.pi.sum(-1), torch.ones_like(answer.V))
        assert float(answer.pi.min()) >= 0.0
        if mdp.mask is not None:
            assert bool((answer.pi[~mdp.mask.expand_as(answer.pi)] == 0.0).all())
        torch.testing.assert_close(answer.V, policy_value(mdp, answer.pi, tau), rtol=0.0, atol=1e-10)
        assert answer.residual == pytest.approx(residual(mdp, answer.V, tau), abs=1e-12)
        short = solve_soft(mdp, tau).V - answer.V
        assert float(short.max()) <= answer.residual / (1 - mdp.gamma) + 1e-11


@pytest.mark.parametrize("oracle", ORACLES)
def test_an_answer_gets_better_with_a_warm_start(oracle: str) -> None:
    mdp, near = random_mdp(2, n_states=8), random_mdp(2, n_states=8, scale=1.001)
    warm_start = ORACLES[oracle].solve(mdp, 0.1)
    cold, warm = ORACLES[oracle].solve(near, 0.1), ORACLES[oracle].solve(near, 0.1, warm_start)
    assert (warm.iterations < cold.iterations) or warm.residual < 0.5 * cold.residual


def test_warm_iterations_are_fewer() -> None:
    near, oracles = random_mdp(2, n_states=8, scale=1.001), (SoftPolicyIteration(), MirrorDescent(10.0, 1000, 1e-9))
    for oracle in oracles:
        cold = oracle.solve(near, 0.1)
        warm = oracle.solve(near, 0.1, oracle.solve(random_mdp(2, n_states=8), 0.1))
        assert 0 < warm.iterations < cold.iterations
        assert oracle.solve(near, 0.1, cold).iterations <= 1


@pytest.mark.parametrize("eta", [1.0, 10.0, 1e3])
@pytest.mark.parametrize("tau", [0.5, 0.05])
def test_mirror_descent_contracts_the_log_policy(tau: float, eta: float) -> None:
    mdp = random_mdp(3, gamma=0.8)
    star = solve_soft(mdp, tau, tol=1e-14, max_iterations=20).pi
    pi, errors = random_policy(mdp, 3), [1.0]
    while not errors or (errors[-1] > 1e-10 and len(errors) < 2000):
        pi = mirror_descent_step(mdp, pi, action_value(mdp, policy_value(mdp, pi, tau)), tau, eta)
        errors.append(float((pi.log() - star.log()).abs().max()))
    late = [(k, math.log(e)) for k, e in enumerate(errors) if 1e-9 < e < 1e-2]
    if len(late) > 3:
        assert math.exp(slope(*np.transpose(late[len(late) // 2 :]))) == pytest.approx(1 / (1 + eta * tau), rel=0.01)
    else:  # faster than a slope can be fitted to
        assert eta * tau > 40
        assert errors[-1] < 1e-10


@pytest.mark.parametrize("name", MDPS)
def test_mirror_descent_arrives(name: str) -> None:
    """Also in terminal states that earn no entropy, whose best response is greedy."""
    mdp = MDPS[name](4)
    answer = MirrorDescent(eta=20.0, iterations=1000, tol=0.0).solve(mdp, 0.1)
    assert residual(mdp, answer.V, 0.1) < 1e-10
    torch.testing.assert_close(answer.pi, solve_soft(mdp, 0.1).pi, rtol=0.0, atol=1e-8)


def test_a_long_step_of_mirror_descent_is_soft_policy_iteration() -> None:
    mdp = random_mdp(5, masked=True)
    pi = random_policy(mdp, 5)
    Q = action_value(mdp, policy_value(mdp, pi, 0.1))
    assert mdp.mask is not None
    newton = torch.softmax(Q.masked_fill(~mdp.mask, -math.inf) / 0.1, -1)
    torch.testing.assert_close(mirror_descent_step(mdp, pi, Q, 0.1, 1e12), newton, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("eta", [1e3, 1e6])
def test_mirror_descent_finds_an_action_again_that_had_lost_all_probability(eta: float) -> None:
    """At small tau a bad action's probability is rounded to 0; when x makes it the best one, it must come back."""
    P, rho = torch.ones(1, 2, 1, dtype=F64), torch.ones(1, dtype=F64)
    before, after = (TabularMDP(P, torch.tensor([r], dtype=F64), rho, 0.9) for r in ([3.0, 0.0], [0.0, 3.0]))
    oracle = MirrorDescent(eta, iterations=500, tol=0.0)
    lost = oracle.solve(before, 0.003)
    assert float(lost.pi[0, 1]) == 0.0
    found = MirrorDescent(eta, iterations=500).solve(after, 0.003, lost)
    assert found.residual < 1e-10
    assert float(found.pi[0, 1]) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", ["plain", "terminal", "terminal entropy", "masked, terminal"])
def test_the_policy_gradient_is_the_gradient(name: str) -> None:
    mdp = MDPS[name](6)
    logits = torch.randn(mdp.r.shape, generator=generator(6), dtype=F64)

    def softmax(theta: torch.Tensor) -> torch.Tensor:
        return torch.softmax(theta if mdp.mask is None else theta.masked_fill(~mdp.mask, -math.inf), -1)

    assert_gradient(
        softmax_policy_gradient(mdp, softmax(logits), 0.2),
        numerical_gradient(lambda theta: policy_return(mdp, softmax(theta), 0.2), logits),
    )


def test_policy_gradient_ascends_at_every_step() -> None:
    mdp = random_mdp(7, masked=True, terminal=True)
    oracle, answer = PolicyGradient(step=0.2, iterations=1), answer_of(mdp, random_policy(mdp, 7), 0.05)
    values = [float(start_value(mdp, answer.V))]
    for _ in range(400):
        answer = oracle.solve(mdp, 0.05, answer)
        values.append(float(start_value(mdp, answer.V)))
    assert all(after > before for before, after in itertools.pairwise(values))
    optimum = solve_soft(mdp, 0.05)
    assert float(suboptimality(mdp, answer.pi, 0.05, optimum)) < 0.1 * (float(start_value(mdp, optimum.V)) - values[0])


@pytest.mark.parametrize(
    ("oracle", "kwargs", "message"),
    [
        (SoftPolicyIteration, {"tol": -1.0}, "tol"),
        (SoftPolicyIteration, {"tol": math.nan}, "tol"),
        (SoftPolicyIteration, {"max_iterations": 0}, "max_iterations"),
        (MirrorDescent, {"eta": 0.0}, "eta"),
        (MirrorDescent, {"eta": math.nan}, "eta"),
        (MirrorDescent, {"iterations": 0}, "iterations"),
        (MirrorDescent, {"iterations": 1.5}, "iterations"),
        (MirrorDescent, {"tol": -1.0}, "tol"),
        (PolicyGradient, {"step": -1.0}, "step"),
        (PolicyGradient, {"iterations": 0}, "iterations"),
    ],
)
def test_bad_arguments_are_named(oracle: Callable[..., Oracle], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}: expected "):
        oracle(**kwargs)
