"""Random Stackelberg games in which few states follow each state and pair of actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym.envs.mdp import random_stackelberg


def test_a_game_without_branching_is_what_it_was() -> None:
    game, rng = random_stackelberg(7, 3, 2, sparsity=0.4, seed=3), np.random.default_rng(3)
    rewards = rng.uniform(size=(2, 7, 3, 2))
    rewards[rewards < 0.4] = 0.0
    P = rng.uniform(size=(7, 3, 2, 7))
    P /= P.sum(-1, keepdims=True)
    assert np.array_equal(game.P.numpy(), P)
    assert np.array_equal(game.r_leader.numpy(), rewards[0])
    assert np.array_equal(game.r_follower.numpy(), rewards[1])


def test_each_row_has_so_many_random_successors() -> None:
    plain, game = random_stackelberg(40, seed=5), random_stackelberg(40, seed=5, branching=5)
    assert torch.equal(plain.r_leader, game.r_leader)
    assert torch.equal(plain.r_follower, game.r_follower)
    follows = game.P > 0.0
    assert bool((follows.sum(-1) == 5).all())
    torch.testing.assert_close(game.P.sum(-1), torch.ones(40, 5, 5, dtype=torch.float64))
    assert float(game.P[follows].std()) > 0.05
    # 1,000 rows: each state follows 125 of them, give or take 4.5 standard deviations.
    counts = follows.sum((0, 1, 2))
    assert bool(((counts - 125).abs() < 4.5 * (1000 * 0.125 * 0.875) ** 0.5).all())
    assert len({tuple(row.nonzero().flatten().tolist()) for row in follows.reshape(-1, 40)}) > 990
    again, other = random_stackelberg(40, seed=5, branching=5), random_stackelberg(40, seed=6, branching=5)
    assert torch.equal(again.P, game.P)
    assert not torch.equal(other.P > 0.0, follows)


@pytest.mark.parametrize("branching", [1, 4])
def test_the_ends_of_the_range(branching: int) -> None:
    P = random_stackelberg(4, 2, 2, branching=branching).P
    assert bool(((P > 0.0).sum(-1) == branching).all())
    if branching == 1:
        assert P.unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("branching", "message"),
    [
        (0, "branching: expected a whole number >= 1"),
        (5, "branching: expected at most n_states = 4, got 5"),
        (2.5, "branching: expected a whole number"),
        (True, "branching: expected a whole number"),
    ],
)
def test_bad_numbers_are_named(branching: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_stackelberg(4, branching=branching)


def test_the_environment_goes_where_the_game_leads() -> None:
    env: Any = gym.make("bilevel_gym/StackelbergGame-v0", n_states=30, branching=2, seed=1)
    P, rng = env.unwrapped.problem.P, np.random.default_rng(0)
    s, _ = env.reset(seed=0)
    for _ in range(90):
        a = rng.integers(5)
        after, _, _, _, info = env.step(a)
        assert P[s, info["leader_draw"], a, after] > 0.0
        s = after
