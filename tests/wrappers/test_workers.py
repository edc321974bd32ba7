"""Worker processes: which signals they leave to their parent, and how they end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest

from bilevel_gym.wrappers import WorkerVecEnv
from bilevel_gym.wrappers.workers import SIGNALS, InWorker


def cart() -> gym.Env[np.ndarray, np.int64]:
    return gym.make("CartPole-v1")


def test_a_worker_does_nothing_on_the_signals_of_its_parent() -> None:
    venv = WorkerVecEnv([cart, cart])
    venv.reset()
    for number in SIGNALS:
        for process in venv.processes:
            os.kill(process.pid, number)
    obs, *_ = venv.step(np.zeros(2, dtype=np.int64))
    assert len(obs) == 2
    assert all(process.is_alive() for process in venv.processes)
    venv.close()
    assert [process.exitcode for process in venv.processes] == [0, 0]


def test_signals_are_left_alone_in_the_parent() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    WorkerVecEnv([cart]).close()
    InWorker(cart)()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("patience", [0.0, 1.0])
def test_other_processes_of_the_fork_server_end_on_signals(patience: float) -> None:
    """Also those that are told to before they have begun."""
    WorkerVecEnv([cart]).close()
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60.0,))
    process.start()
    time.sleep(patience)
    process.terminate()
    process.join(20.0)
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("start_method", [None, pytest.param("spawn", marks=pytest.mark.long), "fork"])
def test_workers_end_when_nobody_holds_their_environments(start_method: str | None) -> None:
    venv = WorkerVecEnv([cart], start_method)
    venv.reset()
    os.kill(venv.processes[0].pid, signal.SIGINT)
    assert len(venv.reset()) == 1
    processes = venv.processes
    del venv
    gc.collect()
    processes[0].join(20.0)
    assert processes[0].exitcode is not None
