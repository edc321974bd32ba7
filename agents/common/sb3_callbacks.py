"""Stable-Baselines3's callbacks on a leader's loop, and the counterpart of its ``EvalCallback``.

An outer iteration stands for a rollout of one step: ``on_rollout_start``, the iteration, ``on_step``, ``on_rollout_end``. The
leader stands for the model: ``num_timesteps``, ``logger``, ``save``, ``get_env``. So callbacks that count calls count outer
iterations, and ``CheckpointCallback``, ``EveryNTimesteps``, ``ConvertCallback``, ``CallbackList``, and below
:class:`LeaderEvalCallback` ``StopTrainingOnRewardThreshold`` and ``StopTrainingOnNoModelImprovement`` do what they say. Those
that read the local variables of SB3's own loop (``StopTrainingOnMaxEpisodes``, ``ProgressBarCallback``) find none here.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EventCallback

from ...envs.mdp.checks import check_size, require
from ..files import write_whole


class OnLeader(AbstractContextManager["OnLeader"]):
    """An SB3 callback as a leader's: entered when learning starts, called after each outer iteration.

    Args:
        callback: SB3's.
        leader: what learns.
    """

    def __init__(self, callback: BaseCallback, leader: Any) -> None:
        self._callback, self._leader = callback, leader

    def __enter__(self) -> OnLeader:
        self._callback.init_callback(self._leader)
        self._callback.on_training_start({"self": self._leader, "total_timesteps": self._leader._total}, {})
        self._callback.on_rollout_start()
        return self

    def __exit__(self, *raised: Any) -> None:
        if raised[0] is None:
            self._callback.on_training_end()

    def __call__(self, leader: Any) -> bool:
        go_on = self._callback.on_step()
        self._callback.on_rollout_end()
        if go_on:
            self._callback.on_rollout_start()
        return go_on


class LeaderEvalCallback(EventCallback):
    """Evaluate the leader honestly every so often: what SB3's ``EvalCallback`` does for a model.

    What is evaluated is the last x, at the follower's best response (of a learned reward, the follower it leads to). Set the
    config's ``eval_every`` high to leave all evaluations to this.

    Args:
        eval_freq: outer iterations between evaluations.
        callback_on_new_best: SB3's callback that is triggered by a new best.
        callback_after_eval: SB3's callback that is triggered by every evaluation.
        log_path: folder of ``evaluations.npz``: ``timesteps`` ``[n]`` and ``results`` ``[n, 1]``, as SB3 and rl_zoo3 have them.
        best_model_save_path: folder of ``best_model.zip``, the leader at its best.
        verbose: 1 prints every evaluation.

    Attributes:
        best_mean_reward: the best leader return so far, or true return of a learned reward.
        last_mean_reward: the last one.

    Raises:
        ValueError: an ``eval_freq`` under 1.

    Example:
        >>> from stable_baselines3.common.callbacks import StopTrainingOnRewardThreshold
        >>> from bilevel_gym.agents import LeaderEvalCallback, TabularPBRL
        >>> enough = LeaderEvalCallback(eval_freq=5, callback_on_new_best=StopTrainingOnRewardThreshold(5.9))
        >>> leader = TabularPBRL("bilevel_gym/TwoState-v0").learn(300, callback=enough)
        >>> leader.iteration < 300, enough.best_mean_reward >= 5.9
        (True, True)
    """

    def __init__(
        self,
        eval_freq: int = 10,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        log_path: str | Path | None = None,
        best_model_save_path: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(callback_after_eval, verbose)
        for name, callback in (
            ("callback_on_new_best", callback_on_new_best),
            ("callback_after_eval", callback_after_eval),
        ):
            fits = callback is None or isinstance(callback, BaseCallback)
            require(fits, name, "one of SB3's callbacks or None", repr(callback))
        self.eval_freq = check_size(eval_freq, "eval_freq")
        self.callback_on_new_best = callback_on_new_best
        if callback_on_new_best is not None:
            callback_on_new_best.parent = self
        self.log_path = None if log_path is None else Path(log_path)
        self.best_model_save_path = None if best_model_save_path is None else Path(best_model_save_path)
        self.best_mean_reward = self.last_mean_reward = -np.inf
        self.evaluations_timesteps: list[int] = []
        self.evaluations_results: list[float] = []

    def _init_callback(self) -> None:
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.init_callback(self.model)

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq:
            return True
        leader: Any = self.model
        record = leader.evaluate_last()
        self.last_mean_reward = float(getattr(record, "leader_return", getattr(record, "true_return", np.nan)))
        self.num_timesteps = leader.num_timesteps
        self.evaluations_timesteps.append(leader.num_timesteps)
        self.evaluations_results.append(self.last_mean_reward)
        if self.log_path is not None:
            write_whole(self.log_path / "evaluations.npz", self._write)
        if self.verbose:
            print(f"Eval num_timesteps={leader.num_timesteps}, leader_return={self.last_mean_reward:.4g}")
        go_on = True
        if self.last_mean_reward > self.best_mean_reward:
            self.best_mean_reward = self.last_mean_reward
            if self.best_model_save_path is not None:
                leader.save(self.best_model_save_path / "best_model.zip")
            if self.callback_on_new_best is not None:
                go_on = self.callback_on_new_best.on_step()
        return go_on and self._on_event()

    def _write(self, file: Any) -> None:
        held = io.BytesIO()
        np.savez(held, timesteps=self.evaluations_timesteps, results=np.array(self.evaluations_results)[:, None])
        file.write(held.getbuffer())
