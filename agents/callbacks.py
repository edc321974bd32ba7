"""Callbacks of a leader's ``learn``: :class:`Checkpoint`, and Stable-Baselines3's callbacks on a leader's loop.

For SB3's callbacks an outer iteration counts as a rollout of one step: ``on_rollout_start``, the iteration, ``on_step``,
``on_rollout_end``. The leader takes the model's place: ``num_timesteps``, ``logger``, ``save``, ``get_env``. So callbacks that
count calls count outer iterations. ``CheckpointCallback``, ``EveryNTimesteps``, ``ConvertCallback`` and ``CallbackList`` work, as
do ``StopTrainingOnRewardThreshold`` and ``StopTrainingOnNoModelImprovement`` below a :class:`LeaderEvalCallback`. Callbacks
that read SB3's own loop (``EvalCallback``, ``StopTrainingOnMaxEpisodes``, ``ProgressBarCallback``) are refused before a step.
"""

from __future__ import annotations

import io
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)

from ..envs.mdp.checks import check_size, require
from ..wrappers.workers import SIGNALS
from .checkpoint import leader_path
from .files import clear_parts, write_whole


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """Save the leader every ``every`` outer iterations and at the end, to one file that is written atomically.

    However the run ends, even by a killed process or a worker's death, the file holds the last checkpoint. ``load`` and
    ``resume`` continue from it::

        leader.learn(1_000_000, Checkpoint("leader.zip", every=10))
        PBRL.load("leader.zip").resume(Checkpoint("leader.zip", every=10))  # after an interruption

    **Exact resumption.** With the same machine, packages, number of threads and environments, the resumed leader is bitwise
    equal to that of an uninterrupted run: x, optimiser, followers, replay buffers, generators, records and log. This holds for
    any ``every``, and with or without checkpoints.

    **Signals.** On SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal) the current iteration is finished and a checkpoint
    saved; then the signal has its usual effect (``KeyboardInterrupt``, or the end of the process). The first evaluation and the
    followers' warm-up count as part of the first iteration. A second signal ends the run at once. Worker processes ignore
    these signals, so they may be sent to the whole process group. Signals that were ignored before stay ignored (``nohup``).
    Signals are handled in the main thread only, as Python requires.

    **Write errors** (a full disk, a folder that became read-only) give a warning: learning continues, and the previous
    checkpoint is kept.

    Args:
        path: the file, e.g. ``"leader.zip"`` (``.zip`` is added where there is no suffix), in an existing, writable folder.
        every: number of outer iterations between checkpoints. Default: 10.

    Attributes:
        saved: the iteration of the last checkpoint; None before the first.

    Raises:
        ValueError: the folder does not exist or is not writable, or ``every`` is under 1.

    Example:
        >>> import tempfile
        >>> from bilevel_gym.agents import Checkpoint, TabularPBRL
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = folder.name + "/leader.zip"
        >>> def lose_patience(leader):
        ...     return leader.iteration < 8
        >>> leader = TabularPBRL("bilevel_gym/TwoState-v0").learn(10, [Checkpoint(path, every=4), lose_patience])
        >>> leader = TabularPBRL.load(path)
        >>> leader.iteration, leader.remaining_timesteps, leader.resume().iteration
        (8, 2, 10)
        >>> folder.cleanup()
    """

    def __init__(self, path: str | Path, every: int = 10) -> None:
        require(isinstance(path, (str, os.PathLike)) and str(path) != "", "path", "a file's path", repr(path))
        self.path, self.every = leader_path(path), check_size(every, "every")
        require(self.path.parent.is_dir(), "path", "a file in a folder that exists", repr(str(path)))
        require(not self.path.is_dir(), "path", "a file", f"{str(path)!r}, which is a folder")
        try:
            clear_parts(self.path)
            write_whole(self.path.with_name(self.path.name + ".try"), lambda file: None).unlink()
        except OSError as error:
            expected = f"a file in a folder that can be written to, got {str(path)!r} ({error.strerror})"
            raise ValueError(f"path: expected {expected}") from error
        self.saved: int | None = None
        self._leader: Any = None
        self._held: dict[int, Any] = {}
        self._caught: int | None = None

    def __enter__(self) -> Checkpoint:
        self._leader = self._caught = None
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._held = {number: signal.signal(number, self._catch) for number in heeded}
        return self

    def __exit__(self, *raised: Any) -> None:
        if raised[0] is None and self._leader is not None:
            self._save(self._leader)
        self._hand_back()
        if raised[0] is None and self._caught is not None:
            signal.raise_signal(self._caught)

    def __call__(self, leader: Any) -> bool:
        self._leader = leader
        if self._caught is None:
            if leader.iteration % self.every == 0:
                self._save(leader)
            return True
        self._save(leader)
        self._leader, caught, self._caught = None, self._caught, None
        self._hand_back()
        signal.raise_signal(caught)
        return False  # the signal's previous handler returned, so learning ends here

    def _save(self, leader: Any) -> None:
        try:
            leader.save(self.path, replay=True)
            self.saved = leader.iteration
        except OSError as error:
            there = "none so far" if self.saved is None else f"iteration {self.saved}"
            warnings.warn(
                f"checkpoint: expected to write {self.path} at iteration {leader.iteration}, got an error ({error}); learning "
                f"goes on; last checkpoint: {there}",
                RuntimeWarning,
                stacklevel=3,
            )

    def _catch(self, number: int, _: Any) -> None:
        if self._caught is not None:
            self._hand_back()
            signal.raise_signal(number)
            return
        self._caught = number
        name = signal.Signals(number).name
        message = f"\n{name}: saving {self.path} after this iteration; a second signal ends the run at once\n"
        with suppress(OSError):
            os.write(2, message.encode())  # print is not safe here

    def _hand_back(self) -> None:
        """Restore the previous signal handlers."""
        held, self._held = self._held, {}
        for number, handler in held.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


