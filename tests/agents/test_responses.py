"""What a leader gets from followers trained at its x: exact numbers agree with the solvers', bad input is named."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC

from bilevel_gym.agents import leader_return_at_best_response, robustness
from bilevel_gym.envs.mdp import random_stackelberg, solve_soft

ENV, KWARGS = (
    "bilevel_gym/StackelbergGame-v0",
    {"n_states": 6, "n_leader_actions": 3, "n_follower_actions": 3, "seed": 1},
)


def test_training_leaves_little_regret() -> None:
    x = np.random.default_rng(0).normal(size=18)
    trained, raw = (robustness(ENV, x, {"PPO": PPO}, steps, [0], KWARGS)[0] for steps in (20_000, 1))
    F_0 = leader_return_at_best_response(random_stackelberg(6, 3, 3, seed=1), torch.from_numpy(x))
    assert trained.leader_return == raw.leader_return == F_0
    assert trained.follower_regret is not None
    assert raw.follower_regret is not None
    assert 0.0 <= trained.follower_regret < 0.1 < raw.follower_regret


def test_what_the_follower_earns_and_gives_up_is_what_there_is() -> None:
    x = np.zeros(18)
    mdp = random_stackelberg(6, 3, 3, seed=1).follower_mdp(torch.from_numpy(x))
    best = float((mdp.rho * solve_soft(mdp, 0.0).V).sum())
    for found in robustness(ENV, x, {"PPO": PPO}, 2_000, [3, 4], KWARGS):
        assert found.follower_regret is not None
        assert found.follower_return + found.follower_regret == pytest.approx(best, abs=1e-9)
        assert found.leader_return_at_follower_stderr == 0.0


def test_one_seed_gives_one_answer() -> None:
    runs = [robustness(ENV, np.zeros(18), {"PPO": PPO}, 2_000, seeds, KWARGS) for seeds in ([0], [0], [1])]
    assert runs[0] == runs[1]
    assert runs[0][0].leader_return_at_follower != runs[2][0].leader_return_at_follower


def test_without_a_table_returns_are_sampled_and_riccati_tells_the_best_response() -> None:
    (found,) = robustness("bilevel_gym/LQStackelberg-v0", np.zeros(2), {"SAC": SAC}, 200, [0], n_envs=4)
    assert found.leader_return_at_follower_stderr > 0.0
    assert found.follower_regret is None
    assert found.leader_return is not None


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="followers: expected at least one"):
        robustness(ENV, np.zeros(18), {}, env_kwargs=KWARGS)
    with pytest.raises(ValueError, match="x: expected shape"):
        robustness(ENV, np.zeros(3), {"PPO": PPO}, env_kwargs=KWARGS)
    with pytest.raises(ValueError, match="seeds: expected at least one"):
        robustness(ENV, np.zeros(18), {"PPO": PPO}, seeds=[], env_kwargs=KWARGS)
    with pytest.raises(ValueError, match="follower: expected an algorithm for"):
        robustness(ENV, np.zeros(18), {"SAC": SAC}, env_kwargs=KWARGS)
