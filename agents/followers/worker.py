"""Train a follower in its own process, while the leader's process trains another.

The process builds the follower as the leader did, takes over the state of the leader's copy (all of it, with the replay buffer's
arrays once), and returns that state after every training. So the leader's copy is the same, to the bit, as if the leader had
trained it. Only the arrays of a replay buffer stay in the process until they are asked for.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from ...wrappers.workers import InWorker, end_with, worker_context
from .sb3 import SB3Follower

Train = Callable[[Any], int]
"""A function that trains the follower by a task of the leader's, and returns the steps spent."""
Recipe = Callable[[], tuple[SB3Follower, Train]]
"""A function that builds the follower in its process."""


class WorkerError(RuntimeError):
    """The follower's process failed or died."""


class FollowerWorker:
    """A follower that is trained in its own process.

    Args:
        recipe: builds it in the process; pickled by cloudpickle.
        follower: the leader's copy of it.

    Scripts need ``if __name__ == "__main__":``, as with SB3's ``SubprocVecEnv``.
    """

    def __init__(self, recipe: Recipe, follower: SB3Follower) -> None:
        self._follower = follower
        context = worker_context(__name__)
        self._connection, theirs = context.Pipe()
        arguments = (theirs, cloudpickle.dumps(recipe), torch.get_num_threads())
        self._process = context.Process(target=InWorker(_serve), args=arguments, daemon=True)
        self._process.start()
        end_with(self, [self._process])
        theirs.close()
        self._ask("take", follower.state_dict(), follower.replay_arrays())
        self._answer()

    def start(self, task: Any) -> None:
        """Start a training task in the process; :meth:`result` waits for its end."""
        self._ask("train", self._follower.generators.state, task)

    def result(self) -> int:
        """Wait for the training to end, take over its result, and return the steps spent."""
        spent, state = self._answer()
        self._follower.load_state_dict(state)
        return int(spent)

    def fetch_replay(self) -> None:
        """Copy the arrays of the replay buffer as well."""
        self._ask("arrays")
        _fill_replay(self._follower, self._answer())

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()

    def _ask(self, *message: Any) -> None:
        with self._alive():
            self._connection.send_bytes(_packed(message))

    def _answer(self) -> Any:
        with self._alive():
            answer = self._connection.recv_bytes()
        fine, found = pickle.loads(answer)
        if not fine:
            raise WorkerError(f"follower: its process failed\n{found}")
        return found

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Turn a lost connection into a :class:`WorkerError`: the process has died."""
        try:
            yield
        except (EOFError, OSError, ValueError) as error:
            self._process.join(1.0)
            expected = f"follower: expected its process to be running, got exit code {self._process.exitcode}"
            raise WorkerError(expected) from error


def _packed(message: Any) -> bytes:
    """Pickle tensors by value: multiprocessing would pass each as a file descriptor, which takes milliseconds."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def _fill_replay(follower: SB3Follower, arrays: dict[str, NDArray[Any]]) -> None:
    into = follower.replay_arrays(whole=True)
    for name, array in arrays.items():
        into[name][: len(array)] = array


def _serve(connection: Any, recipe: bytes, threads: int) -> None:
    """Run in the process: answer each message until the connection ends."""
    torch.set_num_threads(threads)
    built: tuple[SB3Follower, Train] | None = None
    while True:
        try:
            kind, *given = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            follower, train = built = cloudpickle.loads(recipe)() if built is None else built
            found: Any = None
            if kind == "take":
                follower.load_state_dict(given[0])
                _fill_replay(follower, given[1])
            elif kind == "train":
                follower.generators.state = given[0]
                found = train(given[1]), follower.state_dict()
            else:
                found = {name: np.ascontiguousarray(array) for name, array in follower.replay_arrays().items()}
            answer = True, found
        except Exception:
            answer = False, traceback.format_exc()
        with suppress(BrokenPipeError):  # the leader's process has ended meanwhile
            connection.send_bytes(_packed(answer))
