r"""Preference files: queries and answers in order of arrival. Trainers and labellers read and append to the same file.

    file      MAGIC, then records
    record    kind (1 byte), length and CRC-32 of the payload (4 bytes each, little-endian), payload
    kinds     H  the environment's signature, JSON, once at the start
              Q  a query: its number and its two segments, an ``.npz`` without pickles and true rewards
              A  an answer: its number and its label, JSON

Records are only appended, each by one write, so earlier records stay readable after a crash. A truncated or damaged file is read
up to that place, with a warning. Before more is appended, the unreadable end is moved to ``FILE.cut``. A second answer to a
query replaces the first. Reading runs no code from the file.

Two labellers use such files: one gets its answers from others through the file, and one stores another labeller's answers.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import gymnasium as gym
import numpy as np

from ...envs.mdp.checks import check_size, require
from ...wrappers import Segment
from ..files import reading, write_whole
from .labels import Answer, Label, Labeller, Pair, PreferenceBuffer, Query, check_label

MAGIC = b"bilevel-gym preferences 1\n"
PATIENCE = 0.5
"""Seconds to wait for a writer to finish a record; after that the record counts as torn."""
MOST = 2**30
"""Maximum size in bytes of an unpacked query."""
_HEAD = struct.Struct("<cII")


@dataclass(frozen=True)
class Signature:
    """The environment that a file's segments come from.

    Attributes:
        env: name of the environment, for information: files of other names with the same spaces can be read.
        observation_space: the observation space, as text.
        action_space: the action space, as text.
        length: number of steps in a segment.
    """

    env: str
    observation_space: str
    action_space: str
    length: int

    def __post_init__(self) -> None:
        for name in ("env", "observation_space", "action_space"):
            require(isinstance(getattr(self, name), str), name, "text", repr(getattr(self, name)))
        check_size(self.length, "length")

    @classmethod
    def of(cls, env: str, observation_space: gym.Space[Any], action_space: gym.Space[Any], length: int) -> Signature:
        """Make the signature of an environment."""
        return cls(env, str(observation_space), str(action_space), length)


@dataclass
class Contents:
    """The contents of a preference file.

    Attributes:
        signature: signature of the environment.
        pairs: the queries by number, in the order of asking.
        labels: the latest answer to each, by number.
        places: offset, length and CRC-32 of each query's payload.
        end: offset of the end of the last whole record.
    """

    signature: Signature
    pairs: dict[int, Pair] = field(default_factory=dict)
    labels: dict[int, Label] = field(default_factory=dict)
    places: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    end: int = 0

    @property
    def pending(self) -> dict[int, Pair]:
        """Queries without an answer, by number."""
        return {number: pair for number, pair in self.pairs.items() if number not in self.labels}

    @property
    def answered(self) -> list[tuple[Pair, Label]]:
        """Return queries with their answers, in the order of asking."""
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


def _read_query(payload: bytes, pictures: bool) -> tuple[int, Pair]:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        stack, sides = int(arrays["frame_stack"]), []
        for side in ("left", "right"):
            obs, actions, mask = (arrays[f"{side}_{name}"] for name in ("obs", "actions", "mask"))
            images = arrays.get(f"{side}_pictures") if pictures else None
            sides.append(Segment(obs, actions, mask.astype(bool), None, images, stack))
        return int(arrays["id"]), Pair(*sides)


def _answer(number: int, label: Label) -> bytes:
    return _record(b"A", json.dumps({"id": number, "label": check_label(label)}).encode())


def _records(data: bytes, start: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Iterate over whole records from byte ``start``: kind, payload and end."""
    while start + _HEAD.size <= len(data):
        kind, length, checksum = _HEAD.unpack_from(data, start)
        payload = data[start + _HEAD.size : start + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        start += _HEAD.size + length
        yield kind, payload, start


def _take(contents: Contents, data: bytes, base: int, pictures: bool, room: float = math.inf) -> None:
    """Add records to the contents; ``data`` begins at byte ``base`` of the file."""
    for kind, payload, end in _records(data, contents.end - base):
        if kind == b"Q":
            with zipfile.ZipFile(io.BytesIO(payload)) as archive:
                unfolded = sum(entry.file_size for entry in archive.infolist())
            require(unfolded <= MOST, "path", f"queries of at most {MOST} bytes each", f"one of {unfolded}")
            room -= unfolded
            require(room >= 0, "path", "no more or larger queries than the settings need", "others")
            number, pair = _read_query(payload, pictures)
            contents.pairs[number] = pair
            contents.places[number] = (base + end - len(payload), len(payload), zlib.crc32(payload))
        elif kind == b"A":
            answer = json.loads(payload)
            contents.labels[int(answer["id"])] = check_label(answer["label"])
        contents.end = base + end


def read_preferences(path: str | Path, expected: Signature | None = None, pictures: bool = True) -> Contents:
    """Read a preference file. A truncated or damaged file is read up to that place, with a warning.

    Args:
        path: the file.
        expected: the required signature; None accepts any.
        pictures: whether to load the segments' pictures. Default: True.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is no preference file, or its signature is not ``expected``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a preference file, got {path}, which does not exist")
    return preferences_from_bytes(path.read_bytes(), path, expected, pictures)


def preferences_from_bytes(
    data: bytes, path: object, expected: Signature | None = None, pictures: bool = True, room: float = math.inf
) -> Contents:
    """Read a preference file from memory; see :func:`read_preferences`.

    Args:
        data: the file's bytes.
        path: name of the file in messages.
        expected: the required signature; None accepts any.
        pictures: whether to load the segments' pictures.
        room: maximum total size in bytes of the unpacked queries.
    """
    kind, header, end = next(_records(data, len(MAGIC)), (b"", b"", 0))
    whole = data.startswith(MAGIC) and kind == b"H"
    require(whole, "path", "a preference file", f"{path}, which is not one, or is cut short in its first record")
    with reading(path, "preference file"):
        contents = Contents(Signature(**json.loads(header)), end=end)
        if expected is not None:
            for name in ("observation_space", "action_space", "length"):
                mine, theirs = getattr(expected, name), getattr(contents.signature, name)
                told = f"preferences of {expected.env} ({name} {mine})"
                require(mine == theirs, "path", told, f"{path}, of {theirs}")
        _take(contents, data, 0, pictures, room)
    if contents.end < len(data):
        warnings.warn(
            f"{path} is cut short or damaged at byte {contents.end}: kept {len(contents.pairs)} queries and "
            f"{len(contents.labels)} answers, lost the {len(data) - contents.end} bytes after them",
            stacklevel=3,
        )
    return contents


class PreferenceLog:
    """A preference file opened for appending; created if needed. A torn end is first moved to ``FILE.cut``.

    Several processes may open the same file. Pictures stay in the file: ``contents`` holds segments without them, and
    :meth:`pair` reads them.

    Args:
        path: the file.
        signature: signature of the environment; None takes that of the file, which must then exist.

    Attributes:
        contents: everything read or written so far.

    Raises:
        FileNotFoundError: the file does not exist, and no signature is given to create it.
        ValueError: the file is no preference file, or of another environment.
    """

    def __init__(self, path: str | Path, signature: Signature | None = None) -> None:
        self.path = Path(path)
        if signature is not None and not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(MAGIC + _record(b"H", json.dumps(asdict(signature)).encode()))
        self.contents = read_preferences(self.path, signature, pictures=False)
        self._whole = self.contents.end
        self._cut_torn_end()

    def _cut_torn_end(self) -> None:
        """Make the file end with a whole record; waits for a writer that is in the middle of one.

        Raises:
            ValueError: the file was replaced by another since it was opened.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            with self.path.open("rb") as file:
                file.seek(self._whole)
                data = file.read()
            done = max((end for _, _, end in _records(data, 0)), default=0)
            self._whole += done
            if done == len(data):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(PATIENCE / 20)
        whole = self.path.read_bytes()
        same = whole.startswith(MAGIC) and self._whole == max((e for *_, e in _records(whole, len(MAGIC))), default=0)
        require(same, "path", "the file that was opened", f"{self.path}, which has been replaced")
        with self.path.with_name(self.path.name + ".cut").open("ab") as aside:
            aside.write(data[done:])
        os.truncate(self.path, self._whole)

    def _append(self, record: bytes) -> None:
        """Append a record atomically. No file is created: if it was removed, its header would be missing."""
        self._cut_torn_end()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        with open(descriptor, "ab", buffering=0) as file:
            written = file.write(record) or 0
            if written < len(record):
                file.truncate(file.tell() - written)
                said = f"{written} of {len(record)} bytes could be written, nothing was kept"
                raise OSError(errno.ENOSPC, said, self.path)

    def pair(self, number: int) -> Pair:
        """Return a query's segments with their pictures.

        Raises:
            ValueError: the number has not been read, or the file was replaced by another.
        """
        require(number in self.contents.places, "id", "the number of a query in the file", number)
        payload = self._payload(number)
        require(len(payload) > 0, "path", "the file that was opened", f"{self.path}, which has been replaced")
        return _read_query(payload, pictures=True)[1]

    def _payload(self, number: int) -> bytes:
        """Return a query's payload from the file; empty if the file has something else there now."""
        begin, length, checksum = self.contents.places[number]
        with self.path.open("rb") as file:
            file.seek(begin)
            payload = file.read(length)
        return payload if zlib.crc32(payload) == checksum else b""

    @property
    def replaced(self) -> bool:
        """Whether the file was replaced by another: its newest query is no longer at its place."""
        if not self.contents.places:
            return self.path.stat().st_size < self.contents.end
        return not self._payload(next(reversed(self.contents.places)))

    def ask(self, number: int, pair: Pair) -> None:
        """Append a query."""
        self._append(_query(number, pair))

    def answer(self, number: int, label: Label) -> None:
        """Append an answer.

        Raises:
            ValueError: the number was never asked, or the label is invalid.
        """
        if number not in self.contents.pairs:
            self.refresh()
        require(number in self.contents.pairs, "id", "the number of a query in the file", number)
        self._append(_answer(number, label))

    def record(self, number: int, pair: Pair, label: Label) -> None:
        """Append a query and its answer, both or neither; ``contents`` shows them after the next :meth:`refresh`."""
        self._append(_query(number, pair) + _answer(number, label))

    def refresh(self) -> dict[int, Label]:
        """Read what any process has appended; return the new answers by number."""
        known = dict(self.contents.labels)
        with self.path.open("rb") as file:
            file.seek(self.contents.end)
            with reading(self.path, "preference file"):
                _take(self.contents, file.read(), self.contents.end, pictures=False)
        return {number: label for number, label in self.contents.labels.items() if known.get(number) != label}


def preferences_as_bytes(buffer: PreferenceBuffer, pending: dict[int, Pair], signature: Signature) -> bytes:
    """Return a preference file of labelled pairs and open queries; only the open queries keep their numbers."""
    parts = [MAGIC, _record(b"H", json.dumps(asdict(signature)).encode())]
    parts += [_query(-1 - i, held.pair) + _answer(-1 - i, held.label) for i, held in enumerate(buffer)]
    parts += [_query(number, pair) for number, pair in pending.items()]
    return b"".join(parts)


def save_preferences(path: str | Path, buffer: PreferenceBuffer, signature: Signature) -> Path:
    """Write the labelled pairs of a buffer to a preference file, atomically."""
    contents = preferences_as_bytes(buffer, {}, signature)

    def write(file: IO[bytes]) -> None:
        file.write(contents)

    return write_whole(path, write)


def load_preferences(path: str | Path, signature: Signature | None = None, capacity: int = 3000) -> PreferenceBuffer:
    """Load the answered queries of a preference file into a buffer; raises and warns as :func:`read_preferences`."""
    buffer = PreferenceBuffer(capacity)
    for pair, label in read_preferences(path, signature).answered:
        buffer.add(pair, label)
    return buffer


# --- labellers ----------------------------------------------------------------------------------------------------------


class FileLabeller(Labeller):
    """A labeller that writes queries to a preference file and reads the answers that others append there.

    An existing file is continued: its answers count, and its unanswered queries stay open.

    Args:
        path: the file. To answer, open ``PreferenceLog(path)``, look at ``contents.pending`` and call ``answer``.
        signature: signature of the environment; may be None if the file exists.

    Raises:
        FileNotFoundError: the file does not exist, and no signature is given to create it.
        ValueError: the file is no preference file, or of another environment.
    """

    def __init__(self, path: str | Path, signature: Signature | None = None) -> None:
        self.log = PreferenceLog(path, signature)

    @property
    def first_id(self) -> int:
        return max(self.log.contents.pairs, default=-1) + 1

    def earlier(self) -> tuple[list[tuple[Pair, Label]], dict[int, Pair]]:
        return self.log.contents.answered, self.log.contents.pending

    def ask(self, queries: Sequence[Query]) -> None:
        for query in queries:
            self.log.ask(query.id, query.pair)

    def answers(self) -> list[Answer]:
        return [Answer(number, label) for number, label in self.log.refresh().items()]


class LoggedLabeller(Labeller):
    """A wrapper of a labeller that stores each query with its answer in a preference file.

    An answer is written before the learner gets it, so a crash loses none. An existing file is continued; queries that were
    not answered are not asked again, but replaced by other pairs.

    Args:
        labeller: the labeller that answers.
        path: the file.
        signature: signature of the environment; may be None if the file exists.

    Raises:
        FileNotFoundError: the file does not exist, and no signature is given to create it.
        ValueError: the file is no preference file, or of another environment.
    """

    def __init__(self, labeller: Labeller, path: str | Path, signature: Signature | None = None) -> None:
        log = PreferenceLog(path, signature)
        self._first_id = max(log.contents.pairs, default=-1) + 1
        log.contents.pairs.clear()  # the learner's buffer holds the pairs
        self.labeller, self.log = labeller, log
        self._open: dict[int, Pair] = {}

    @property
    def remaining(self) -> int | None:
        return self.labeller.remaining

    @property
    def first_id(self) -> int:
        return self._first_id

    def earlier(self) -> tuple[list[tuple[Pair, Label]], dict[int, Pair]]:
        return read_preferences(self.log.path, pictures=False).answered, {}

    def ask(self, queries: Sequence[Query]) -> None:
        self.labeller.ask(queries)
        self._open |= {query.id: query.pair for query in queries}

    def answers(self) -> list[Answer]:
        given = self.labeller.answers()
        for answer in given:
            pair = self._open.pop(answer.id, None)
            if pair is not None:
                self.log.record(answer.id, pair, answer.label)
        return given
