"""The two models beside which the page of large tables sets what is learned from rollouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pandas")  # of the extra dev: the benchmarks' pages need it
pytest.importorskip("jinja2")

from benchmarks import large
from benchmarks.runs import Runs
from bilevel_gym.envs.mdp import random_stackelberg, solve_soft
from bilevel_gym.envs.mdp.stackelberg import StackelbergProblem


@pytest.mark.parametrize("branching", [None, 2])
def test_a_counted_table_is_the_game_up_to_the_noise_of_its_counts(branching: int | None) -> None:
    problem = random_stackelberg(6, 2, 3, seed=4, branching=branching)
    found = large.counted(problem, 200_000, seed=1)
    torch.testing.assert_close(found.r_leader, problem.r_leader, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found.r_follower, problem.r_follower, rtol=1e-6, atol=0.0)  # paid in single precision
    n = 200_000 / 36  # visits of each state and pair of actions, about; states differ by a factor of two
    worst = float(
        ((found.P - problem.P) / (problem.P * (1.0 - problem.P) / n + 1e-12).sqrt())[problem.P > 0].abs().max()
    )
    assert 1.0 < worst < 6.0
    if branching is not None:
        assert bool((found.P[problem.P == 0.0] == 0.0).all())


def test_rows_without_a_visit_pay_nothing_and_lead_anywhere() -> None:
    problem = random_stackelberg(40, 5, 5, seed=0, sparsity=0.0)
    found = large.counted(problem, 1000, seed=0)
    unseen = (found.P == 1.0 / 40).all(-1)
    assert 100 < int(unseen.sum()) < 900
    assert float(found.r_leader[unseen].abs().max()) == float(found.r_follower[unseen].abs().max()) == 0.0
    torch.testing.assert_close(found.r_follower[~unseen], problem.r_follower[~unseen], rtol=1e-6, atol=0.0)


def test_the_rewards_alone_are_the_game_whose_states_follow_each_other_at_random() -> None:
    """With every state as likely to follow, values of the next state are a constant, and the same x and answers are best."""
    problem = random_stackelberg(7, 3, 4, seed=2, gamma=0.8)
    uniform = StackelbergProblem(
        torch.full_like(problem.P, 1.0 / 7), problem.r_leader, problem.r_follower, problem.rho, 0.8, problem.tau
    )
    alone = large.rewards_alone(problem)
    for seed in range(3):
        x = torch.from_numpy(np.random.default_rng(seed).uniform(-3, 3, problem.leader_dim))
        pi, own = (solve_soft(p.follower_mdp(x), 0.01).pi for p in (uniform, alone))
        torch.testing.assert_close(own.reshape(pi.shape), pi, rtol=1e-9, atol=1e-12)
        expected = 0.2 * float(uniform.leader_return(x, pi))  # a return of steps of equal mean
        assert float(alone.leader_return(x, own)) == pytest.approx(expected, rel=1e-9)


def test_a_share_is_that_of_the_improvement() -> None:
    exact = {"kind": "plain", "size": 20, "seed": 5, "start": 2.0}
    data = {
        "exact": [exact | {"table": "itself", "found": 6.0}, exact | {"table": "counted", "found": 5.0}],
        "runs": [{"kind": "plain", "size": 20, "seed": 5, "method": "PPO", "found": 3.0}],
    }
    assert large.shares(data, Runs(data["runs"])) == [0.25]
    counted, ppo = (large.share(data, what, "plain", 20) for what in ("counted", "PPO"))
    assert counted is not None
    assert ppo is not None
    assert (counted.estimate, ppo.estimate) == (0.75, 0.25)
    assert large.share(data, "DQN", "plain", 20) is None
    assert large.shown(data, "plain", 20) == dict.fromkeys([*large.METHODS, *large.TABLES], "") | {
        "PPO": "0.25",
        "counted": "0.75",
    }
    assert len(large.not_run(data)) == 8 + 8 + 6 - 1
