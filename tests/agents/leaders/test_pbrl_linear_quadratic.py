"""PBRL over a linear-quadratic game: SAC, TD3 and PPO as followers, records by Riccati, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO, SAC, TD3
from torch import Tensor

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts
from bilevel_gym.envs.mdp import steering_game

LQ = "bilevel_gym/LQStackelberg-v0"


@pytest.mark.parametrize("algorithm", [SAC, TD3, PPO])
def test_continuous_algorithms_play_the_linear_quadratic_game(algorithm: Any, tmp_path: Path) -> None:
    """The record is exact at the best response; the penalised follower, hardly trained, falls short of it."""
    config = PBRLConfig(n_envs=8, follower_steps=256, warmup_steps=256, estimator=Rollouts(16), eval_every=1)
    leader = PBRL(LQ, algorithm, config=config).learn(4500)
    game = steering_game()
    record, x = leader.evaluate(), torch.from_numpy(leader.x)
    assert record.leader_return == float(game.leader_return(x, game.best_response(x).F))
    assert record.leader_return == max(one.leader_return for one in leader.history)
    assert record.leader_return_stderr == 0.0
    assert record.penalty is not None
    assert record.penalty > 0.0
    again = PBRL.load(leader.save(tmp_path / "leader.zip"))
    assert again.evaluate() == record
    with pytest.raises(ValueError, match="env: expected the environment of"):
        PBRL.load(tmp_path / "leader.zip", env=gym.make(LQ, sigma=0.2))


def test_the_record_of_the_exact_follower_has_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Riccati's F in pi_y's place the gap is rounding; with another, its exact loss within four standard errors."""
    leader = PBRL(LQ, PPO, config=PBRLConfig(n_envs=4, estimator=Rollouts(4000)))
    game, x = steering_game(), torch.tensor([-0.6, 0.3], dtype=torch.float64)
    best = game.best_response(x).F
    for F in (best, best + 0.2):

        def act(obs: Any, F: Tensor = F) -> Any:
            return -(obs[:, :2] @ F.numpy().T) / game.action_bound.numpy()

        monkeypatch.setattr(leader.penalised, "act", act)
        record = leader.method.evaluate(leader.state, x, leader.iteration)
        gap = float(game.follower_return(x, best) - game.follower_return(x, F))
        assert record.penalty == pytest.approx(gap, rel=0.05, abs=1e-6)
        assert record.leader_return_at_pi_y == pytest.approx(float(game.leader_return(x, F)), rel=0.01)
    assert gap > 0.05


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_the_leader_learns_the_linear_quadratic_game(seed: int) -> None:
    config = PBRLConfig(n_envs=16, follower_steps=512, estimator=Rollouts(32), learning_rate=0.1, eval_every=1000)
    leader = PBRL(LQ, PPO, config=config, seed=seed).learn(30_000)
    game = steering_game()
    start, reached = (float(game.return_at_best_response(x)) for x in (game.start_x(), torch.from_numpy(leader.last_x)))
    assert reached - start > 0.5 * (game.optimum().leader_return - start)
