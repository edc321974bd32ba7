"""What tests and benchmarks of interrupted runs share: comparing files to the bit."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


def contents(path: Path) -> dict[str, Any]:
    """Header, tensors and arrays of a leader file."""
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = io.BytesIO(archive.read(name))
            if name.endswith(".json"):
                found[name] = json.loads(data.read())
            elif name.endswith(".pt"):
                found[name] = torch.load(data, weights_only=True)
            else:
                found[name] = np.load(data, allow_pickle=False)
    return found


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested things differ by a bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return [] if same else [where]
    if type(one) is not type(other):
        return [f"{where} ({type(one).__name__}, {type(other).__name__})"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where} {sorted(one.keys() ^ other.keys())}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where} (lengths {len(one)}, {len(other)})"]
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}[{i}]")]
    return [] if one == other or (one != one and other != other) else [f"{where} ({one}, {other})"]
