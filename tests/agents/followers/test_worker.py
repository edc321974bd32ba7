"""The penalised follower in a process of its own: the same numbers, to the bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.survival import differences
from bilevel_gym.agents import PBRL, BellmanPenalty, PBRLConfig, Rollouts
from bilevel_gym.agents.followers.worker import WorkerError

ENV, KWARGS = "bilevel_gym/StackelbergGame-v0", {"n_states": 4}


def config(side_by_side: bool, **changes: Any) -> PBRLConfig:
    small: dict[str, Any] = {"n_envs": 4, "warmup_steps": 128, "follower_steps": 64, "estimator": Rollouts(n_envs=4)}
    return PBRLConfig(**(small | {"eval_every": 2, "side_by_side": side_by_side} | changes))


@pytest.mark.parametrize("follower", [PPO, DQN])
def test_numbers_are_the_same_to_the_bit(follower: type[BaseAlgorithm], tmp_path: Path) -> None:
    """Also after a file, replay buffers with it, from which a leader of the other kind goes on."""
    leaders = {}
    for beside in (False, True):
        path = tmp_path / f"{beside}.zip"
        leader = PBRL(ENV, follower, config=config(beside), env_kwargs=KWARGS)
        leader.learn(2000).save(path, replay=True)
        assert (leader.method._worker is not None) == beside
        if beside:
            assert leader.method._worker is not None
            assert leader.method._worker._process.pid != os.getpid()
        leader.learn(1000, reset_num_timesteps=False)
        again = PBRL.load(path).learn(1000, reset_num_timesteps=False)
        assert again.config.side_by_side == beside
        leaders[beside] = (leader, again)
    reference = leaders[False][0]
    assert reference.iteration > 3
    for leader in (*leaders[False][1:], *leaders[True]):
        np.testing.assert_array_equal(leader.last_x, reference.last_x)
        assert leader.history == reference.history
        assert differences(leader.penalised.state_dict(), reference.penalised.state_dict()) == []
        assert differences(leader.best_response.state_dict(), reference.best_response.state_dict()) == []
        assert leader.num_timesteps == reference.num_timesteps
    for pair in leaders.values():
        for leader in pair:
            leader.close()
            assert leader.method._worker is None


def unless_at_home(home: int, ending: Callable[[], Any], venv: VecEnv) -> PPO:
    """A follower whose training ends so in any other process."""
    model = PPO("MlpPolicy", venv, gamma=0.9, n_steps=8, batch_size=32)
    train = model.train
    model.train = lambda: train() if os.getpid() == home else ending()  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("ending", "message"), [(lambda: os._exit(7), "got exit code 7"), (lambda: 1 / 0, "ZeroDivisionError")]
)
def test_a_process_that_dies_or_fails_is_told_of(ending: Callable[[], Any], message: str) -> None:
    follower = partial(unless_at_home, os.getpid(), ending)
    leader = PBRL(ENV, follower, config=config(True, averaging=0.0), env_kwargs=KWARGS)
    with pytest.raises(WorkerError, match=message):
        leader.learn(1000)
    leader.close()


def test_what_cannot_go_side_by_side() -> None:
    with pytest.raises(ValueError, match="side_by_side: expected False with vec_env='subproc'"):
        config(True, vec_env="subproc")
    with pytest.raises(ValueError, match="side_by_side: expected True or False, got 'yes'"):
        config("yes")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="side_by_side: expected False for a BellmanPenalty, whose penalised follower waits"
    ):
        PBRL(ENV, DQN, penalty=BellmanPenalty(), config=config(True), env_kwargs=KWARGS)
    with pytest.raises(ValueError, match="side_by_side: expected False for a game"):
        PBRL("bilevel_gym/incentive_design_v0", PPO, config=PBRLConfig.for_a_game(side_by_side=True))
