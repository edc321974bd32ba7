"""Worker processes that leave signals to their parent and end with it, and SB3's ``SubprocVecEnv`` with such workers.

A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes of a run. Only the parent process reacts: it finishes the
current iteration with its workers, saves, and ends together with them. Workers ignore these signals. So that no signal kills a
worker while it starts, the fork server starts with the signals blocked; its children unblock them immediately
(:func:`worker_context`), or, if they are our workers, after they have installed handlers that ignore them (:class:`InWorker`).
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import util
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from .for_sb3 import ForSB3
from .vec_env import ObserveCommitment

_PATIENCE = 5.0
"""Seconds that a process is given to end."""
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What ends a run: Ctrl-C, a scheduler or ``kill``, a terminal that is closed."""


def worker_context(preload: str) -> Any:
    """Return the ``multiprocessing`` context of workers: "forkserver", or "spawn" where that is not available.

    The fork server imports the workers' modules once, so that workers start in milliseconds. It ignores :data:`SIGNALS`.

    Args:
        preload: the module that workers import.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload([preload])
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a new process inherits what is blocked
    try:
        resource_tracker.ensure_running()  # another process that the server needs; to begin it unblocks signals here
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return multiprocessing.get_context("forkserver")


def _unblock() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


util.register_after_fork(_unblock, lambda unblock: unblock())  # whatever else this process forks


class InWorker:
    """A function to call in a worker process; when it is unpickled there, the worker begins to ignore signals.

    Args:
        call: the function.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call, self._home = call, os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._leave_signals()

    def __call__(self, *arguments: Any) -> Any:
        self._leave_signals()  # a process that was forked has unpickled nothing
        return self._call(*arguments)

    def _leave_signals(self) -> None:
        if os.getpid() != self._home:
            for number in SIGNALS:  # SIG_IGN would be inherited by what an environment starts
                signal.signal(number, lambda *_: None)
            _unblock()


def end_with(owner: Any, processes: Sequence[Any]) -> None:
    """Kill processes when their owner or this process ends; ``multiprocessing`` would wait for them at exit."""
    util.Finalize(owner, _kill, args=(processes,), exitpriority=10)


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()


@contextlib.contextmanager
def _naming(index: int, process: Any) -> Iterator[None]:
    """Turn the error of a lost connection into an error that names the worker."""
    try:
        yield
    except (EOFError, OSError) as error:  # OSError: a pipe that is broken or reset
        process.join(_PATIENCE)
        code = process.exitcode
        ended = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        raise RuntimeError(
            f"worker {index} (process {process.pid}), which holds copy {index} of the environment, died: {ended}; "
            "what its environment raised is printed above"
        ) from error


def make_copy(spec: Any, env_kwargs: dict[str, Any], observe_commitment: bool) -> gym.Env[Any, Any]:
    """Make one environment in SB3's form from a registered specification, by copying another, or by a callable."""
    if isinstance(spec, gym.envs.registration.EnvSpec):
        env = gym.make(spec, **env_kwargs)
    else:
        env = copy.deepcopy(spec) if isinstance(spec, gym.Env) else spec()
    env = ForSB3(env)
    return ObserveCommitment(env) if observe_commitment else env


class _Worker:
    """The connection to a worker process, under the worker's name.

    Args:
        index: number of the worker, and of its environment.
        connection: the connection to the process.
        process: the process.
    """

    def __init__(self, index: int, connection: Any, process: Any) -> None:
        self.index, self.connection, self.process = index, connection, process

    def send(self, message: Any) -> None:
        with _naming(self.index, self.process):
            self.connection.send(message)

    def recv(self) -> Any:
        with _naming(self.index, self.process):
            return self.connection.recv()

    def close(self) -> None:
        self.connection.close()


class WorkerVecEnv(SubprocVecEnv):
    """A VecEnv with one process for each environment; observations and rewards have the same types as ``DummyVecEnv``'s.

    Args:
        env_fns: callables that make the environments; they are pickled by cloudpickle.
        start_method: start method of ``multiprocessing``. Default: "forkserver", or "spawn" where that is not available; scripts
            then need ``if __name__ == "__main__":``.

    Raises:
        RuntimeError: a worker has died; the first call that needs it raises an error that names it and how it ended.
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], start_method: str | None = None) -> None:
        if start_method in (None, "forkserver"):
            start_method = worker_context(__name__).get_start_method()
        self.processes: list[Any] = []
        try:
            super().__init__([InWorker(make) for make in env_fns], start_method)
        except (EOFError, OSError):
            with _naming(0, self.processes[0]):  # SB3 asks the first worker for its spaces
                raise
        finally:
            end_with(self, self.processes)
        ends = zip(self.remotes, self.processes, strict=True)
        self.remotes = tuple(_Worker(i, remote, process) for i, (remote, process) in enumerate(ends))

    def _cast(self, obs: VecEnvObs) -> VecEnvObs:
        return obs.astype(self.observation_space.dtype, copy=False) if isinstance(obs, np.ndarray) else obs

    def reset(self) -> VecEnvObs:
        return self._cast(super().reset())

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = super().step_wait()
        return self._cast(obs), rewards.astype(np.float32), dones, list(infos)

    def close(self) -> None:
        """End the workers, even if one of them has died."""
        try:
            super().close()
        except RuntimeError:
            _kill(self.processes)
            for process in self.processes:
                process.join(_PATIENCE)
            for remote in self.remotes:
                remote.close()
            self.closed = True
