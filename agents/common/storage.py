"""Leader files: one zip of JSON, tensors and arrays. Reading one runs no code that the file brings.

    leader.json        numbers, strings and names from a fixed table of classes
    tensors.pt         read with torch's ``weights_only``
    arrays/NAME.npy    replay buffers, read without pickle, each into an array that is there already

The first two are stored as they are, so that a small file cannot unfold into a large one; arrays are compressed, and their sizes
are known before they are read. A file is written beside its place, flushed to the disk and moved there whole.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...envs.mdp.checks import require
from ..files import reading, write_whole
from ..schedules import Constant, Geometric, Linear, Power, Quench

FORMAT = 2
Arrays = Mapping[str, NDArray[Any]]
"""Arrays by name; the first axis may be shorter in a file than in the array that it is read into."""
_CLASSES: dict[str, type] = {cls.__name__: cls for cls in (Constant, Linear, Geometric, Power, Quench)}


def storable(cls: type) -> type:
    """Class decorator: a dataclass whose instances a leader file may hold."""
    _CLASSES[cls.__name__] = cls
    return cls


def encode(value: Any) -> Any:
    """A config value as JSON.

    Raises:
        TypeError: a value that no leader file can hold, such as a function.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__name__ in _CLASSES:
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, type):
        name: str = value.__name__
        if getattr(torch.optim, name, None) is value:
            return {"optimizer": name}
        raise TypeError(f"a leader file cannot hold the class {value.__name__}; it is none of torch.optim")
    if isinstance(value, (np.ndarray, torch.Tensor, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(key): encode(item) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"a leader file cannot hold {value!r}; use numbers, strings, bilevel_gym's own classes or a class of torch.optim"
    )


def decode(value: Any) -> Any:
    """The inverse of :func:`encode` (sequences come back as lists).

    Raises:
        ValueError: the name of a class that no leader file may hold.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class" in value:
        known = value["class"] in _CLASSES
        require(known, "path", f"a leader file with classes of {sorted(_CLASSES)}", repr(value["class"]))
        return _CLASSES[value["class"]](**{key: decode(item) for key, item in value["fields"].items()})
    if "optimizer" in value:
        cls = getattr(torch.optim, value["optimizer"], None)
        is_optimizer = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        require(is_optimizer, "path", "a leader file with a class of torch.optim", repr(value["optimizer"]))
        return cls
    return {key: decode(item) for key, item in value["dict"].items()}


def leader_path(path: str | Path) -> Path:
    """The path of a leader file: ``.zip`` is added where there is no suffix."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def write_leader(
    path: str | Path, header: dict[str, Any], tensors: dict[str, Any], arrays: Arrays | None = None
) -> Path:
    """Write a leader file whole or not at all; ``.zip`` is added where the path has no suffix.

    Args:
        path: the file.
        header: JSON.
        tensors: dicts, lists, numbers and strings with tensors in them.
        arrays: large arrays, e.g. those of replay buffers.

    Raises:
        OSError: as :func:`write_whole`.
    """
    text = json.dumps({"format": FORMAT, **header}, indent=1)  # before anything is written: it may raise
    blob = io.BytesIO()
    torch.save(tensors, blob)

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("leader.json", text, zipfile.ZIP_STORED)
            archive.writestr("tensors.pt", blob.getbuffer(), zipfile.ZIP_STORED)
            for name, array in (arrays or {}).items():
                with archive.open(f"arrays/{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

    return write_whole(leader_path(path), write)


def found_leader(path: str | Path) -> Path:
    """The path of a leader file that exists.

    Raises:
        FileNotFoundError: no such file.
    """
    path = Path(path)
    path = path if path.suffix or path.exists() else path.with_suffix(".zip")
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a leader file, got {path}, which does not exist")
    return path


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry that is no larger than the file says by its own size."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise zipfile.BadZipFile(f"{name} is compressed")
    return archive.read(entry)


def read_leader(path: str | Path, *leaders: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the header and the tensors of a leader file.

    Args:
        path: the file.
        leaders: whose file it may be.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, is no leader file, or holds another kind of leader.
    """
    path = found_leader(path)
    with reading(path), zipfile.ZipFile(path) as archive:
        try:
            header = json.loads(_stored(archive, "leader.json"))
            kind, version = header["leader"], header["format"]
        except ValueError as error:
            raise TypeError(str(error)) from error
        require(version == FORMAT, "path", f"a leader file of format {FORMAT}", f"format {version!r} in {path}")
        require(kind in leaders, "path", f"the file of a {' or a '.join(leaders)}", f"that of a {kind} in {path}")
        try:
            tensors = torch.load(io.BytesIO(_stored(archive, "tensors.pt")), weights_only=True, map_location="cpu")
        except ValueError as error:
            raise TypeError(str(error)) from error
        if not isinstance(tensors, dict):
            raise TypeError("tensors.pt holds no dict")
    return header, tensors


def read_arrays(path: str | Path, into: Arrays) -> None:
    """Read arrays of a leader file into those that are there.

    Args:
        path: the file.
        into: arrays by name; of what a file holds, the first axis may be shorter.

    Raises:
        ValueError: an array that is missing, of another type or shape, or truncated.
    """
    path = found_leader(path)
    with reading(path), zipfile.ZipFile(path) as archive:
        for name, array in into.items():
            with archive.open(f"arrays/{name}.npy") as member:
                if np.lib.format.read_magic(member) != (1, 0):
                    raise TypeError(f"the array {name} is of another version")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
                fits = dtype == array.dtype and shape[1:] == array.shape[1:] and not fortran
                if not (fits and len(shape) == array.ndim and shape[:1] <= array.shape[:1]):
                    raise TypeError(f"the array {name} is {dtype}{shape} and not {array.dtype}{array.shape}")
                part = array[: shape[0]] if array.ndim else array
                held = part.reshape(-1).view(np.uint8).data
                done = 0
                while done < len(held):
                    got = member.readinto(held[done:])  # type: ignore[attr-defined]
                    if not got:
                        raise EOFError(f"the array {name} ends early")
                    done += got
                if member.read(1):  # also checks the entry's sum
                    raise TypeError(f"the array {name} is longer than it says")
