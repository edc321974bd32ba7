"""The worlds that pages and tests share: their truth, and that no leader is shown it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from benchmarks.worlds import (
    FISHERIES,
    FISHERY_BEST,
    deep_worlds,
    episode_truth,
    fishery,
    plant_truth,
    side_by_side,
    table_truth,
)
from bilevel_gym.envs.mdp import steering_game
from examples.extending.environment import FisheryProblem

F64 = torch.float64


@pytest.mark.parametrize(("name", "start"), [("fishery_1", 52.88), ("fishery_2", 68.10), ("fishery_3", 37.40)])
def test_the_fishery_at_its_start(name: str, start: float) -> None:
    assert table_truth(fishery(*FISHERIES[name]), np.zeros(3)) == pytest.approx(start, abs=0.005)


def test_the_fishery_at_other_taxes() -> None:
    """In the third form very small taxes change nothing, and cost, and the best is beyond a threshold."""
    third = fishery(*FISHERIES["fishery_3"])
    assert table_truth(third, np.array([1.0, 1.0, 0.0])) == pytest.approx(52.37, abs=0.01)
    assert episode_truth(third, np.array([1.0, 1.0, 0.0])) == pytest.approx(FISHERY_BEST["fishery_3"], abs=0.01)
    assert table_truth(third, np.full(3, 1e-4)) < table_truth(third, np.zeros(3))
    first, levels = fishery(), fishery(by_level=True)
    zones = np.minimum(np.arange(40) // 14, 2)
    for x in (np.zeros(3), np.array([0.3, 0.2, 0.1]), np.array([0.9, 0.05, 0.0])):
        assert table_truth(levels, x[zones]) == pytest.approx(table_truth(first, x), abs=1e-9)
    assert levels.leader_set.budget == 20.0
    assert levels.leader_dim == 40


def test_the_example_is_the_same_fishery() -> None:
    ours, theirs, x = fishery(), FisheryProblem(), torch.tensor([0.5, 0.25, 0.75], dtype=F64)
    one, two = ours.follower_mdp(x), theirs.follower_mdp(x)
    torch.testing.assert_close(one.dense_P, two.dense_P)
    torch.testing.assert_close(one.r, two.r)
    torch.testing.assert_close(one.rho, two.rho)
    torch.testing.assert_close(ours.leader_reward(x), theirs.leader_reward(x))


def test_games_side_by_side_are_as_many_games() -> None:
    one, two = steering_game(), side_by_side(2)
    assert (two.leader_dim, two.sizes) == (8, (4, 2, 2))
    for a, b in (((-0.5, 0.3), (-1.2, 0.7)), ((0.0, 0.0), (-1.0101, 0.2616))):
        x = np.array([*a, 0.0, 0.0, 0.0, 0.0, *b])
        apart = sum(plant_truth(one, np.array(part)) for part in (a, b))
        assert plant_truth(two, x) == pytest.approx(apart, rel=1e-10)
    # No feedback between the games is better than the best of each: the optimum is that of one game, twice.
    assert two.optimum().leader_return == pytest.approx(2.0 * one.optimum().leader_return, rel=1e-9)
    best = one.optimum().x
    zero = torch.zeros(2, dtype=F64)
    torch.testing.assert_close(two.optimum().x, torch.cat([best, zero, zero, best]), atol=1e-6, rtol=0.0)


@pytest.mark.long
def test_every_world_is_hidden_and_its_start_is_below_its_best() -> None:
    for name, world in deep_worlds().items():
        env = world.make()
        assert not env.has_wrapper_attr("problem"), name
        assert env is not world.make()
        assert env.get_wrapper_attr("gamma") == world.gamma
        assert hasattr(env.action_space, "low") is world.box_actions
        env.get_wrapper_attr("set_leader")(world.start)
        assert world.truth(world.start) < world.best - 1.0
        assert copy.deepcopy(env).get_wrapper_attr("leader_x").tolist() == world.start.tolist()
