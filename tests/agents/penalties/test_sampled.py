"""Sampled penalties: unbiased, value and gradient, for the penalty with truncated returns, in x and in every policy.

Each estimate is repeated in one call with one leading axis, as in ``tests/envs/mdp/test_sampled_return.py``.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel_gym.agents.monte_carlo import MonteCarlo, Sampler
from bilevel_gym.agents.penalties import BellmanPenalty, NikaidoIsodaPenalty, ValuePenalty
from bilevel_gym.envs.mdp import (
    TabularMDP,
    ZeroSumGame,
    action_value,
    best_responses,
    kernel_world,
    mdp_world,
    negative_entropy,
    player_mdp,
    random_stackelberg,
    solve_soft,
    truncated_return,
    truncated_value,
)
from tests.games import moved_game, random_game, random_pair
from tests.problems import (
    F64,
    assert_unbiased,
    autograd,
    generator,
    live_weights,
    random_mdp,
    random_policy,
    shifted,
    standard_scores,
)

LENGTH, TAU = 5, 0.3
REPLICAS, BATCH = 1000, 100
X = torch.tensor([0.3, -0.5, 0.8], dtype=F64)


def sampler(seed: int = 0, **kwargs: Any) -> Sampler:
    return Sampler(MonteCarlo(**{"length": LENGTH, "batch": BATCH} | kwargs), generator(seed))


def replicated(z: Tensor) -> Tensor:
    return z.detach().expand(REPLICAS, *z.shape).clone().requires_grad_()


def truncated_value_penalty(mdp: TabularMDP, pi: Tensor, star: Tensor) -> Tensor:
    return truncated_return(mdp, star, LENGTH, TAU) - truncated_return(mdp, pi, LENGTH, TAU)


def truncated_bellman_penalty(mdp: TabularMDP, pi: Tensor, star: Tensor, mu: Tensor) -> Tensor:
    Q = action_value(mdp, truncated_value(mdp, star, LENGTH - 1, TAU))
    at_star, at_pi = ((p * Q).sum(-1) - TAU * negative_entropy(p) for p in (star, pi))
    return (mu * (at_star - at_pi)).sum(-1)


def truncated_psi(game: ZeroSumGame, pi: tuple[Tensor, Tensor], best: tuple[Tensor, Tensor]) -> Tensor:
    first, second = player_mdp(game, 1, pi[1], TAU), player_mdp(game, 2, pi[0], TAU)
    return truncated_return(first, best[0], LENGTH, TAU) + truncated_return(second, best[1], LENGTH, TAU)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kind", ["value", "Bellman"])
def test_a_follower_s_penalty(kind: str, terminal: bool, paired: bool) -> None:
    base = random_mdp(2, terminal=terminal)
    star = solve_soft(shifted(base, X), TAU).pi
    y, mu = torch.randn(base.r.shape, generator=generator(1), dtype=F64), live_weights(base)

    def exact(x: Tensor, y: Tensor) -> Tensor:
        mdp, pi = shifted(base, x), torch.softmax(y, -1)
        if kind == "value":
            return truncated_value_penalty(mdp, pi, star)
        return truncated_bellman_penalty(mdp, pi, star, mu)

    xs, ys = replicated(X), replicated(y)
    penalty = ValuePenalty() if kind == "value" else BellmanPenalty()
    world = mdp_world(shifted(base, xs))
    estimate = penalty.sampled(world, (torch.softmax(ys, -1),), (star,), TAU, sampler(3, paired=paired))
    in_x, in_y = torch.autograd.grad(estimate.sum(), [xs, ys])
    assert_unbiased(estimate.detach(), exact(X, y))
    assert_unbiased(in_x, autograd(lambda z: exact(z, y), X))
    assert_unbiased(in_y, autograd(lambda z: exact(X, z), y))


@pytest.mark.parametrize("kind", ["value", "Bellman"])
def test_a_stackelberg_game_s_penalty(kind: str) -> None:
    """x is the leader's policy, and its score is all of x's gradient."""
    game = random_stackelberg(3, 3, 2, gamma=0.9, sparsity=0.3, seed=2)
    x = torch.randn(game.leader_dim, generator=generator(2), dtype=F64)
    y = torch.randn(3, 2, generator=generator(3), dtype=F64)
    star, mu = solve_soft(game.follower_mdp(x), TAU).pi, torch.tensor([0.2, 0.3, 0.5], dtype=F64)

    def exact(x: Tensor, y: Tensor) -> Tensor:
        mdp, pi = game.follower_mdp(x), torch.softmax(y, -1)
        if kind == "value":
            return truncated_value_penalty(mdp, pi, star)
        return truncated_bellman_penalty(mdp, pi, star, mu)

    xs, ys = replicated(x), replicated(y)
    world, pi = kernel_world(game.kernel(xs), game.follower_mdp(x)), torch.softmax(ys, -1)
    penalty = ValuePenalty() if kind == "value" else BellmanPenalty(mu=mu.tolist())
    estimate = penalty.sampled(world, (pi,), (star,), TAU, sampler(4))
    in_x, in_y = torch.autograd.grad(estimate.sum(), [xs, ys])
    assert_unbiased(in_x, autograd(lambda z: exact(z, y), x))
    assert_unbiased(in_y, autograd(lambda z: exact(x, z), y))


@pytest.mark.parametrize("paired", [True, False])
def test_the_nikaido_isoda_penalty(paired: bool) -> None:
    """In x, which moves rewards and transitions, and in both players' policies."""
    game = random_game(3, n_states=3)
    start = tuple(pi.log() for pi in random_pair(game, 3))
    best = tuple(answer.pi for answer in best_responses(moved_game(game, X), *random_pair(game, 3), TAU))
    star = (best[0], best[1])

    def exact(x: Tensor, y1: Tensor, y2: Tensor) -> Tensor:
        return truncated_psi(moved_game(game, x), (torch.softmax(y1, -1), torch.softmax(y2, -1)), star)

    xs, y1, y2 = replicated(X), replicated(start[0]), replicated(start[1])
    pair = torch.softmax(y1, -1), torch.softmax(y2, -1)
    estimate = NikaidoIsodaPenalty().sampled(moved_game(game, xs), pair, star, TAU, sampler(5, paired=paired))
    in_x, in_1, in_2 = torch.autograd.grad(estimate.sum(), [xs, y1, y2])
    assert_unbiased(estimate.detach(), exact(X, *start))
    assert_unbiased(in_x, autograd(lambda z: exact(z, *start), X))
    assert_unbiased(in_1, autograd(lambda z: exact(X, z, start[1]), start[0]))
    assert_unbiased(in_2, autograd(lambda z: exact(X, start[0], z), start[1]))


