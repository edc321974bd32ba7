r"""The preference file: queries and answers in the order in which they came. Trainers and labellers read and append to one file.

    file      MAGIC, then records
    record    kind (1 byte), length of the payload, its CRC-32 (4 bytes each, little-endian), payload
    kinds     H  the signature of the world, JSON, first and once
              Q  a query: its number and its two segments, an ``.npz`` without pickles; true rewards are not written
              A  an answer: its number and its label, JSON

Records are only ever appended, each by one write, so that what was written before a crash stays readable: a file that is cut
short, or damaged at some place, is read up to there, and that is said. Before more is appended, what cannot be read is moved to
``FILE.cut``. A second answer to a query replaces the first. Reading runs no code that the file brings.

Two labellers use such a file: one whose answers come from outside and late, through it, and one that keeps another's answers.
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
"""Seconds in which a writer that is in the middle of a record gets done; then the record is taken to be torn."""
MOST = 2**30
"""Bytes that a query may unfold to."""
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

    def __post_init__(self) -> None:
        for name in ("env", "observation_space", "action_space"):
            require(isinstance(getattr(self, name), str), name, "text", repr(getattr(self, name)))
        check_size(self.length, "length")

    @classmethod
    def of(cls, env: str, observation_space: gym.Space[Any], action_space: gym.Space[Any], length: int) -> Signature:
        """The signature of a world."""
        return cls(env, str(observation_space), str(action_space), length)


@dataclass
class Contents:
    """What a file holds.

    Attributes:
        signature: of the world.
        pairs: the queries, by number, in the order in which they were asked.
        labels: the last answer to each.
        places: first byte, length and CRC-32 of each query's payload.
        end: the byte after the last whole record.
    """

    signature: Signature
    pairs: dict[int, Pair] = field(default_factory=dict)
    labels: dict[int, Label] = field(default_factory=dict)
    places: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    end: int = 0

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
    """Kind, payload and end of each whole record from byte ``start`` on."""
    while start + _HEAD.size <= len(data):
        kind, length, checksum = _HEAD.unpack_from(data, start)
        payload = data[start + _HEAD.size : start + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        start += _HEAD.size + length
        yield kind, payload, start


def _take(contents: Contents, data: bytes, base: int, pictures: bool, room: float = math.inf) -> None:
    """Read on from where the contents end; ``data`` begins at byte ``base`` of the file."""
    for kind, payload, end in _records(data, contents.end - base):
        if kind == b"Q":
            with zipfile.ZipFile(io.BytesIO(payload)) as archive:
                unfolded = sum(entry.file_size for entry in archive.infolist())
            require(unfolded <= MOST, "path", f"queries of at most {MOST} bytes", f"one of {unfolded}")
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
    """Read a preference file; one that is cut short or damaged is read up to there, with a warning that says so.

    Args:
        path: the file.
        expected: the signature that it has to have; None takes any.
        pictures: whether to take the segments' pictures into memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is none, or of another environment than ``expected``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a preference file, got {path}, which does not exist")
    return preferences_from_bytes(path.read_bytes(), path, expected, pictures)


