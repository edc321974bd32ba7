"""Bilevel problems: the leader-averaged game, its gradient by Lemma 7b, contexts, and problems from arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    policy_return,
    policy_value,
    random_incentive_design,
    random_stackelberg,
    visitation,
)
from tests.problems import (
    F64,
    PROBLEMS,
    assert_gradient,
    autograd,
    instances,
    numerical_gradient,
    random_mdp,
    random_policy,
    random_x,
)


def test_the_followers_model_is_averaged_over_the_leaders_policy() -> None:
    problem = random_stackelberg(3, 2, 4, sparsity=0.3, seed=1)
    x = random_x(problem)
    pi_x, mdp, r_l = problem.leader_policy(x), problem.follower_mdp(x), problem.leader_reward(x)
    logits = x.view(3, 2).exp()
    for s, a in np.ndindex(3, 4):
        weights = logits[s] / logits[s].sum()
        torch.testing.assert_close(pi_x[s], weights)
        torch.testing.assert_close(mdp.P[s, a], sum(weights[b] * problem.P[s, b, a] for b in range(2)))
        torch.testing.assert_close(mdp.r[s, a], sum(weights[b] * problem.r_follower[s, b, a] for b in range(2)))
        torch.testing.assert_close(r_l[s, a], sum(weights[b] * problem.r_leader[s, b, a] for b in range(2)))


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_a_follower_s_value_moves_with_the_leader_s_policy_as_lemma_7b_says(tau: float) -> None:
    problem = random_stackelberg(4, 3, 2, sparsity=0.2, seed=2)
    x = random_x(problem)
    mdp = problem.follower_mdp(x)
    pi = random_policy(mdp)
    V = policy_value(mdp, pi, tau)
    Q = problem.r_follower + problem.gamma * problem.P @ V  # Q_f(s, a_l, a_f)
    advantage = torch.einsum("slf,sf->sl", Q, pi)
    pi_x = problem.leader_policy(x)
    score = pi_x * (advantage - (pi_x * advantage).sum(-1, keepdim=True))
    lemma = (visitation(mdp, pi).unsqueeze(-1) * score).flatten()
    torch.testing.assert_close(lemma, autograd(lambda z: policy_return(problem.follower_mdp(z), pi, tau), x))


@pytest.mark.parametrize("name", PROBLEMS)
def test_leader_return_and_its_gradients(name: str) -> None:
    problem = PROBLEMS[name](4)
    x = random_x(problem, 4)
    mdp, reward = problem.follower_mdp(x), problem.leader_reward(x)
    assert reward is not None
    pi = random_policy(mdp, 4)
    each = [policy_return(one.with_reward(reward.expand(pi.shape)[index]), pi[index]) for index, one in instances(mdp)]
    weights = torch.ones(1, dtype=F64) if problem.context_probs is None else problem.context_probs
    torch.testing.assert_close(problem.leader_return(x, pi), (weights * torch.stack(each)).sum())
    assert_gradient(
        autograd(lambda z: problem.leader_return(z, pi), x),
        numerical_gradient(lambda z: problem.leader_return(z, pi), x),
    )


def test_a_game_is_the_same_for_the_same_seed_only() -> None:
    one, twin, other = (random_stackelberg(5, 2, 3, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.P, twin.P)
    assert torch.equal(one.r_leader, twin.r_leader)
    assert not torch.equal(one.r_leader, other.r_leader)
    assert 0.5 < float((random_stackelberg(seed=0).r_leader == 0.0).double().mean()) < 0.9  # sparsity 0.7


def test_the_smallest_game() -> None:
    problem = random_stackelberg(1, 1, 1, gamma=0.0, sparsity=0.0)
    assert (
        float(problem.leader_return(torch.zeros(1, dtype=F64), torch.ones(1, 1, dtype=F64))) == problem.r_leader.item()
    )


def test_rewards_in_single_precision_are_taken_as_double() -> None:
    base = random_mdp(5)
    problem = ArrayProblem(
        base, LeaderSet.box(1, -1.0, 1.0), lambda x: base.r.float(), lambda x: base.r.float() + x.float()
    )
    x = torch.zeros(1, dtype=F64, requires_grad=True)
    mdp = problem.follower_mdp(x)
    assert mdp.r.dtype == F64
    value = problem.leader_return(x, random_policy(mdp))
    value.backward()
    assert value.dtype == F64
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(1 / (1 - 0.9), rel=1e-12)


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([0.3, 0.6], r"rows that sum to 1, got a sum of 0\.9"),
        ([1.2, -0.2], r"probabilities >= 0"),
        ([float("nan"), 1.0], r"finite numbers"),
        ([[0.5, 0.5]], r"a vector \[C\]"),
        ("half", r"numbers"),
    ],
)
def test_contexts_have_a_distribution(probs: Any, message: str) -> None:
    """One door for all problems, frozen ones too: it is the assignment that checks."""
    for problem in (PROBLEMS["contexts"](0), random_stackelberg(3, 2, 2), random_incentive_design(3, 2, 2)):
        before = problem.context_probs
        with pytest.raises(ValueError, match=f"^context_probs: expected {message}"):
            object.__setattr__(problem, "context_probs", probs)
        assert problem.context_probs is before


def test_contexts_are_as_many_as_the_fields_have() -> None:
    problem = PROBLEMS["contexts"](0)
    problem.context_probs = [0.2, 0.3, 0.5]  # type: ignore[assignment]
    x = problem.start_x()
    pi = random_policy(problem.follower_mdp(x))
    with pytest.raises(ValueError, match=r"^context_probs: expected 2 weights, one a context, got 3"):
        problem.leader_return(x, pi)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_return_of_an_occupancy_is_that_of_its_policy(name: str) -> None:
    problem = PROBLEMS[name](5)
    x = random_x(problem, 5)
    mdp = problem.follower_mdp(x)
    pi = random_policy(mdp, 5)
    occupancy = (1.0 - mdp.gamma) * visitation(mdp, pi).unsqueeze(-1) * pi
    torch.testing.assert_close(problem.occupancy_return(x, occupancy), problem.leader_return(x, pi))
