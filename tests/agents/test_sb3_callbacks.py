"""SB3's callbacks on a leader's loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)

from bilevel_gym.agents import DRLHF, PBRL, PBRLConfig, PreferenceConfig, Rollouts, TabularPBRL
from bilevel_gym.agents.callbacks import LeaderEvalCallback

ENV = "bilevel_gym/TwoState-v0"
SMALL = PBRLConfig(n_envs=4, warmup_steps=64, follower_steps=64, estimator=Rollouts(n_envs=4))


class Recorder(BaseCallback):
    """What a callback is told, and in which order."""

    def __init__(self, last: int = 10**9) -> None:
        super().__init__()
        self.last, self.seen = last, list[Any]()

    def _on_training_start(self) -> None:
        self.seen.append(("start", self.model.iteration, self.locals["total_timesteps"]))  # type: ignore[attr-defined]

    def _on_rollout_start(self) -> None:
        self.seen.append("rollout")

    def _on_step(self) -> bool:
        self.seen.append((self.n_calls, self.num_timesteps))
        self.logger.record("own/calls", self.n_calls)
        return self.n_calls < self.last

    def _on_rollout_end(self) -> None:
        self.seen.append("end of rollout")

    def _on_training_end(self) -> None:
        self.seen.append("end")


def test_an_outer_iteration_is_a_rollout_of_one_step() -> None:
    recorder = Recorder(last=2)
    leader = TabularPBRL(ENV).learn(5, callback=recorder)
    assert leader.iteration == 2
    assert recorder.seen == [
        ("start", 0, 5), "rollout", (1, 1), "end of rollout", "rollout", (2, 2), "end of rollout", "end",
    ]  # fmt: skip
    assert leader.history[-1].iteration == 2


def test_steps_are_the_leaders_and_the_world_is_its_followers() -> None:
    steps: list[int] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            steps.append(self.num_timesteps)
            assert self.training_env.num_envs == 4
            return True

    leader = PBRL(ENV, A2C, config=SMALL).learn(600, callback=[Look(), lambda leader: None])
    assert steps[-1] <= leader.num_timesteps
    assert len(steps) == leader.iteration > 1
    assert leader.get_env() is leader.follower.venv


def test_sb3s_own_do_what_they_say(tmp_path: Path) -> None:
    called: list[int] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        called.append(local["self"].iteration)
        return True

    convert = ConvertCallback(note)
    several = CallbackList([CheckpointCallback(4, str(tmp_path)), EveryNTimesteps(3, convert)])
    leader = TabularPBRL(ENV).learn(10, callback=several)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl_model_4_steps.zip", "rl_model_8_steps.zip"]
    assert TabularPBRL.load(tmp_path / "rl_model_8_steps.zip").iteration == 8
    assert called == [3, 6, 9]
    assert leader.iteration == 10


def test_honest_evaluations_stop_learning(tmp_path: Path) -> None:
    stop = StopTrainingOnRewardThreshold(5.5)
    judge = LeaderEvalCallback(2, stop, log_path=tmp_path / "log", best_model_save_path=tmp_path)
    leader = TabularPBRL(ENV).learn(300, callback=judge)
    assert 5.5 <= judge.best_mean_reward == judge.last_mean_reward == leader.history[-1].leader_return
    assert leader.iteration < 300
    held = np.load(tmp_path / "log" / "evaluations.npz")
    assert held["timesteps"].tolist() == list(range(2, leader.iteration + 1, 2))
    returns = {e.iteration: e.leader_return for e in leader.history}
    assert held["results"][:, 0].tolist() == [returns[at] for at in held["timesteps"]]
    np.testing.assert_array_equal(TabularPBRL.load(tmp_path / "best_model.zip").x, leader.x)


def test_no_improvement_stops_learning() -> None:
    patience = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=3)
    judge = LeaderEvalCallback(1, callback_after_eval=patience)
    leader = TabularPBRL(ENV, x0=TabularPBRL(ENV).learn(300).x).learn(300, callback=judge)
    returns = np.array(judge.evaluations_results)
    assert leader.iteration < 300
    assert returns[-3:].max() <= returns[:-3].max()


def test_an_evaluation_is_not_made_twice() -> None:
    leader = TabularPBRL(ENV)
    leader.learn(20, callback=LeaderEvalCallback(5))
    assert [e.iteration for e in leader.history] == [0, 5, 10, 15, 20]


def test_evaluations_of_a_learned_reward() -> None:
    config = PreferenceConfig(labels=4, first_labels=2, length=5, first_steps=64, follower_steps=64, first_epochs=2)
    judge = LeaderEvalCallback(1)
    leader = DRLHF("bilevel_gym/RewardGrid-v0", A2C, config=config).learn(300, callback=judge)
    assert judge.last_mean_reward == leader.evaluate().true_return
    assert len(judge.evaluations_results) == leader.iteration


@pytest.mark.parametrize("callback", [3, "each", [3]])
def test_what_is_no_callback(callback: Any) -> None:
    with pytest.raises(
        ValueError, match="callback: expected a callable that takes the leader, one of SB3's, or several"
    ):
        TabularPBRL(ENV).learn(2, callback=callback)


def test_what_an_evaluation_cannot_call() -> None:
    with pytest.raises(ValueError, match="callback_on_new_best: expected one of SB3's callbacks or None, got"):
        LeaderEvalCallback(callback_on_new_best=print)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eval_freq"):
        LeaderEvalCallback(0)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: EvalCallback(gym.make("CartPole-v1")), "LeaderEvalCallback"),
        (lambda: CallbackList([EvalCallback(gym.make("CartPole-v1"))]), "LeaderEvalCallback"),
        (lambda: EveryNTimesteps(5, EvalCallback(gym.make("CartPole-v1"))), "LeaderEvalCallback"),
        (lambda: StopTrainingOnMaxEpisodes(3), "a callable that checks leader.num_timesteps"),
        (lambda: StopTrainingOnRewardThreshold(1.0), "one below LeaderEvalCallback"),
        (lambda: StopTrainingOnNoModelImprovement(3), "one below LeaderEvalCallback"),
        (
            lambda: CheckpointCallback(5, "nowhere", save_vecnormalize=True),
            "CheckpointCallback with save_vecnormalize=False",
        ),
    ],
)
def test_a_callback_that_does_not_fit_is_refused_before_a_step(make: Callable[[], Any], expected: str) -> None:
    leader = TabularPBRL("bilevel_gym/TwoState-v0")
    with pytest.raises(ValueError, match=f"^callback: expected {expected}"):
        leader.learn(60, make())
    assert (leader.iteration, leader.history) == (0, [])
