"""Leader files: a zip of JSON and arrays, written atomically. Reading one never runs code from the file.

    leader.json        numbers, texts and references to arrays; uncompressed
    arrays/N.npy       the arrays of a state; uncompressed
    replay/NAME.npy    large arrays, compressed, each read into an existing array

All sizes are known before anything is read, and are bounded by what the leader's own settings need.
"""

from __future__ import annotations

import errno
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as short
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..envs.mdp.checks import require
from .files import reading, write_whole

FORMAT, WRITERS = 3, {1: "0.1", 2: "0.1"}
"""The current file format, and the library version that wrote each earlier one."""
LARGEST = 80 * 2**20
"""Maximum size in bytes of a file's JSON in memory, and of its arrays beyond what its leader needs."""
Arrays = Mapping[str, NDArray[Any]]
"""Arrays by name; the first axis may be shorter in a file than in the array to read into."""


def leader_path(path: str | Path) -> Path:
    """Return the path of a leader file: ``.zip`` is added where there is no suffix."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def found_leader(path: str | Path) -> Path:
    """Return the path of an existing leader file.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    path = Path(path)
    path = path if path.suffix or path.exists() else path.with_suffix(".zip")
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a leader file, got {path}, which does not exist")
    return path


def write_leader(path: str | Path, header: dict[str, Any], state: Any, replay: Arrays | None = None) -> Path:
    """Write a leader file atomically; ``.zip`` is added where the path has no suffix.

    Args:
        path: the file.
        header: kind of leader and settings, for JSON.
        state: nested dicts and lists of numbers, texts and arrays.
        replay: large arrays, e.g. those of replay buffers.

    Raises:
        OSError: see :func:`write_whole`; or the records are too many to be read back.
    """
    arrays: list[NDArray[Any]] = []

    def placed(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: placed(part) for key, part in tree.items()}
        if isinstance(tree, (list, tuple)):
            return [placed(part) for part in tree]
        if not isinstance(tree, np.ndarray):
            return tree
        arrays.append(tree)
        return {"array": len(arrays) - 1}

    # this may raise, so do it before anything is written
    text = json.dumps({"format": FORMAT, **header, "state": placed(state)}).encode()
    if _unfolded(text) > LARGEST:
        raise OSError(errno.EFBIG, "expected fewer records and logged numbers (see eval_every)", str(path))

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("leader.json", text, zipfile.ZIP_STORED)
            entries: list[tuple[zipfile.ZipInfo | str, NDArray[Any]]] = [
                *((zipfile.ZipInfo(f"arrays/{i}.npy"), array) for i, array in enumerate(arrays)),  # stored
                *((f"replay/{name}.npy", array) for name, array in (replay or {}).items()),  # compressed
            ]
            for entry, array in entries:
                whole = np.ascontiguousarray(array).reshape(array.shape)
                with archive.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, whole, version=(1, 0), allow_pickle=False)

    return write_whole(leader_path(path), write)


def read_header(path: str | Path, leader: str) -> dict[str, Any]:
    """Read the JSON of a leader file.

    Args:
        path: the file.
        leader: name of the leader's class.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated, no leader file, of another version, or of another kind of leader.
    """
    path = found_leader(path)
    with reading(path), _opened(path) as archive:
        try:
            entry, most = _stored(archive, "leader.json"), LARGEST // 2
            require(entry.file_size <= most, "leader.json", f"at most {most} bytes", str(entry.file_size))
            text = archive.read(entry)
            require(_unfolded(text) <= LARGEST, "leader.json", f"JSON of at most {LARGEST} bytes in memory", "more")
            header = json.loads(text.decode("ascii"))
            kind, version = header["leader"], header["format"]
        except (ValueError, RecursionError) as error:
            raise TypeError(str(error)) from error
        by = f", which bilevel-gym {WRITERS[version]} wrote" if version in (*WRITERS,) else ""
        got = f"format {short(version)} in {path}{by}"
        require(version == FORMAT, "path", f"a leader file of format {FORMAT}", got)
        require(kind == leader, "path", f"the file of a {leader}", f"that of a {str(kind)[:40]} in {path}")
    return dict(header)


