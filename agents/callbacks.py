"""Callbacks of a leader's ``learn``: what is done after an outer iteration, apart from learning."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from ...envs.mdp.checks import check_size, require
from ..files import clear_parts, write_whole
from .storage import leader_path

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """Save the leader every so many outer iterations and at the end, to one file that is written whole or not at all.

    Whatever ends the run, a killed process or a worker's death, the file holds the last checkpoint, and ``load`` and ``resume``
    go on from it::

        leader.learn(1_000_000, Checkpoint("leader.zip", every=10))
        PBRL.load("leader.zip").resume(Checkpoint("leader.zip", every=10))  # after an interruption

    **To the bit.** On one machine, with the same packages, the same number of threads and the same environments, the resumed
    leader is what the unbroken run would have left: x, optimiser, followers, replay buffers, generators, records and log. That
    does not depend on ``every``, nor on whether there are checkpoints at all.

    **Signals.** On SIGINT (Ctrl-C) and SIGTERM the iteration in hand is finished, a checkpoint saved, and the signal then does
    what it would have done (``KeyboardInterrupt``; the end of the process). A second one does so at once. Only in the main
    thread, where alone Python lets signals be heeded.

    **A file that cannot be written** (a full disk, a folder become read-only) is a warning: learning goes on, and the former
    checkpoint is still there.

    Args:
        path: the file, e.g. ``"leader.zip"`` (``.zip`` where it has no suffix); its folder exists and can be written to.
        every: outer iterations between checkpoints.

    Attributes:
        saved: the iteration of the last checkpoint; None before the first.

    Raises:
        ValueError: a folder that does not exist or that cannot be written to, an ``every`` under 1.

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
            raise ValueError(
                f"path: expected a file in a folder that can be written to, got {str(path)!r} ({error.strerror})"
            ) from error
        self.saved: int | None = None
        self._leader: Any = None
        self._held: dict[int, Any] = {}
        self._caught: int | None = None

    def __enter__(self) -> Checkpoint:
        self._leader = self._caught = None
        if threading.current_thread() is threading.main_thread():
            self._held = {number: signal.signal(number, self._catch) for number in _SIGNALS}
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
        return False  # whoever held the signal before has let it pass: then learning ends here

    def _save(self, leader: Any) -> None:
        try:
            leader.save(self.path, replay=True)
            self.saved = leader.iteration
        except OSError as error:
            there = "none was saved yet" if self.saved is None else f"that of iteration {self.saved} is still there"
            warnings.warn(
                f"checkpoint: expected to write {self.path} at iteration {leader.iteration}, got an error ({error}); learning "
                f"goes on, and of the checkpoints {there}",
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
        message = f"\n{name}: saving {self.path} after this iteration; once more ends the run at once\n"
        with suppress(OSError):
            os.write(2, message.encode())  # print is not safe here

    def _hand_back(self) -> None:
        """Let signals do again what they did before."""
        held, self._held = self._held, {}
        for number, handler in held.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