def preferences_from_bytes(
    data: bytes, path: object, expected: Signature | None = None, pictures: bool = True, room: float = math.inf
) -> Contents:
    """What :func:`read_preferences` reads, from memory.

    Args:
        data: the file's bytes.
        path: what messages call it.
        expected: the signature that it has to have; None takes any.
        pictures: whether to take the segments' pictures.
        room: bytes that the queries may unfold to, all together.
    """
    kind, header, end = next(_records(data, len(MAGIC)), (b"", b"", 0))
    whole = data.startswith(MAGIC) and kind == b"H"
    require(whole, "path", "a preference file", f"{path}, which is none or is cut short in its first record")
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
    """A preference file that is open for appending; made where there is none. A torn end is moved out of the way first.

    Several processes may have it open. Pictures stay in the file: ``contents`` holds the segments without, and
    :meth:`pair` reads them.

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
        self.contents = read_preferences(self.path, signature, pictures=False)
        self._whole = self.contents.end
        self._cut_torn_end()

    def _cut_torn_end(self) -> None:
        """See to it that the file ends with a whole record, and wait for a writer that is in the middle of one.

        Raises:
            ValueError: a file that was replaced by another since it was opened.
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
        require(same, "path", "the file that was opened", f"{self.path}, which is another by now")
        with self.path.with_name(self.path.name + ".cut").open("ab") as aside:
            aside.write(data[done:])
        os.truncate(self.path, self._whole)

    def _append(self, record: bytes) -> None:
        """Write a record whole or not at all. No file is begun: one that is gone would miss its head."""
        self._cut_torn_end()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        with open(descriptor, "ab", buffering=0) as file:
            written = file.write(record) or 0
            if written < len(record):
                file.truncate(file.tell() - written)
                said = f"{written} of {len(record)} bytes could be written, nothing was kept"
                raise OSError(errno.ENOSPC, said, self.path)

    def pair(self, number: int) -> Pair:
        """A query's segments with their pictures.

        Raises:
            ValueError: a number that has not been read, a file that was replaced by another since.
        """
        require(number in self.contents.places, "id", "the number of a query in the file", number)
        payload = self._payload(number)
        require(len(payload) > 0, "path", "the file that was opened", f"{self.path}, which is another by now")
        return _read_query(payload, pictures=True)[1]

    def _payload(self, number: int) -> bytes:
        """What stands in the file where a query was read; nothing where that is something else by now."""
        begin, length, checksum = self.contents.places[number]
        with self.path.open("rb") as file:
            file.seek(begin)
            payload = file.read(length)
        return payload if zlib.crc32(payload) == checksum else b""

    @property
    def replaced(self) -> bool:
        """Whether the file is another one by now: its newest query no longer stands where it stood."""
        if not self.contents.places:
            return self.path.stat().st_size < self.contents.end
        return not self._payload(next(reversed(self.contents.places)))

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

    def record(self, number: int, pair: Pair, label: Label) -> None:
        """Append a query with its answer, both or neither; ``contents`` does not hold them before :meth:`refresh`."""
        self._append(_query(number, pair) + _answer(number, label))

    def refresh(self) -> dict[int, Label]:
        """Read what has been appended, by whomever; the answers that are new, by number."""
        known = dict(self.contents.labels)
        with self.path.open("rb") as file:
            file.seek(self.contents.end)
            with reading(self.path, "preference file"):
                _take(self.contents, file.read(), self.contents.end, pictures=False)
        return {number: label for number, label in self.contents.labels.items() if known.get(number) != label}


def preferences_as_bytes(buffer: PreferenceBuffer, pending: dict[int, Pair], signature: Signature) -> bytes:
    """A preference file of labelled pairs and open queries; the latter keep their numbers, the former get others."""
    parts = [MAGIC, _record(b"H", json.dumps(asdict(signature)).encode())]
    parts += [_query(-1 - i, held.pair) + _answer(-1 - i, held.label) for i, held in enumerate(buffer)]
    parts += [_query(number, pair) for number, pair in pending.items()]
    return b"".join(parts)


def save_preferences(path: str | Path, buffer: PreferenceBuffer, signature: Signature) -> Path:
    """Write the labelled pairs of a buffer as a preference file, whole or not at all."""
    contents = preferences_as_bytes(buffer, {}, signature)

    def write(file: IO[bytes]) -> None:
        file.write(contents)

    return write_whole(path, write)


def load_preferences(path: str | Path, signature: Signature | None = None, capacity: int = 3000) -> PreferenceBuffer:
    """A buffer of what a preference file holds with an answer; raises and warns as :func:`read_preferences`."""
    buffer = PreferenceBuffer(capacity)
    for pair, label in read_preferences(path, signature).answered:
        buffer.add(pair, label)
    return buffer


# --- labellers ----------------------------------------------------------------------------------------------------------


class FileLabeller(Labeller):
    """Appends queries to a preference file and finds the answers that others append there.

    A file that exists is gone on with: what is answered in it counts, what is not stays open.

    Args:
        path: the file; whoever answers opens it as ``PreferenceLog(path)``, shows ``contents.pending`` and calls ``answer``.
        signature: of the world; None where the file exists.

    Raises:
        FileNotFoundError: no file, and no signature to begin one with.
        ValueError: a file that is none, or of another environment.
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
    """Passes on another labeller's queries and answers, and keeps each query with its answer in a preference file.

    An answer is in the file before the learner has it, so that none is lost with the process; a file that exists is gone on
    with. What was not answered is asked anew, in other pairs.

    Args:
        labeller: who answers.
        path: the file.
        signature: of the world; None where the file exists.

    Raises:
        FileNotFoundError: no file, and no signature to begin one with.
        ValueError: a file that is none, or of another environment.
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
