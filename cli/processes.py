"""Executes several runs at the same time, each in its own process. Sweeps, benchmarks and the demo use it.

A process lives for one run, so that its memory is that run's alone, and its death ends only that run.

**Signals.** Each worker has its own process group, so that a signal from a terminal or a batch system to the parent's group
(SIGINT, SIGTERM, SIGHUP) reaches only the parent. If runs can be saved, the parent then asks its workers to end after the
current iteration, and waits; a second signal ends them at once. A worker whose parent has died also ends at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any
from unittest import mock

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_INTERRUPTED = "interrupted"
_asked_to_stop = threading.Event()


class WorkerError(Exception):
    """A run raised an exception, or its process died."""


def stop_asked() -> bool:
    """Whether the parent process has asked this worker to save and end."""
    return _asked_to_stop.is_set()


def run_all(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    jobs: int,
    note: Callable[[int, Any], None],
    saves: bool = False,
) -> None:
    """Call ``function(*task)`` for every task, ``jobs`` at a time, each in its own process with one thread.

    Args:
        function: the function to run; the worker imports it, and the classes of the tasks, by name.
        tasks: the arguments of each run.
        jobs: number of runs at the same time.
        note: called with a task's index and its result (or a :class:`WorkerError`), in the order in which runs end.
        saves: whether a run checks :func:`stop_asked` and saves itself when asked.

    Raises:
        KeyboardInterrupt: on a signal, after the current runs have been saved or ended.
    """
    context = _context([function.__module__])
    waiting, running = deque(enumerate(tasks)), dict[Any, tuple[int, Any]]()

    def collect() -> None:
        for connection in wait(list(running)):
            index, process = running[connection]
            answer = _answer(connection, process)
            del running[connection]
            if str(answer) != _INTERRUPTED:
                note(index, answer)

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index, task = waiting.popleft()
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, function, task))
                with mock.patch.dict(os.environ, dict.fromkeys(THREADS, "1")):  # read as libraries are loaded
                    process.start()
                running[ours] = index, process
                theirs.close()
            collect()
    except KeyboardInterrupt:
        if saves and running:
            sys.stderr.write(
                "interrupted: each run in hand is saved after its iteration; once more ends them at once\n"
            )
            for connection in running:
                with suppress(OSError):
                    connection.send("stop")
            while running:
                collect()
        raise
    finally:
        for connection, (_, process) in running.items():
            _kill(process)
            connection.close()


def _context(preload: list[str]) -> Any:
    """The multiprocessing context: a fork server that has imported what runs need, outside this process's group."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.forkserver", *preload])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # multiprocessing's tracker heeds this one alone
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    return context


def _answer(connection: Any, process: Any) -> Any:
    """The result that a worker sent before it ended."""
    try:
        fine, answer = connection.recv()
    except (EOFError, OSError):
        process.join(5.0)
        fine, answer = False, f"its process died (exit code {process.exitcode})"
    process.join(5.0)
    if process.is_alive():
        _kill(process)
    connection.close()
    return answer if fine else WorkerError(answer)


def _kill(process: Any) -> None:
    """Kill a worker and the processes that it started in its group."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


# --- in the worker --------------------------------------------------------------------------------------------------------


def _work(connection: Any, function: Callable[..., Any], task: tuple[Any, ...]) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_heed, args=(connection,), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    try:
        answer = True, function(*task)
    except KeyboardInterrupt:
        answer = False, _INTERRUPTED
    except Exception as error:
        answer = False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    connection.send(answer)


def _heed(connection: Any) -> None:
    """Obey the parent's messages, and end when the parent does."""
    try:
        while True:
            connection.recv()
            _asked_to_stop.set()
    except (EOFError, OSError):
        if hasattr(os, "setpgrp"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
