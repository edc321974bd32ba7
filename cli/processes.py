"""Runs side by side, each in a process of its own: what sweeps, the benchmarks and the demo stand on.

A process lives for one run. So its memory and its speed are its own, and a death is that run's and nobody else's.

**Signals.** A worker leads a process group of its own: what a terminal or a batch system sends to the group of the parent
(SIGINT, SIGTERM, SIGHUP) reaches the parent alone. Where runs can be saved, the parent then asks its workers to end after the
iteration in hand, and waits; a second signal ends them at once. A worker whose parent is gone ends at once, too.
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
    """A run that raised an exception or whose process died."""


def stop_asked() -> bool:
    """Whether this is a worker whose parent wants it to save and to end."""
    return _asked_to_stop.is_set()


def run_all(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    jobs: int,
    note: Callable[[int, Any], None],
    saves: bool = False,
) -> None:
    """Call ``function(*task)`` for every task, ``jobs`` of them at a time, each in a process of its own with one thread.

    Args:
        function: what a run does; found by its name in the worker, as the tasks' classes are.
        tasks: its arguments, a run each.
        jobs: runs side by side.
        note: called with a task's index and what came of it, in the order in which runs end: the answer, or a
            :class:`WorkerError`.
        saves: whether a run looks at :func:`stop_asked`, and saves itself where that is so.

    Raises:
        KeyboardInterrupt: a signal, once the runs in hand have been saved or ended.
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
    """Where processes are forked from a server that holds what they import; out of reach of signals to this one's group."""
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
    """What a worker sent before it ended."""
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
    """End a worker and what it started in its group."""
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
    """Do what the parent says; end with it."""
    try:
        while True:
            connection.recv()
            _asked_to_stop.set()
    except (EOFError, OSError):
        if hasattr(os, "setpgrp"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
