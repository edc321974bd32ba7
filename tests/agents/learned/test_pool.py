"""Stored episodes give returns at every x; the envelope bounds the follower's value from below; the belief fears near ties."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C

from bilevel_gym.agents.estimators.rollouts import collect, discounts
from bilevel_gym.agents.learned.answers import fresh_follower
from bilevel_gym.agents.learned.pool import (
    CAUTION,
    Episodes,
    Pool,
    Response,
    best_for_each,
    episodes_of,
    far_corner,
    fixed_points,
    propose,
)
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.mdp import LeaderSet, solve_soft
from bilevel_gym.wrappers import RewardModule, ShapedReward, set_leader

F64 = torch.float64


class Curved(torch.nn.Module):
    """A reward that is not affine in x."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, obs: Any, action: Any, after: Any) -> Any:
        return torch.exp(self.x[0] * obs[:, 0]) - (self.x[1] * after[:, 1]) ** 2 * action.reshape(len(action), -1)[:, 0]


def curved() -> gym.Env[Any, Any]:
    base = gym.make("CartPole-v1", max_episode_steps=15)
    return ShapedReward(base, RewardModule(Curved()), gamma=0.9, low=-1.0, high=1.0, leader_reward=lambda step: 1.0)


WORLDS: dict[str, Any] = {
    "a table": "bilevel_gym/TwoState-v0",
    "tolls": "bilevel_gym/TollDesign-v0",
    "a reward that is not affine": curved,
}


@pytest.mark.parametrize("name", WORLDS)
def test_stored_episodes_give_the_returns_of_episodes_played_at_another_x(name: str) -> None:
    worlds = Worlds(WORLDS[name], None, observe_commitment=False)
    venv = worlds.make(6)
    follower = fresh_follower(worlds, A2C, venv, seed=3)
    start = worlds.start_x()
    set_leader(venv, start.numpy())
    stored = episodes_of(worlds, collect(venv, follower.player(venv, True), 15, 5), np.random.default_rng(0))
    assert (stored.follower is None) == ("not affine" in name)

    rng = torch.Generator().manual_seed(1)
    X = worlds.leader_set
    points = X.project(X.low + (X.high - X.low) * torch.rand(3, X.dim, generator=rng, dtype=F64))
    model = worlds.env.get_wrapper_attr("leader_model")()
    repriced = stored.returns(points, model)
    for i, point in enumerate(points):
        set_leader(venv, point.numpy())
        played = collect(venv, follower.player(venv, True), 15, 5)
        weight = discounts(played, worlds.gamma)
        for got, reward in zip(repriced, (played.r_follower, played.r_leader), strict=True):
            np.testing.assert_allclose(got[i].detach(), (weight * reward).sum(0), rtol=1e-5, atol=1e-6)


def test_the_envelope_is_convex_and_below_the_followers_optimal_value() -> None:
    worlds = Worlds("bilevel_gym/TwoState-v0", None, observe_commitment=False)
    problem: Any = worlds.problem
    venv = worlds.make(256)
    responses, rng = [], np.random.default_rng(0)
    for seed in range(4):
        follower = fresh_follower(worlds, A2C, venv, seed)
        rollout = collect(venv, follower.player(venv, True), worlds.horizon(1e-4), 7)
        responses.append(Response("fresh", worlds.start_x(), {}, episodes_of(worlds, rollout, rng)))
    pool = Pool(responses, worlds.env.get_wrapper_attr("leader_model")())
    X = worlds.leader_set
    a, b = X.project(torch.rand(2, X.dim, dtype=F64, generator=torch.Generator().manual_seed(0)) * (X.high - X.low))
    line = torch.stack([a + t * (b - a) for t in torch.linspace(0.0, 1.0, 21, dtype=F64)])
    envelope = pool.believe(line).envelope
    assert bool((envelope[2:] - 2.0 * envelope[1:-1] + envelope[:-2] > -1e-9).all())
    for point, value in zip(line[::10], envelope[::10], strict=True):
        mdp = problem.follower_mdp(point)
        assert value <= float(mdp.rho @ solve_soft(mdp, 0.0).V) + 0.1  # noise of 256 episodes


def made(values: list[tuple[list[float], list[float]]], noise: float = 0.0, n: int = 16) -> Pool:
    """A pool whose policies have these returns (at x = 0, and slopes), the same noise in each episode but in the last policy."""
    episodes = []
    for k, pair in enumerate(values):
        tables = []
        for table in pair:
            rows = torch.tensor(table, dtype=F64).repeat(n, 1)
            if k == len(values) - 1:
                rows[:, 0] += noise * torch.linspace(-1.0, 1.0, n, dtype=F64)
            tables.append(rows)
        episodes.append(Episodes(tables[0], tables[1]))
    return Pool([Response("made", torch.zeros(1, dtype=F64), {}, e) for e in episodes], torch.nn.Identity())


