"""Callbacks of a leader's ``learn``: what is done after an outer iteration, apart from learning."""

from __future__ import annotations

from pathlib import Path

from ...envs.mdp.checks import check_size, require
from .leader import Leader


class Checkpoint:
    """Save the leader every so many outer iterations, to one file that is written whole or not at all.

    Whatever ends the run, a killed process or a worker's death, the file holds the last checkpoint, and ``load`` goes on from it.

    Args:
        path: the file, e.g. ``"leader.zip"``; its folder has to exist.
        every: outer iterations between checkpoints.

    Raises:
        ValueError: a folder that does not exist, an ``every`` under 1.

    Example:
        >>> import tempfile
        >>> from bilevel_gym.agents import Checkpoint, TabularPBRL
        >>> folder = tempfile.TemporaryDirectory()
        >>> leader = TabularPBRL("bilevel_gym/TwoState-v0").learn(10, Checkpoint(folder.name + "/leader.zip", every=4))
        >>> TabularPBRL.load(folder.name + "/leader.zip").iteration
        8
        >>> folder.cleanup()
    """

    def __init__(self, path: str | Path, every: int = 10) -> None:
        self.path, self.every = Path(path), check_size(every, "every")
        require(self.path.parent.is_dir(), "path", "a file in a folder that exists", repr(str(path)))

    def __call__(self, leader: Leader) -> None:
        if leader.iteration % self.every == 0:
            leader.save(self.path)
