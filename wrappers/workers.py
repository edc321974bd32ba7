"""SB3's ``SubprocVecEnv`` as the follower's world: the numbers of ``DummyVecEnv``, and an error that names the worker."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from .commitment import ObserveCommitment

_PATIENCE = 5.0
"""Seconds that a process is given to end."""


@contextlib.contextmanager
def _naming(index: int, process: Any) -> Iterator[None]:
    """Turn what a lost connection raises into an error that names the worker."""
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
    """One copy of an environment, from its registered specification, from one that is copied, or from a callable."""
    if isinstance(spec, gym.envs.registration.EnvSpec):
        env = gym.make(spec, **env_kwargs)
    else:
        env = copy.deepcopy(spec) if isinstance(spec, gym.Env) else spec()
    return ObserveCommitment(env) if observe_commitment else env


class _Worker:
    """The connection to a worker process, under the worker's name.

    Args:
        index: number of the worker, and of its environment.
        connection: to the process.
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
    """One process an environment. Observations and rewards have the types that ``DummyVecEnv`` gives them, so all numbers agree.

    Args:
        env_fns: what makes each environment; pickled by cloudpickle.
        start_method: of ``multiprocessing``; None takes "forkserver", or "spawn" where there is none. Scripts then need
            ``if __name__ == "__main__":``.

    Raises:
        RuntimeError: a worker that has died, at the first call that needs it; the error names it and how it ended.
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], start_method: str | None = None) -> None:
        if start_method in (None, "forkserver") and "forkserver" in multiprocessing.get_all_start_methods():
            # The server imports once what each worker would: the workers then start in milliseconds.
            multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        self.processes: list[Any] = []
        try:
            super().__init__(env_fns, start_method)
        except (EOFError, OSError):
            with _naming(0, self.processes[0]):  # SB3 asks the first worker for its spaces
                raise
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
        """End the workers, also where one of them has died."""
        try:
            super().close()
        except RuntimeError:
            for process in self.processes:
                process.terminate()
                process.join(_PATIENCE)
            for remote in self.remotes:
                remote.close()
            self.closed = True
