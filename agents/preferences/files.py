r"""The preference file: queries and answers in the order in which they came. Trainers and labellers read and append to one file.

    file      MAGIC, then records
    record    kind (1 byte), length of the payload, its CRC-32 (4 bytes each, little-endian), payload
    kinds     H  the signature of the world, JSON, first and once
              Q  a query: its number and its two segments, an ``.npz`` without pickles; true rewards are not written
              A  an answer: its number and its label, JSON

Records are only ever appended, each by one write, so that what was written before a crash stays readable: a file that is cut
short, or damaged at some place, is read up to there, and that is said. A second answer to a query replaces the first. Reading
runs no code that the file brings.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ...envs.mdp.checks import require
from ...wrappers import Segment
from .buffer import PreferenceBuffer
from .labels import Label, Pair, check_label

MAGIC = b"bilevel-gym preferences 1\n"
_HEAD = struct.Struct("<cII")


@dataclass(frozen=True)
class Signature:
    """The world that a file's segments are of.

    Attributes:
        env: its name, for people; a file of another name with the same spaces is read.
        observation_space: as text.
        action_space: as text.
        length: steps of a segment.
    """

    env: str
    observation_space: str
    action_space: str
    length: int

    @classmethod
    def of(cls, env: str, observation_space: gym.Space[Any], action_space: gym.Space[Any], length: int) -> Signature:
        """The signature of a world."""
        return cls(env, str(observation_space), str(action_space), length)

    def require_same(self, other: Signature, path: object) -> None:
        """Raise ``ValueError`` where a file, of signature ``other``, is of another environment."""
        for name in ("observation_space", "action_space", "length"):
            mine, theirs = getattr(self, name), getattr(other, name)
            require(mine == theirs, "path", f"preferences of {self.env} ({name} {mine})", f"{path}, of {theirs}")


@dataclass
class Contents:
    """What a file holds.

    Attributes:
        signature: of the world.
        pairs: the queries, by number, in the order in which they were asked.
        labels: the last answer to each.
        end: the byte after the last whole record.
        note: what is wrong with the rest of the file; None if there is none.
    """

    signature: Signature
    pairs: dict[int, Pair] = field(default_factory=dict)
    labels: dict[int, Label] = field(default_factory=dict)
    end: int = 0
    note: str | None = None

    @property
    def pending(self) -> dict[int, Pair]:
        """Queries without an answer."""
        return {number: pair for number, pair in self.pairs.items() if number not in self.labels}

    @property
    def answered(self) -> list[tuple[Pair, Label]]:
        """Queries with their answers, in the order in which they were asked."""
        return [(pair, self.labels[number]) for number, pair in self.pairs.items() if number in self.labels]


def _record(kind: bytes, payload: bytes) -> bytes:
    return _HEAD.pack(kind, len(payload), zlib.crc32(payload)) + payload


def _query(number: int, pair: Pair) -> bytes:
    arrays: dict[str, Any] = {"id": np.int64(number), "frame_stack": np.int64(pair.left.frame_stack)}
    for side, segment in (("left", pair.left), ("right", pair.right)):
        arrays |= {f"{side}_{name}": getattr(segment, name) for name in ("obs", "actions", "mask")}
        if segment.pictures is not None:
            arrays[f"{side}_pictures"] = segment.pictures
    blob = io.BytesIO()
    np.savez_compressed(blob, **arrays)
    return _record(b"Q", blob.getvalue())


def _read_query(payload: bytes) -> tuple[int, Pair]:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        sides = [
            Segment(
                arrays[f"{side}_obs"],
                arrays[f"{side}_actions"],
                arrays[f"{side}_mask"].astype(bool),
                None,
                arrays.get(f"{side}_pictures"),
                int(arrays["frame_stack"]),
            )
            for side in ("left", "right")
        ]
        return int(arrays["id"]), Pair(*sides)


def _answer(number: int, label: Label) -> bytes:
    return _record(b"A", json.dumps({"id": number, "label": check_label(label)}).encode())


def _records(data: bytes, start: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, payload and end of each whole record from byte ``start`` on."""
    while start + _HEAD.size <= len(data):
        kind, length, checksum = _HEAD.unpack_from(data, start)
        payload = data[start + _HEAD.size : start + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        start += _HEAD.size + length
        yield kind, payload, start


def _take(contents: Contents, data: bytes) -> None:
    """Read on from where the contents end."""
    for kind, payload, end in _records(data, contents.end):
        if kind == b"Q":
            number, pair = _read_query(payload)
            contents.pairs[number] = pair
        elif kind == b"A":
            answer = json.loads(payload)
            contents.labels[int(answer["id"])] = check_label(answer["label"])
        contents.end = end


def read_preferences(path: str | Path, expected: Signature | None = None) -> Contents:
    """Read a preference file; one that is cut short or damaged is read up to there, with a warning that says so.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is none, or of another environment than ``expected``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a preference file, got {path}, which does not exist")
    data = path.read_bytes()
    first = next(_records(data, len(MAGIC)), None)
    whole = data.startswith(MAGIC) and first is not None and first[0] == b"H"
    require(whole, "path", "a preference file", f"{path}, which is none or is cut short in its first record")
    assert first is not None
    contents = Contents(Signature(**json.loads(first[1])), end=first[2])
    if expected is not None:
        expected.require_same(contents.signature, path)
    _take(contents, data)
    if contents.end < len(data):
        lost = len(data) - contents.end
        contents.note = (
            f"{path} is cut short or damaged at byte {contents.end}: kept {len(contents.pairs)} queries and "
            f"{len(contents.labels)} answers, lost the {lost} bytes after them"
        )
        warnings.warn(contents.note, stacklevel=2)
    return contents


class PreferenceLog:
    """A preference file that is open for appending; made where there is none. A torn end is cut off first.

    Args:
        path: the file.
        signature: of the world; None takes the file's, which then has to exist.

    Attributes:
        contents: what has been read or written so far.

    Raises:
        FileNotFoundError: no file, and no signature to begin one with.
        ValueError: a file that is none, or of another environment.
    """

    def __init__(self, path: str | Path, signature: Signature | None = None) -> None:
        self.path = Path(path)
        if signature is not None and not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(MAGIC + _record(b"H", json.dumps(asdict(signature)).encode()))
        self.contents = read_preferences(self.path, signature)
        if self.contents.note is not None:
            with self.path.open("r+b") as file:
                file.truncate(self.contents.end)

    def _append(self, record: bytes) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(record)

    def ask(self, number: int, pair: Pair) -> None:
        """Append a query."""
        self._append(_query(number, pair))

    def answer(self, number: int, label: Label) -> None:
        """Append an answer.

        Raises:
            ValueError: a number that was never asked, or no label.
        """
        if number not in self.contents.pairs:
            self.refresh()
        require(number in self.contents.pairs, "id", "the number of a query in the file", number)
        self._append(_answer(number, label))

    def refresh(self) -> dict[int, Label]:
        """Read what has been appended, by whomever; the answers that are new, by number."""
        known = dict(self.contents.labels)
        with self.path.open("rb") as file:
            file.seek(self.contents.end)
            data, offset = file.read(), self.contents.end
        self.contents.end = 0
        _take(self.contents, data)
        self.contents.end += offset
        return {number: label for number, label in self.contents.labels.items() if known.get(number) != label}


def save_preferences(path: str | Path, buffer: PreferenceBuffer, signature: Signature) -> Path:
    """Write the labelled pairs of a buffer as a preference file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(MAGIC + _record(b"H", json.dumps(asdict(signature)).encode()))
        for number, preference in enumerate(buffer):
            file.write(_query(number, preference.pair) + _answer(number, preference.label))
    part.replace(path)
    return path


def load_preferences(path: str | Path, signature: Signature | None = None, capacity: int = 3000) -> PreferenceBuffer:
    """A buffer of what a preference file holds with an answer; raises and warns as :func:`read_preferences`."""
    buffer = PreferenceBuffer(capacity)
    for pair, label in read_preferences(path, signature).answered:
        buffer.add(pair, label)
    return buffer
