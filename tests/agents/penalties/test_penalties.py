"""Penalties: sign and zeros, closed forms, and gradients against central differences of the penalty solved anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel_gym.agents.lower_levels import OneFollower
from bilevel_gym.agents.penalties import BellmanPenalty, Penalty, ValuePenalty
from bilevel_gym.agents.schedules import Constant, Geometric, Linear
from bilevel_gym.envs.mdp import TabularMDP, action_value, policy_return, policy_value, solve_soft, visitation
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import (
    F64,
    MDPS,
    PROBLEMS,
    assert_gradient,
    autograd,
    generator,
    live_weights,
    numerical_gradient,
    random_mdp,
    random_policy,
    random_x,
    relative_error,
    true_bellman_penalty,
    true_value_penalty,
)

TAU = 0.2


def true_bellman(mdp: TabularMDP, pi: Tensor, tau: float) -> Tensor:
    return true_bellman_penalty(mdp, pi, tau, live_weights(mdp))


PENALTIES: dict[str, tuple[Penalty, Callable[[TabularMDP, Tensor, float], Tensor]]] = {
    "value": (ValuePenalty(), true_value_penalty),
    "Bellman": (BellmanPenalty(), true_bellman),
}


def value_of(penalty: Penalty, mdp: TabularMDP, pi: Tensor, star: Tensor, tau: float) -> Tensor:
    """p(x, y), ``[...]``, of one follower in this MDP."""
    return penalty.value(OneFollower(None), mdp, (pi,), (star,), tau)


value_penalty = partial(value_of, ValuePenalty())


def bellman_penalty(mdp: TabularMDP, pi: Tensor, star: Tensor, tau: float, mu: Tensor | None = None) -> Tensor:
    return value_of(BellmanPenalty(mu=None if mu is None else mu.tolist()), mdp, pi, star, tau)


def best_response(mdp: TabularMDP, tau: float = TAU) -> Tensor:
    return solve_soft(mdp.detach(), tau).pi


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("name", MDPS)
def test_a_penalty_is_positive_but_for_the_best_response(name: str, kind: str) -> None:
    penalty, truth = PENALTIES[kind]
    mdp = MDPS[name](1)
    star = best_response(mdp)
    assert float(value_of(penalty, mdp, star, star, TAU).abs().max()) < 1e-11
    if mdp.n_actions == 1:
        return
    for seed in range(20):
        pi = random_policy(mdp, seed, spread=10.0 if seed % 2 else 1.0)
        value = value_of(penalty, mdp, pi, star, TAU)
        assert float(value.min()) > 0.0
        torch.testing.assert_close(value, truth(mdp, pi, TAU), rtol=1e-10, atol=1e-11)
    if mdp.batch_shape or mdp.mask is not None:
        return
    for s in range(mdp.n_states - (mdp.terminal is not None)):  # a mistake in any single state is seen
        one_off = star.clone()
        one_off[s] = 0.9 * star[s] + 0.1 * torch.eye(mdp.n_actions, dtype=F64)[0]
        assert float(value_of(penalty, mdp, one_off, star, TAU)) > 1e-6


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_those_of_the_penalty_solved_anew(name: str, seed: int, kind: str) -> None:
    penalty, truth = PENALTIES[kind]
    problem = PROBLEMS[name](seed)
    x = random_x(problem, seed)
    mdp = problem.follower_mdp(x)
    star, pi = best_response(mdp), random_policy(mdp, seed)
    assert_gradient(
        autograd(lambda z: problem.over_contexts(value_of(penalty, problem.follower_mdp(z), pi, star, TAU)), x),
        numerical_gradient(lambda z: problem.over_contexts(truth(problem.follower_mdp(z), pi, TAU)), x),
    )

    def softmax(y: Tensor) -> Tensor:
        return torch.softmax(y if mdp.mask is None else y.masked_fill(~mdp.mask, -math.inf), -1)

    y = torch.randn(pi.shape, generator=generator(seed), dtype=F64)
    assert_gradient(
        autograd(lambda z: value_of(penalty, mdp, softmax(z), star, TAU).sum(), y),
        numerical_gradient(lambda z: truth(mdp, softmax(z), TAU).sum(), y),
    )


@pytest.mark.parametrize("tau", [1.0, 0.05])
def test_both_penalties_are_mean_divergences(tau: float) -> None:
    """Bellman is tau E_mu KL(pi, pi*) for any mu; value is the same with mu the visitation of pi."""
    mdp = random_mdp(4, n_states=6, gamma=0.95, masked=True)
    star = best_response(mdp, tau)
    for seed in range(5):
        pi = random_policy(mdp, seed, 2.0)
        divergence = torch.where(pi > 0, pi * (pi.log() - star.log()), 0.0).sum(-1)
        mu = torch.softmax(torch.randn(6, generator=generator(seed), dtype=F64), -1)
        for weights in (None, mu):
            expected = tau * (divergence.mean() if weights is None else (mu * divergence).sum())
            torch.testing.assert_close(bellman_penalty(mdp, pi, star, tau, weights), expected, rtol=1e-9, atol=0.0)
        expected = tau * (visitation(mdp, pi) * divergence).sum()
        torch.testing.assert_close(value_penalty(mdp, pi, star, tau), expected, rtol=1e-9, atol=0.0)


def test_weights_on_some_states_miss_mistakes_elsewhere() -> None:
    """Why mu is not the start distribution: an episode that starts in state 0 leaves the others unseen."""
    mdp = random_mdp(5)
    star = best_response(mdp)
    elsewhere = torch.cat([star[:1], random_policy(mdp, 5)[1:]])
    start = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=F64)
    assert abs(float(bellman_penalty(mdp, elsewhere, star, TAU, start))) < 1e-12
    assert float(bellman_penalty(mdp, elsewhere, star, TAU)) > 1e-3
    assert float(value_penalty(mdp, elsewhere, star, TAU)) > 1e-3


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_without_the_best_response_s_term_the_gradient_in_x_is_wrong(name: str, kind: str) -> None:
    """Lemma 6 without grad_x V^{pi*}, Lemma 8 without E_{pi*} grad_x Q*: half a gradient."""
    problem = PROBLEMS[name](6)
    x = random_x(problem, 6)
    pi, star = random_policy(problem.follower_mdp(x), 6), best_response(problem.follower_mdp(x))
    mu = live_weights(problem.follower_mdp(x))

    def half_of_lemma_6(z: Tensor) -> Tensor:
        return -problem.over_contexts(policy_return(problem.follower_mdp(z), pi, TAU))

    def half_of_lemma_8(z: Tensor) -> Tensor:
        mdp = problem.follower_mdp(z)
        Q = action_value(mdp, policy_value(mdp, star, TAU))
        return -problem.over_contexts((mu * (pi * Q).sum(-1)).sum(-1))

    truth = PENALTIES[kind][1]
    numerical = numerical_gradient(lambda z: problem.over_contexts(truth(problem.follower_mdp(z), pi, TAU)), x)
    half = autograd(half_of_lemma_6 if kind == "value" else half_of_lemma_8, x)
    assert relative_error(half, numerical) > 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
def test_closed_forms_of_the_two_state_problem(tau: float, seed: int) -> None:
    problem, mu = TwoStateProblem(gamma=0.8), torch.tensor([0.2, 0.8], dtype=F64)
    x = random_x(problem, seed)
    mdp = problem.follower_mdp(x)
    pi, star, greedy = random_policy(mdp, seed), best_response(mdp, tau), best_response(mdp, 0.0)
    for got, closed in (
        (value_penalty(mdp, pi, star, tau), problem.value_penalty(x, pi, tau)),
        (value_penalty(mdp, pi, greedy, 0.0), problem.value_penalty(x, pi, 0.0)),
        (bellman_penalty(mdp, pi, star, tau), problem.bellman_penalty(x, pi, tau)),
        (bellman_penalty(mdp, pi, star, tau, mu), problem.bellman_penalty(x, pi, tau, mu)),
    ):
        torch.testing.assert_close(got, closed, rtol=1e-10, atol=0.0)
    assert_gradient(
        autograd(lambda z: value_penalty(problem.follower_mdp(z), pi, star, tau), x),
        autograd(lambda z: problem.value_penalty(z, pi, tau), x),
    )
    assert_gradient(
        autograd(lambda z: bellman_penalty(problem.follower_mdp(z), pi, star, tau), x),
        autograd(lambda z: problem.bellman_penalty(z, pi, tau), x),
    )


@pytest.mark.parametrize(
    ("lam", "start", "end"),
    [(3.0, 3.0, 3.0), (Constant(2.0), 2.0, 2.0), (Linear(1.0, 5.0), 1.0, 5.0), (Geometric(2.0, 20.0), 2.0, 20.0)],
)
def test_lam_follows_its_schedule(lam: Any, start: float, end: float) -> None:
    penalty = ValuePenalty(lam=lam)
    assert penalty.lam_at(1.0) == pytest.approx(start, rel=1e-15)
    assert penalty.lam_at(0.0) == pytest.approx(end, rel=1e-15)


@pytest.mark.parametrize("cls", [ValuePenalty, BellmanPenalty])
@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf, "five", None, True, Linear(1.0, 0.0), Constant(-1.0)])
def test_a_bad_lam_is_named(cls: Callable[..., Penalty], lam: Any) -> None:
    with pytest.raises(ValueError, match=r"^lam: expected a number in \("):
        cls(lam=lam)


@pytest.mark.parametrize("mu", [[0.5, 0.4], [1.5, -0.5], [math.nan, 1.0], "half"])
def test_a_bad_mu_is_named(mu: Any) -> None:
    with pytest.raises(ValueError, match=r"^mu: expected "):
        BellmanPenalty(mu=mu)


def test_bad_weights_are_named() -> None:
    mdp = random_mdp(0)
    pi = random_policy(mdp)
    with pytest.raises(ValueError, match=r"^mu: expected shape \[5\]"):
        bellman_penalty(mdp, pi, pi, TAU, torch.ones(4, dtype=F64) / 4)
    over = TabularMDP(mdp.P, mdp.r, mdp.rho, 0.9, torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^mu: expected weights of the states, where every state is terminal"):
        bellman_penalty(over, pi, pi, TAU)


@pytest.mark.parametrize("tau", [0.0, -0.1, math.nan])
def test_the_bellman_penalty_needs_entropy(tau: float) -> None:
    mdp = random_mdp(0)
    pi = random_policy(mdp)
    with pytest.raises(ValueError, match=r"^tau: expected a number in \(0, inf\)"):
        bellman_penalty(mdp, pi, pi, tau)