def _unfolded(text: bytes) -> int:
    """Return an upper bound on the memory in bytes of parsed JSON: twice the text, plus its lists, dicts and keys."""
    return 2 * len(text) + 120 * (text.count(b"[") + text.count(b":")) + 250 * text.count(b"{") + 72 * text.count(b",")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the zip, if its list of entries is no longer than a leader file's may be.

    ``zipfile`` keeps about 600 bytes per entry, which takes 46 bytes in the file's list.
    """
    with path.open("rb") as file:
        end: Any = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end is not None and end[5] > 2**21:  # size of the list in bytes
            raise zipfile.BadZipFile("too many entries")
        with zipfile.ZipFile(file) as archive:
            yield archive


def read_state(path: str | Path, tree: Any, needed: int) -> Any:
    """Read the state of a leader file, with arrays in place of their references.

    Args:
        path: the file.
        tree: the state in the file's JSON.
        needed: size in bytes of the arrays of a leader with these settings; the file may hold 80 MiB more.

    Raises:
        ValueError: an array is too large, missing, damaged or of objects.
    """
    path, left = found_leader(path), needed + LARGEST
    expected = f"a state of at most {left} bytes, as the settings need"

    with reading(path), _opened(path) as archive:

        def read(part: Any) -> Any:
            nonlocal left
            for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
                part[key] = read(part[key])
            if not isinstance(part, dict) or part.keys() != {"array"}:
                return part
            entry = _stored(archive, f"arrays/{int(part['array'])}.npy")
            left -= entry.file_size
            require(left >= 0, "path", expected, "a larger one")
            with archive.open(entry) as member:
                shape, dtype = _array_header(member)
                if math.prod(shape) * dtype.itemsize > entry.file_size:
                    raise EOFError(f"an array of {entry.file_size} bytes is said to be {dtype}{shape}")
                return _filled(member, np.empty(shape, dtype))

        return read(tree)


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and type of the array that follows; only arrays of numbers in C order are allowed."""
    if np.lib.format.read_magic(member) != (1, 0):
        raise TypeError("an array of another version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member, max_header_size=4096)
    if fortran or dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise TypeError(f"an array of {dtype}{shape}, expected numbers in C order")
    return shape, dtype


def _filled(member: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Fill a contiguous array from the file, a MiB at a time; the file must hold exactly as many bytes."""
    held = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(held):
        got = member.readinto(held[done : done + 2**20])
        if not got:
            raise EOFError(f"an array ends after {done} bytes")
        done += got
    if member.read(1):  # also checks the entry's checksum
        raise TypeError("an array is longer than its header says")
    return array


def _stored(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Return an entry that is stored uncompressed, so that it is no larger than the file."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise zipfile.BadZipFile(f"{name} is compressed")
    return entry


def size_of(tree: Any) -> int:
    """Return the size in bytes of the arrays in a tree."""
    if isinstance(tree, dict):
        return sum(size_of(part) for part in tree.values())
    if isinstance(tree, (list, tuple)):
        return sum(size_of(part) for part in tree)
    return tree.nbytes if isinstance(tree, np.ndarray) else 0


def read_arrays(path: str | Path, into: Arrays) -> None:
    """Read large arrays of a leader file into existing ones.

    Args:
        path: the file.
        into: arrays by name, changed in place; the file's may be shorter in the first axis.

    Raises:
        ValueError: an array is missing, truncated, or of another type or shape.
    """
    path = found_leader(path)
    with reading(path), _opened(path) as archive:
        for name, array in into.items():
            entry = archive.getinfo(f"replay/{name}.npy")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others expand without bound
                raise zipfile.BadZipFile(f"{entry.filename} is compressed by another method")
            with archive.open(entry) as member:
                shape, dtype = _array_header(member)
                fits = dtype == array.dtype and shape[1:] == array.shape[1:]
                if not (fits and len(shape) == array.ndim and shape[:1] <= array.shape[:1]):
                    raise TypeError(f"the array {name} is {dtype}{shape}, not {array.dtype}{array.shape}")
                part = _filled(member, array[: shape[0]] if array.ndim else array)
                finite = part.dtype.kind != "f" or all(bool(np.isfinite(row).all()) for row in np.atleast_1d(part))
                require(finite, name, "finite numbers", "NaN or infinite ones")