def test_an_oracle_s_answer_that_is_no_best_response_is_estimated_as_it_is() -> None:
    """Unbiased for the formula at the policy in hand, and far from the one at the true best response."""
    base = random_mdp(2)
    mdp = shifted(base, X)
    poor, star, mu = random_policy(base, 9), solve_soft(mdp, TAU).pi, live_weights(base)
    pi = random_policy(base, 1)
    xs = replicated(X)
    estimate = BellmanPenalty().sampled(mdp_world(shifted(base, xs)), (pi,), (poor,), TAU, sampler(6))
    (in_x,) = torch.autograd.grad(estimate.sum(), xs)
    at_poor, at_star = (
        autograd(lambda z, p=p: truncated_bellman_penalty(shifted(base, z), pi, p, mu), X)  # type: ignore[misc]
        for p in (poor, star)
    )
    assert_unbiased(in_x, at_poor)
    assert float(standard_scores(in_x, at_star).abs().max()) > 6.0


def test_paired_episodes_cancel_as_the_follower_nears_its_best_response() -> None:
    """Variance of the value penalty's gradient in x: nothing at the best response itself, always less than unpaired."""
    base = random_mdp(2)
    star = solve_soft(shifted(base, X), TAU).pi
    spread: dict[tuple[float, bool], float] = {}
    for mix in (0.0, 0.05, 0.5):
        pi = (1.0 - mix) * star + mix * random_policy(base, 1)
        for paired in (True, False):
            xs = replicated(X)
            world = mdp_world(shifted(base, xs))
            estimate = ValuePenalty().sampled(world, (pi,), (star,), TAU, sampler(7, batch=16, paired=paired))
            (in_x,) = torch.autograd.grad(estimate.sum(), xs)
            spread[mix, paired] = float(in_x.var(0).sum())
    assert spread[0.0, True] < 1e-20
    assert spread[0.05, True] < 0.1 * spread[0.05, False]
    assert spread[0.5, True] < 0.8 * spread[0.5, False]


def test_the_error_falls_with_the_root_of_the_batch() -> None:
    base = random_mdp(2)
    star, pi = solve_soft(shifted(base, X), TAU).pi, random_policy(base, 1)
    spread = []
    for batch in (4, 16, 64):
        xs = replicated(X)
        estimate = ValuePenalty().sampled(mdp_world(shifted(base, xs)), (pi,), (star,), TAU, sampler(8, batch=batch))
        (in_x,) = torch.autograd.grad(estimate.sum(), xs)
        spread.append(math.sqrt(float(in_x.var(0).sum())))
    assert spread[0] / spread[1] == pytest.approx(2.0, rel=0.2)
    assert spread[1] / spread[2] == pytest.approx(2.0, rel=0.2)


def test_episodes_already_played_are_used() -> None:
    base = random_mdp(2)
    world, star, pi = mdp_world(base), solve_soft(base, TAU).pi, random_policy(base, 1)
    one, two = sampler(1), sampler(1)
    played = one.play(world, pi)
    first = ValuePenalty().sampled(world, (pi,), (star,), TAU, one, played)
    torch.testing.assert_close(first, ValuePenalty().sampled(world, (pi,), (star,), TAU, two), rtol=0.0, atol=0.0)
    assert one.steps == two.steps == 2 * LENGTH * BATCH


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 0}, "length: expected a whole number >= 1, got 0"),
        ({"length": 2.5}, "length: expected a whole number"),
        ({"batch": 0}, "batch: expected a whole number >= 1, got 0"),
        ({"batch": True}, "batch: expected a whole number"),
        ({"baseline": 1}, "baseline: expected True or False, got 1"),
        ({"paired": "yes"}, "paired: expected True or False, got 'yes'"),
    ],
)
def test_bad_settings_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MonteCarlo(**kwargs)


@pytest.mark.parametrize("tau", [0.0, -0.1])
def test_the_bellman_penalty_needs_entropy(tau: float) -> None:
    base = random_mdp(2)
    pi = random_policy(base)
    with pytest.raises(ValueError, match=r"^tau: expected a number in \(0, inf\)"):
        BellmanPenalty().sampled(mdp_world(base), (pi,), (pi,), tau, sampler())