_UNFIT: dict[type[BaseCallback], str] = {
    EvalCallback: "LeaderEvalCallback, which evaluates the leader, in place of SB3's EvalCallback",
    StopTrainingOnMaxEpisodes: "a callable that checks leader.num_timesteps (a leader's loop counts no episodes)",
    ProgressBarCallback: "learn(progress_bar=True) in place of SB3's ProgressBarCallback",
}
"""SB3 callbacks that need a model's own loop or environment, and what to use instead."""


def _within(callback: Any) -> Iterator[Any]:
    """Iterate over a callback and the callbacks that it calls."""
    yield callback
    parts = [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    for part in [*getattr(callback, "callbacks", []), *parts]:
        if isinstance(part, BaseCallback):
            yield from _within(part)


class OnLeader(AbstractContextManager["OnLeader"]):
    """An SB3 callback as a leader's callback: entered when learning starts, called after each outer iteration.

    Args:
        callback: an SB3 callback.
        leader: the leader that learns.
    """

    def __init__(self, callback: BaseCallback, leader: Any) -> None:
        self._callback, self._leader = callback, leader
        for one in _within(callback):
            for kind, instead in _UNFIT.items():
                require(not isinstance(one, kind), "callback", instead, type(one).__name__)
            orphan = isinstance(one, (StopTrainingOnRewardThreshold, StopTrainingOnNoModelImprovement))
            below = "one below LeaderEvalCallback(callback_on_new_best=...) or callback_after_eval"
            require(
                not orphan or getattr(one, "parent", None) is not None, "callback", below, f"{type(one).__name__} alone"
            )
            scaled = getattr(one, "save_vecnormalize", False) is True
            require(
                not scaled,
                "callback",
                "CheckpointCallback with save_vecnormalize=False (a leader file holds the statistics)",
                True,
            )

    def __enter__(self) -> OnLeader:
        self._callback.init_callback(self._leader)
        self._callback.on_training_start({"self": self._leader, "total_timesteps": self._leader.run.total}, {})
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
    """Evaluate the leader at the best response every ``eval_freq`` iterations, as SB3's ``EvalCallback`` does for a model.

    It evaluates the latest x at the follower's best response (for a learned reward, with the follower that it leads to). Set a
    high ``eval_every`` in the config to leave all evaluations to this callback.

    Args:
        eval_freq: number of outer iterations between evaluations.
        callback_on_new_best: SB3 callback to call on a new best.
        callback_after_eval: SB3 callback to call after every evaluation.
        log_path: folder of ``evaluations.npz``: ``timesteps`` ``[n]`` and ``results`` ``[n, 1]``, as in SB3 and rl_zoo3.
        best_model_save_path: folder of ``best_model.zip``, the best leader so far.
        verbose: 1 prints every evaluation.

    Attributes:
        best_mean_reward: the best leader return so far; for a learned reward the true return.
        last_mean_reward: the latest such return.

    Raises:
        ValueError: ``eval_freq`` is under 1.

    Example:
        >>> from stable_baselines3.common.callbacks import StopTrainingOnRewardThreshold
        >>> from bilevel_gym.agents import TabularPBRL
        >>> from bilevel_gym.agents.callbacks import LeaderEvalCallback
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
        given = {"callback_on_new_best": callback_on_new_best, "callback_after_eval": callback_after_eval}
        for name, callback in given.items():
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
