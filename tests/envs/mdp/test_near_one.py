"""Discounts so near 1 that double precision cannot solve: solved where it can, refused or said by name where it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

import bilevel_gym  # noqa: F401  (registers the environments)
from bilevel_gym.agents import Hypergradient
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    SparseMDP,
    StackelbergProblem,
    TabularMDP,
    TollDesignProblem,
    ZeroSumGame,
    policy_value,
    random_city,
    solve_soft,
)
from tests.problems import F64, random_mdp

NEAR, TOO_NEAR = 1.0 - 1e-8, (1.0 - 1e-11, 1.0 - 1e-15)


def cycle(gamma: float, **flags: Any) -> TabularMDP:
    """Three states round and round, whatever is done; action 1 earns 1e-3 less in state 0."""
    P = torch.eye(3, dtype=F64).roll(1, 1).unsqueeze(1).expand(3, 2, 3)
    return TabularMDP(P, torch.tensor([[1.0, 0.999], [2.0, 2.0], [-1.0, -1.0]]), torch.ones(3) / 3, gamma, **flags)


def batch(gamma: float) -> TabularMDP:
    mdp = random_mdp(batch=(2,))
    return TabularMDP(mdp.P, mdp.r, mdp.rho, gamma)


def masked(gamma: float) -> TabularMDP:
    mdp = random_mdp(masked=True)
    return TabularMDP(mdp.P, mdp.r, mdp.rho, gamma, mask=mdp.mask)


def sparse(gamma: float) -> SparseMDP:
    mdp = random_mdp()
    return SparseMDP(csr_array(mdp.P.reshape(-1, 5).numpy()), mdp.r, mdp.rho, gamma)


def never_ending(gamma: float) -> TabularMDP:
    """A terminal state that no state leads to."""
    P = torch.eye(2, dtype=F64).unsqueeze(1).expand(2, 2, 2)
    return TabularMDP(P, torch.rand(2, 2, dtype=F64), torch.tensor([1.0, 0.0]), gamma, torch.tensor([False, True]))


def never_ending_sparse(gamma: float) -> SparseMDP:
    return SparseMDP(
        csr_array(np.eye(2).repeat(2, 0)),
        torch.rand(2, 2),
        torch.tensor([1.0, 0.0]),
        gamma,
        torch.tensor([False, True]),
    )


def game(gamma: float) -> ZeroSumGame:
    return ZeroSumGame(torch.full((2, 2, 2, 2), 0.5), torch.rand(2, 2, 2), torch.tensor([0.5, 0.5]), gamma)


def array_problem(gamma: float) -> ArrayProblem:
    base = cycle(gamma)
    return ArrayProblem(base, LeaderSet.box(1, -1, 1), lambda x: base.r + x, lambda x: base.r)


def stackelberg(gamma: float) -> StackelbergProblem:
    return StackelbergProblem(
        torch.full((2, 2, 2, 2), 0.5), torch.rand(2, 2, 2), torch.rand(2, 2, 2), torch.tensor([0.5, 0.5]), gamma
    )


def environment(name: str) -> Callable[[float], Any]:
    return lambda gamma: gym.make(f"bilevel_gym/{name}-v0", gamma=gamma)


ENDLESS: dict[str, Callable[[float], Any]] = {
    "dense": cycle, "batch": batch, "masked": masked, "sparse": sparse, "terminal, never reached": never_ending,
    "terminal, never reached, sparse": never_ending_sparse, "game": game, "ArrayProblem": array_problem,
    "StackelbergProblem": stackelberg,
    **{name: environment(name) for name in ("StackelbergGame", "TwoState", "RandomMDP", "GoalPlacement", "RewardGrid")},
}  # fmt: skip


@pytest.mark.parametrize("gamma", TOO_NEAR)
@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_what_cannot_be_solved_is_refused_by_name(make: Callable[[float], Any], gamma: float) -> None:
    with pytest.raises(ValueError, match=r"^gamma: expected a discount at which an episode lasts at most 1e\+09 "):
        make(gamma)


@pytest.mark.parametrize("make", [cycle, batch, masked, sparse, game, array_problem, stackelberg])
def test_a_discount_near_one_is_taken(make: Callable[[float], Any]) -> None:
    make(NEAR)
    make(0.0)


def test_values_near_one_are_accurate() -> None:
    # Three steps round: V(0) = (1 + 2 g - g^2) / (1 - g^3), and action 1 costs 1e-3 a round.
    for gamma in (0.9999, 1.0 - 1e-6, NEAR):
        mdp, left = cycle(gamma), 1.0 - gamma
        value = (1.0 + 2.0 * gamma - gamma**2) / (left * (1.0 + gamma + gamma**2))
        for tau in (1e-6, 0.0):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                optimum = solve_soft(mdp, tau)
            assert float(optimum.V[0]) == pytest.approx(
                value + tau * np.log(4.0) / (3 * left), rel=1e-6 if tau == 0.0 else 1e-5
            )
            assert float(optimum.pi[0, 0]) == pytest.approx(1.0, abs=1e-12)
        worse = policy_value(mdp, torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], dtype=F64))
        lost = 1e-3 / (left * (1.0 + gamma + gamma**2))
        assert float(optimum.V[0] - worse[0]) == pytest.approx(lost, rel=1e-3)


def test_the_better_of_close_actions_is_found_near_one() -> None:
    """Actions that differ by 1e-6 a step, a residual far under what is asked of other discounts."""
    P = torch.ones(1, 2, 1, dtype=F64)
    for better in (0, 1):
        r = torch.tensor([[1.0, 1.0]], dtype=F64)
        r[0, better] += 1e-6
        mdp = TabularMDP(P, r, torch.ones(1), NEAR)
        start = policy_value(mdp, torch.tensor([[0.5, 0.5]], dtype=F64))
        optimum = solve_soft(mdp, 0.0, start)
        assert int(optimum.pi.argmax()) == better
        assert float(optimum.V) == pytest.approx((1.0 + 1e-6) / (1.0 - NEAR), rel=1e-7)


@pytest.mark.parametrize("gamma", [NEAR, *TOO_NEAR])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_episodes_that_end_are_solved_at_any_discount(gamma: float, is_sparse: bool) -> None:
    # From state 0, action 0 ends with probability 1/2, action 1 with 1/4; each step costs 1.
    P = torch.tensor([[[0.5, 0.5], [0.75, 0.25]], [[0.0, 1.0], [0.0, 1.0]]], dtype=F64)
    r, ends = torch.tensor([[-1.0, -1.0], [0.0, 0.0]], dtype=F64), torch.tensor([False, True])
    mdp = TabularMDP(P, r, torch.tensor([1.0, 0.0]), gamma, ends)
    if is_sparse:
        mdp = SparseMDP(csr_array(P.reshape(4, 2).numpy()), r, torch.tensor([1.0, 0.0]), gamma, ends)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimum = solve_soft(mdp, 0.0)
    assert float(optimum.V[0]) == pytest.approx(-2.0, rel=1e-7)


@pytest.mark.parametrize("gamma", TOO_NEAR)
def test_a_best_policy_that_avoids_the_end_is_said(gamma: float) -> None:
    """The uniform policy ends soon, the best one never does."""
    P = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]], dtype=F64)
    mdp = TabularMDP(P, torch.ones(2, 2), torch.tensor([1.0, 0.0]), gamma, torch.tensor([False, True]))
    with pytest.warns(RuntimeWarning, match=r"^gamma: at 0\.9999.*residual"):
        solve_soft(mdp, 0.0)


@pytest.mark.parametrize("make", [masked, sparse, batch])
def test_random_models_near_one_are_solved(make: Callable[[float], Any]) -> None:
    """(1 - gamma) V is nearly the same everywhere: the best policy's mean reward in its stationary distribution."""
    mdp = make(NEAR)
    optimum = solve_soft(mdp, 0.0)
    dense = mdp.dense() if mdp.sparse else mdp
    P_pi = (optimum.pi.unsqueeze(-1) * dense.P).sum(-2)
    stationary = torch.linalg.matrix_power(P_pi, 2**20)[..., 0, :]
    mean = (stationary * (optimum.pi * mdp.r).sum(-1)).sum(-1, keepdim=True)
    torch.testing.assert_close((1.0 - NEAR) * optimum.V, mean.expand_as(optimum.V), rtol=1e-6, atol=0.0)
    # No change of one action in one state does better: policy iteration's certificate, by the differences of values.
    h = (optimum.V - optimum.V[..., :1]).unsqueeze(-2).unsqueeze(-2)
    Q = mdp.r + NEAR * (dense.P * h).sum(-1)
    allowed = torch.ones_like(Q, dtype=torch.bool) if mdp.mask is None else mdp.mask
    chosen = (optimum.pi * Q.masked_fill(~allowed, 0.0)).sum(-1)
    assert bool((Q.masked_fill(~allowed, -1e9).amax(-1) - chosen <= 1e-6).all())


def test_a_city_is_solved_at_any_discount() -> None:
    """Its trips end: the values at 1 - 1e-13 are those at 1 - 1e-9."""
    city = random_city(8)
    x = torch.zeros(city.n_links, dtype=F64)
    values = [
        solve_soft(TollDesignProblem(city, gamma, 0.3).follower_mdp(x), 0.3).V for gamma in (1.0 - 1e-9, 1.0 - 1e-13)
    ]
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-6)


def test_a_leader_of_a_table_near_one_records_no_negative_gap() -> None:
    record = Hypergradient(array_problem(1.0 - 1e-6)).learn(3).evaluate()
    assert record.gap is not None
    assert record.gap >= -1e-6 * abs(record.leader_return)