def test_the_belief_is_the_leaders_smallest_return_at_a_policy_as_good_within_the_noise() -> None:
    # The follower prefers the second policy from x = 0.5 on; the leader earns 0 or 1 - x.
    pool = made([([0.0, 0.0], [0.0, 0.0]), ([-0.5, 1.0], [1.0, -1.0])])
    x = torch.tensor([[0.2], [0.5], [0.6]], dtype=F64)
    belief = pool.believe(x)
    assert belief.best.tolist()[0::2] == [0, 1]
    torch.testing.assert_close(belief.envelope, torch.tensor([0.0, 0.0, 0.1], dtype=F64))
    torch.testing.assert_close(belief.feared, torch.tensor([0.0, 0.0, 0.4], dtype=F64))

    # With noise in the difference the first policy is feared up to three standard errors beyond the threshold.
    noisy = made([([0.0, 0.0], [0.0, 0.0]), ([-0.5, 1.0], [1.0, -1.0])], noise=0.2)
    apart = 0.2 * torch.linspace(-1.0, 1.0, 16, dtype=F64)
    reach = 3.0 * float(apart.std()) / 4.0
    x = torch.tensor([[0.5 + 0.99 * reach], [0.5 + 1.01 * reach]], dtype=F64)
    torch.testing.assert_close(
        noisy.believe(x).feared, torch.tensor([0.0, float(0.5 - 1.01 * reach)], dtype=F64), atol=0.25, rtol=0.0
    )
    assert noisy.believe(x).feared[0] < 0.01 < noisy.believe(x).feared[1]
    # Before the threshold the second policy is better for the leader and cannot be ruled out; far from it nothing is in doubt.
    before, clear = torch.tensor([0.5 - 0.9 * reach], dtype=F64), torch.tensor([0.9], dtype=F64)
    assert noisy.doubt(before) == pytest.approx(0.5 + 0.9 * reach, abs=1e-9)
    assert noisy.doubt(clear) == 0.0


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_the_proposal_is_just_beyond_a_threshold(dim: int) -> None:
    # The second policy is preferred where sum x >= dim / 2, and the leader earns dim - sum x there, else nothing.
    zero = [0.0] * (dim + 1)
    pool = made([(zero, zero), ([-dim / 2, *[1.0] * dim], [float(dim), *[-1.0] * dim])])
    X = LeaderSet.box(dim, 0.0, 1.0)
    trained = torch.stack([far_corner(X, torch.zeros(dim, dtype=F64)), torch.zeros(dim, dtype=F64)])
    x = propose(pool, X, fixed_points(X, 1024), trained, np.random.default_rng(0), 0.05)
    assert X.contains(x)
    value = float(pool.believe(x[None]).feared)
    assert value > 0.9 * dim / 2


def test_the_gain_of_the_newest_policy_is_over_the_best_other() -> None:
    pool = made([([0.0, 0.0], [0.0, 0.0]), ([-0.5, 1.0], [0.0, 0.0]), ([0.1, 0.0], [0.0, 0.0])])
    for x, expected in ((0.0, 0.1), (0.4, 0.1), (1.0, -0.4)):
        gain, stderr = pool.gain(torch.tensor([x], dtype=F64))
        assert gain == pytest.approx(expected)
        assert stderr == pytest.approx(0.0, abs=1e-12)


def test_the_far_corner_lies_in_X() -> None:
    X = LeaderSet(torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64), 2.0)
    torch.testing.assert_close(far_corner(X, torch.zeros(3, dtype=F64)), torch.full((3,), 2.0 / 3.0, dtype=F64))
    torch.testing.assert_close(
        far_corner(LeaderSet.box(2, -1.0, 1.0), torch.tensor([0.5, -0.5], dtype=F64)),
        torch.tensor([-1.0, 1.0], dtype=F64),
    )


def pieces(seed: int, dim: int, K: int, n: int = 8) -> Pool:
    """A pool of random policies whose returns differ from episode to episode."""
    rng = torch.Generator().manual_seed(seed)

    def table() -> torch.Tensor:
        return torch.randn(1, 1 + dim, generator=rng, dtype=F64) + 0.1 * torch.randn(
            n, 1 + dim, generator=rng, dtype=F64
        )

    made = [Episodes(table(), table()) for _ in range(K)]
    return Pool([Response("made", torch.zeros(dim, dtype=F64), {}, e) for e in made], torch.nn.Identity())


@pytest.mark.parametrize("budget", [np.inf, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_linear_programmes_find_the_best_x_for_each_policy(seed: int, budget: float) -> None:
    pool = pieces(seed, dim=2, K=4)
    X = LeaderSet(-torch.ones(2, dtype=F64), torch.ones(2, dtype=F64), budget)
    found = best_for_each(pool, X)
    assert all(X.contains(x) for x in found)
    # On a fine grid no point has a larger belief than the best solution, which keeps its distance from every other policy.
    side = torch.linspace(-1.0, 1.0, 201, dtype=F64)
    grid = torch.cartesian_prod(side, side)
    grid = grid[grid.abs().sum(1) <= budget]
    cautious = Pool(pool.responses, pool.model, CAUTION * pool.margin)
    assert pool.believe(found).feared.max() >= cautious.believe(grid).feared.max() - 0.06
    with torch.no_grad():
        F, _ = pool.returns(found)
    best = pool.believe(found).best
    for i in range(len(found)):
        apart = F[best[i], i] - F[:, i]
        noise = apart.std(-1) / 8**0.5
        others = torch.arange(4) != best[i]
        assert bool(
            (apart.mean(-1) > 0.9 * CAUTION * pool.margin * noise)[others].all()
        )  # up to the last round's noise


def test_the_exchange_is_the_ratio_of_spreads() -> None:
    pool = made([([0.0, 0.0], [0.0, 0.0]), ([2.0, 0.0], [-4.0, 0.0]), ([1.0, 1.0], [1.0, 0.0])])
    assert pool.exchange(torch.tensor([3.0], dtype=F64)) == pytest.approx(4.0 / 5.0)
    assert made([([0.0, 0.0], [1.0, 0.0])]).exchange(torch.zeros(1, dtype=F64)) == 0.0
