"""Leader files: one zip of JSON and tensors. Reading one runs no code that the file brings.

``leader.json`` holds numbers, strings and names from a fixed table of classes; ``tensors.pt`` is read with torch's
``weights_only``. A file is written beside its place and moved there whole.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...envs.mdp.checks import require
from ..schedules import Constant, Geometric, Linear, Power, Quench

FORMAT = 1
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


def write_leader(path: str | Path, header: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """Write a leader file whole or not at all; ``.zip`` is added where the path has no suffix."""
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = io.BytesIO()
    torch.save(tensors, blob)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("leader.json", json.dumps({"format": FORMAT, **header}, indent=1))
                archive.writestr("tensors.pt", blob.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read_leader(path: str | Path, leader: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the header and the tensors of a leader file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, is no leader file, or holds another kind of leader.
    """
    path = Path(path)
    path = path if path.suffix or path.exists() else path.with_suffix(".zip")
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a leader file, got {path}, which does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("leader.json"))
            tensors = torch.load(io.BytesIO(archive.read("tensors.pt")), weights_only=True)
        kind, version = header["leader"], header["format"]
    except Exception as error:
        raise ValueError(
            f"path: expected a whole leader file, got {path}, which is truncated or none ({type(error).__name__}: {error})"
        ) from error
    if version != FORMAT:
        raise ValueError(f"path: expected a leader file of format {FORMAT}, got format {version!r} in {path}")
    if kind != leader:
        raise ValueError(f"path: expected the file of a {leader}, got that of a {kind} in {path}")
    return header, tensors
