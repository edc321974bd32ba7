"""What the fuzzers share: how many examples, how much memory, and values that nobody expects."""

from __future__ import annotations

import io
import math
import os
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN

LONG = "FUZZ_EXAMPLES" in os.environ
"""Whether to go on for long, and elsewhere each time; ``make test`` takes a few examples, always the same."""


def fuzz(examples: int) -> settings:
    """Settings of a test: so many examples, or those of the environment variable ``FUZZ_EXAMPLES``."""
    return settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", examples)),
        deadline=None,
        derandomize=not LONG,
        database=None,
        phases=[Phase.generate, *([Phase.shrink] if LONG else [])],
        report_multiple_bugs=LONG,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def little_memory(further: int = 4 * 2**30) -> Iterator[None]:
    """No more than so many bytes beyond what is taken: an allocation of a hostile size fails at once."""
    held = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (taken + further, held[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, held)


def tiny_dqn(venv: Any) -> DQN:
    """A follower with a replay buffer, in a file of a few kB."""
    net: dict[str, Any] = {"net_arch": [4]}
    return DQN("MlpPolicy", venv, gamma=0.9, buffer_size=60, learning_starts=4, batch_size=4, policy_kwargs=net)


def parts(data: bytes) -> dict[str, bytes]:
    """The entries of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(entries: dict[str, Any], methods: dict[str, int] | None = None) -> bytes:
    """A zip of entries, stored where ``methods`` says nothing else."""
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data, (methods or {}).get(name, zipfile.ZIP_STORED))
    return blob.getvalue()


def npy(array: Any) -> bytes:
    """An array as a leader file holds it."""
    blob = io.BytesIO()
    np.lib.format.write_array(blob, np.asarray(array), version=(1, 0))
    return blob.getvalue()


NUMBERS: list[Any] = [0, 1, -1, 2, 2**40, -(2**70), 0.5, -0.0, 1e308, -1e-320, math.nan, math.inf, -math.inf]
NAMES: list[Any] = ["", "x", "../x", "os:system", "Popen", "Adam", "\x00", "bilevel_gym/TwoState-v0", "é" * 99]


def nested(depth: int) -> Any:
    """Lists in lists."""
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


def json_values() -> st.SearchStrategy[Any]:
    """JSON that stands where it should not."""
    odd: list[Any] = [
        None, True, False, [], {}, [1, 2], [None], {"a": 1}, {"dict": {"a": 1}}, nested(50),
        {"class": "Popen", "fields": {}}, {"class": "Linear", "fields": {"start": 1.0, "end": "x"}},
        {"class": "Geometric", "fields": {"start": 1.0, "end": 1e-308}}, {"optimizer": "Optimizer"}, {"optimizer": "LBFGS"},
    ]  # fmt: skip
    return st.sampled_from(NUMBERS + NAMES + odd)


def arrays(like: Any) -> st.SearchStrategy[Any]:
    """Arrays where another should stand: of other shapes and types, or of numbers that it never holds."""
    real = like.dtype.kind == "f"
    odd: list[Any] = [
        np.zeros(()), np.zeros(0), np.ones((3, 3)), np.full(1, math.nan), np.full(2, 1e300), np.zeros(2, np.int64),
        np.ones(1, bool), np.zeros(1, np.complex64), np.zeros(5056, np.uint8), np.array(["x"]), np.ones((2, 3)).T,
        like.reshape(-1)[:-1], like[None], like.astype(">f8"), like.astype(np.float32), np.full_like(like, 77),
        np.full_like(like, math.nan) if real else like.astype(float), -like if like.dtype.kind in "fi" else like,
    ]  # fmt: skip
    return st.sampled_from(odd)


def arguments() -> st.SearchStrategy[Any]:
    """What a constructor may be given by mistake."""
    odd: list[Any] = [
        object(), lambda: None, int, np.zeros(0), np.array([math.nan]), np.ones((2, 2)), np.float32(0.5), np.int64(3),
        torch.ones(2), b"x", {1: 2}, (1, 2), [math.inf], [], "", Exception, complex(1, 1), range(3), nested(9),
    ]  # fmt: skip
    return st.sampled_from([None, True, False, *NUMBERS, *NAMES, *odd])


def paths(tree: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of nested dicts, lists and tuples."""
    found = [where] if where else []
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, part in list(parts)[:60]:
        found += paths(part, (*where, key))
    return found


def changed(tree: Any, where: tuple[Any, ...], value: Any) -> Any:
    """A copy with another part in one place; ``DELETED`` takes it away."""
    key, *rest = where
    copied: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    if rest:
        copied[key] = changed(tree[key], tuple(rest), value)
    elif value is DELETED:
        del copied[key]
    else:
        copied[key] = value
    return tuple(copied) if isinstance(tree, tuple) else copied


DELETED = object()


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """Bytes that were cut, flipped, doubled, left out or overwritten."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))
        match draw(st.sampled_from(["cut", "flip", "double", "omit", "overwrite"])):
            case "cut":
                del found[at:]
            case "flip" if found:
                found[at] ^= draw(st.integers(1, 255))
            case "double":
                found[at:at] = found[at : at + length]
            case "omit":
                del found[at : at + length]
            case "overwrite":
                found[at : at + length] = draw(st.sampled_from([b"\xff", b"\x00", b"\x7f"])) * length
    return bytes(found)
