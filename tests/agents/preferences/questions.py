"""Pairs of segments that the tests of the page ask about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import gymnasium as gym
import numpy as np

from bilevel_gym.agents.preferences.files import PreferenceLog, Signature
from bilevel_gym.agents.preferences.labels import Pair
from bilevel_gym.agents.preferences.page import PageServer
from bilevel_gym.wrappers import Segment

H = 12
SPACE, ACTIONS = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32), gym.spaces.Discrete(2)
SIGNATURE = Signature.of("Disc-v0", SPACE, ACTIONS, H)


def disc(seed: int, steps: int = H, pictures: bool = True) -> Segment:
    """A disc that wanders over a blue ground, until the episode ends after ``steps``."""
    rng = np.random.default_rng(seed)
    path = np.array([30.0, 45.0]) + np.cumsum(rng.normal(0.0, 3.0, (H, 2)), 0)
    rows, columns = np.mgrid[:60, :90]
    near = (rows - path[:, 0, None, None]) ** 2 + (columns - path[:, 1, None, None]) ** 2 < 80.0
    images = np.where(near[..., None], [230, 120, 40], [30, 60 + 10 * (seed % 10), 120]).astype(np.uint8)
    actions = rng.integers(0, 2, H)
    return Segment(path.astype(np.float32), actions, np.arange(H) < steps, None, images if pictures else None)


def pair(number: int, pictures: bool = True) -> Pair:
    """The pair asked about under this number; the right one of every third ends early."""
    return Pair(disc(2 * number, pictures=pictures), disc(2 * number + 1, 5 if number % 3 == 0 else H, pictures))


def asked(path: Path, n: int, pictures: bool = True) -> PreferenceLog:
    """A file with n queries."""
    log = PreferenceLog(path, SIGNATURE)
    for number in range(n):
        log.ask(number, pair(number, pictures))
    return log


@contextmanager
def served(path: Path, port: int = 0) -> Iterator[PageServer]:
    """The page of a file, served by a thread."""
    server = PageServer(path, port)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
