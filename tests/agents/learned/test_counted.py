"""A counted table against the model that it was counted from: returns, standard errors, what was never tried."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from bilevel_gym.agents.learned.counted import Counting, Counts, Table, plan, seek
from bilevel_gym.envs.mdp import TabularMDP, policy_return, random_stackelberg, solve_soft

S, A, GAMMA = 6, 3, 0.9


def drawn(mdp: TabularMDP, leader: Any, n: int, rng: np.random.Generator) -> Table:
    """A table counted from transitions at pairs that are drawn evenly; the leader's reward has noise of 1."""
    counts = Counts(S, A, GAMMA)
    counts.begin(rng.choice(S, size=n, p=mdp.rho.numpy()))
    s, a = rng.integers(S, size=n), rng.integers(A, size=n)
    after = (mdp.P.numpy()[s, a].cumsum(-1) < rng.random((n, 1))).sum(-1)
    r_l = leader[s, a] + rng.standard_normal(n)
    for part in np.array_split(np.arange(n), 5):
        counts.add(s[part], a[part], after[part], mdp.r.numpy()[s[part], a[part]], r_l[part], np.zeros(len(part), bool))
    return counts.table()


@pytest.fixture(scope="module")
def game() -> tuple[TabularMDP, Any]:
    problem = random_stackelberg(S, A, A, gamma=GAMMA, seed=3)
    x = problem.start_x()
    return problem.follower_mdp(x).detach(), problem.leader_reward(x).detach().numpy()


def test_returns_in_the_table_are_the_model_s(game: tuple[TabularMDP, Any]) -> None:
    mdp, leader = game
    table = drawn(mdp, leader, 40_000, np.random.default_rng(0))
    pi = np.random.default_rng(1).dirichlet(np.ones(A), size=S)
    exact = TabularMDP(torch.from_numpy(table.P.toarray()).reshape(S, A, S), mdp.r, torch.from_numpy(table.rho), GAMMA)
    value = float(table.rho @ table.value(pi, table.rewards(0)))
    assert value == pytest.approx(float(policy_return(exact, torch.from_numpy(pi))), rel=1e-9)
    assert table.occupancy(pi).sum() == pytest.approx(1.0 / (1.0 - GAMMA), rel=1e-9)
    assert float((table.occupancy(pi) * table.rewards(0)).sum()) == pytest.approx(value, rel=1e-9)
    found = plan(table, np.random.default_rng(2))
    best = solve_soft(exact, 0.0)
    assert np.array_equal(found.pi, best.pi.argmax(-1).numpy())
    assert float(table.rho @ found.V_f) == pytest.approx(float(policy_return(exact, best.pi)), rel=1e-9)
    assert found.regret(np.eye(A)[found.pi])[0] == pytest.approx(0.0, abs=1e-9)
    assert found.regret(pi)[0] == pytest.approx(float(policy_return(exact, best.pi)) - value, rel=1e-9)


def test_the_standard_error_is_the_spread_over_tables(game: tuple[TabularMDP, Any]) -> None:
    """Of the leader's return at the best answer, over 60 tables from fresh transitions; the truth lies within two of it."""
    mdp, leader = game
    best = solve_soft(mdp, 0.0).pi
    truth = float(policy_return(mdp.with_reward(torch.from_numpy(leader)), best))
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        answer = plan(drawn(mdp, leader, 1500, rng), rng)
        found.append((answer.leader_return, answer.leader_return_stderr))
    returns, errors = np.array(found).T
    assert np.mean(np.abs(returns - truth) < 2.0 * errors) > 0.9
    assert 0.7 < np.median(errors) / returns.std() < 1.5


def test_the_error_shrinks_with_transitions(game: tuple[TabularMDP, Any]) -> None:
    mdp, leader = game
    rng = np.random.default_rng(0)
    few, many = (plan(drawn(mdp, leader, n, rng), rng).leader_return_stderr for n in (1_000, 64_000))
    assert many < 0.3 * few


def test_what_was_never_tried_is_not_claimed_to_be_known() -> None:
    """Staying pays 1 for ever; leaving 1.5 once, and then 0.1 by one action and whatever it may be by the other."""
    counts = Counts(2, 2, 0.5)
    n = 100
    zeros, ones = np.zeros(n, dtype=np.int64), np.ones(n, dtype=np.int64)
    counts.begin(zeros)
    stay = np.zeros(n, dtype=bool)
    counts.add(zeros, zeros, zeros, np.ones(n), np.full(n, 3.0), stay)
    counts.add(zeros, ones, ones, np.full(n, 1.5), np.full(n, -3.0), stay)
    counts.add(ones, zeros, ones, np.full(n, 0.1), np.full(n, -3.0), stay)
    open_, rng = plan(counts.table(), np.random.default_rng(0)), np.random.default_rng(0)
    counts.add(ones, ones, ones, np.full(n, 0.1), np.full(n, -3.0), stay)
    closed = plan(counts.table(), rng)
    assert closed.leader_return == pytest.approx(6.0, rel=1e-9)
    assert closed.leader_return_stderr == pytest.approx(6e-6, rel=0.01)  # rewards are float32
    assert open_.leader_return_stderr > 1.0


class Corridor(gym.Env[Any, Any]):
    """Ten rooms in a row, the reward at the far end: random play hardly ever comes there; one action does not exist."""

    def __init__(self) -> None:
        self.observation_space, self.action_space, self.s = gym.spaces.Discrete(10), gym.spaces.Discrete(3), 0

    def action_masks(self) -> Any:
        return np.array([True, True, False])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.s = 0
        return np.int64(0), {}

    def step(self, action: Any) -> Any:
        assert action != 2, "an action that does not exist"
        self.s = min(self.s + 1, 9) if action == 1 else 0
        ended = self.s == 9
        info = {"leader_reward": -1.0, "leader_draw": 0}
        return np.int64(self.s), 10.0 if ended else 0.01 * float(action == 0), ended, False, info


def test_a_seeker_finds_what_is_far_away_and_takes_no_action_that_is_missing() -> None:
    counts = Counts(10, 3, 0.99)
    venv = Counting(DummyVecEnv([Corridor] * 4), counts, lambda obs: obs)
    spent = seek(venv, 8_000, np.random.default_rng(0))
    assert 8_000 <= spent < 8_100
    found = plan(counts.table(), np.random.default_rng(0))
    assert found.pi[:9].tolist() == [1] * 9
    assert not counts.table().allowed[:9, 2].any()
    assert found.leader_return == pytest.approx(-(1.0 - 0.99**9) / 0.01, rel=1e-6)


def test_transitions_are_counted_as_they_happen() -> None:
    """Starts, ends and what was paid, against a diary of the same steps."""
    counts = Counts(10, 3, 0.9)
    venv = Counting(DummyVecEnv([Corridor] * 2), counts, lambda obs: obs)
    venv.reset()
    for action in [1] * 9 + [0, 1]:
        venv.step(np.array([action, 0]))
    table = counts.table()
    assert table.n.sum() == 22
    assert table.starts[0] == 3.0  # two at first, and one after the first copy's end
    assert table.n[8, 1] == 1.0
    assert table.P[8 * 3 + 1].sum() == 0.0  # the episode's end
    assert table.rewards(0)[8, 1] == 10.0
    assert table.n[0].tolist() == [12.0, 2.0, 0.0]
