"""Convert settings and states to plain numbers, texts and arrays, and back. They name no code, and none runs.

Settings are dataclasses of this library or your own (:func:`storable`), converted by :func:`encode` and :func:`decode`. A state
is a dataclass of tensors, numbers, generators and objects with ``state_dict`` and ``load_state_dict`` (optimisers, networks,
followers), converted by :func:`snapshot` and :func:`restore`. The schema of a state is a fresh state of the same settings.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from reprlib import repr as short
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..envs.mdp.checks import require
from .files import restore_optimizer

Class = TypeVar("Class", bound=type)
_CLASSES: dict[str, type] = {}
_SCALARS = (bool, int, float, str)


# --- settings -----------------------------------------------------------------------------------------------------------


def storable(cls: Class) -> Class:
    """Class decorator: allow a dataclass in leader files.

    The library's classes are stored under their own names and all others as ``module:name``, so names cannot collide.

    Raises:
        ValueError: the class would be stored under the name of a library class.
    """
    name = _name(cls)
    free = ":" in name or _CLASSES.get(name, cls).__module__ == cls.__module__
    require(
        free, "storable", "a class with another name than those of the library", f"{cls.__module__}.{cls.__qualname__}"
    )
    _CLASSES[name] = cls
    return cls


def storables() -> dict[str, type]:
    """Return the imported classes that a leader file may hold, by name."""
    return dict(_CLASSES)


def _name(cls: Any) -> str:
    own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if own else f"{cls.__module__}:{cls.__qualname__}"


def _kept(cls: Any) -> list[str]:
    """Return the fields of a record that a file stores: all but those with the metadata ``{"kept": False}``."""
    return [f.name for f in dataclasses.fields(cls) if f.metadata.get("kept", True)]


def encode(value: Any) -> Any:
    """Convert a setting to JSON.

    Raises:
        TypeError: a leader file cannot hold the value, e.g. a function.
    """
    kind: Any = type(value)
    if dataclasses.is_dataclass(value) and _CLASSES.get(_name(kind)) is kind:
        return {"class": _name(kind), "fields": {name: encode(getattr(value, name)) for name in _kept(kind)}}
    if isinstance(value, type):
        name = value.__name__
        if getattr(torch.optim, name, None) is value:
            return {"optimizer": name}
        raise TypeError(f"a leader file cannot hold the class {name}, which is not in torch.optim")
    if isinstance(value, (np.ndarray, Tensor, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(key): encode(item) for key, item in value.items()}}
    if value is None or isinstance(value, _SCALARS):
        return value
    could = "use numbers, strings, bilevel_gym's own classes or a class of torch.optim"
    raise TypeError(f"a leader file cannot hold {value!r}; {could}")


def decode(value: Any) -> Any:
    """Invert :func:`encode` (sequences come back as lists).

    Raises:
        ValueError: a leader file may not hold the class that is named.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class" in value:
        known = value["class"] in _CLASSES
        require(known, "path", f"a leader file with classes among {sorted(_CLASSES)}", repr(value["class"]))
        cls, fields = _CLASSES[value["class"]], value["fields"]
        require(set(fields) <= set(_kept(cls)), "path", f"a {cls.__name__} with fields {_kept(cls)}", sorted(fields))
        return cls(**{key: decode(item) for key, item in fields.items()})
    if "optimizer" in value:
        found = getattr(torch.optim, value["optimizer"], None)
        is_optimizer = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
        require(is_optimizer, "path", "a leader file with a class of torch.optim", repr(value["optimizer"]))
        return found
    return {key: decode(item) for key, item in value["dict"].items()}


# --- states -------------------------------------------------------------------------------------------------------------


def snapshot(value: Any) -> Any:
    """Convert a state to nested dicts and lists of numbers, texts and arrays."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (*_SCALARS, np.ndarray)):
        return value
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, torch.Generator):
        return value.get_state().numpy()
    if dataclasses.is_dataclass(value):
        return {name: snapshot(getattr(value, name)) for name in _kept(type(value))}
    if isinstance(value, dict):
        return {str(key): snapshot(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [snapshot(item) for item in value]
    return snapshot(value.state_dict())


def restore(value: Any, tree: Any, name: str = "state", kind: Any = Any) -> Any:
    """Load the output of :func:`snapshot` into a fresh state. Objects and records are changed in place, other values returned.

    Args:
        value: the fresh state; None stands for a value not known yet.
        tree: the stored state; its arrays are not copied.
        name: name of the state in error messages.
        kind: the type annotation of ``value``.

    Raises:
        ValueError: the form differs from the fresh state or its annotation: a shape or a type differs, a count is negative, or
            an array holds numbers that are not finite.
        KeyError, TypeError, RuntimeError: raised by an object that cannot load the state.
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if tree is None and value is None and len(options) < len(typing.get_args(kind)):
            return None
        # A union of scalar types becomes the type that was read; other unions count as no annotation.
        kind = options[0] if len(options) == 1 or set(options) <= set(_SCALARS) else Any
        kind = type(tree) if len(options) > 1 and type(tree) in options else kind
    if dataclasses.is_dataclass(value) or dataclasses.is_dataclass(kind):
        return _restore_record(value, tree, name, kind)
    if isinstance(value, Tensor) or kind is Tensor:
        found = torch.from_numpy(_restore_array(None if value is None else value.detach().numpy(), tree, name))
        if value is None or not value.requires_grad:
            return found
        with torch.no_grad():
            return value.copy_(found)
    if isinstance(value, np.ndarray):
        return _restore_array(value, tree, name)
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = tree
        return value
    if isinstance(value, torch.Generator):
        value.set_state(torch.from_numpy(_restore_array(value.get_state().numpy(), tree, name)))
        return value
    if isinstance(value, torch.optim.Optimizer):
        restore_optimizer(value, as_tensors(tree, name))
        return value
    if hasattr(value, "load_state_dict"):
        value.load_state_dict(as_tensors(tree, name))
        return value
    if isinstance(value, _SCALARS) or kind in _SCALARS:
        wanted = kind if kind in _SCALARS else type(value)
        fits = type(tree) is wanted or (wanted is float and type(tree) is int)
        fits = fits and (wanted is not int or 0 <= tree < 2**63)
        _check(fits, name, "a count" if wanted is int else wanted.__name__, tree)
        return wanted(tree)
    if isinstance(value, dict) and value:
        keys = {str(key) for key in value}
        alike = isinstance(tree, dict) and tree.keys() == keys
        _check(alike, name, f"a part for each of {sorted(keys)}", tree)
        (_, of) = typing.get_args(kind) or (Any, Any)
        return {key: restore(item, tree[str(key)], f"{name}.{key}", of) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or typing.get_origin(kind) in (list, tuple):
        return _restore_sequence(value, tree, name, kind)
    # An object that is missing in the fresh state cannot be built from a file.
    known = isinstance(value, dict) or (typing.get_origin(kind) or kind) is dict
    fits = isinstance(tree, dict) if known else tree is None
    _check(fits, name, "a dict" if known else "None", tree)
    return as_tensors(tree, name)


def _restore_record(value: Any, tree: Any, name: str, kind: Any) -> Any:
    cls: Any = type(value) if dataclasses.is_dataclass(value) else kind
    hints, fields = _hints(cls)
    _check(isinstance(tree, dict) and tree.keys() == set(fields), name, f"a record of {fields}", tree)
    found = {f: restore(getattr(value, f, None), tree[f], f, hints[f]) for f in fields}
    if value is None or cls.__dataclass_params__.frozen:
        return cls(**found)
    for field, part in found.items():
        setattr(value, field, part)
    return value


@cache
def _hints(cls: Any) -> tuple[dict[str, Any], list[str]]:
    """Return a record's type annotations and its fields."""
    return typing.get_type_hints(cls), _kept(cls)


def _check(fits: bool, name: str, expected: object, got: Any) -> None:
    """Like :func:`require`, but formats ``got`` only on failure and shortens it, since it may be large."""
    require(fits, name, f"{expected}", "" if fits else short(got))


def _restore_array(fresh: NDArray[Any] | None, tree: Any, name: str) -> NDArray[Any]:
    """Check an array against the fresh one's type and shape; without a fresh one it must be float64."""
    dtype = np.dtype(np.float64) if fresh is None else fresh.dtype
    _check(isinstance(tree, np.ndarray) and tree.dtype == dtype, name, f"an array of {dtype}", tree)
    if fresh is not None:
        require(tree.shape == fresh.shape, name, f"shape {fresh.shape}", tree.shape)
    return _finite(tree, name)


def _restore_sequence(value: Any, tree: Any, name: str, kind: Any) -> Any:
    """Restore a sequence: lists may have any length; tuples must match the fresh tuple or its annotation."""
    _check(isinstance(tree, list), name, "a list", tree)
    known, kinds, origin = list(value or ()), typing.get_args(kind) or (Any,), typing.get_origin(kind)
    each = kinds if origin is tuple and Ellipsis not in kinds else kinds[:1] * len(tree)
    n = len(known) if value is not None and origin is not list else len(each)
    require(len(tree) == n == len(each), name, f"{n} parts", len(tree))
    known += [None] * (n - len(known))
    parts = enumerate(zip(known, tree, each, strict=False))
    found = [restore(item, part, f"{name}[{i}]", of) for i, (item, part, of) in parts]
    return tuple(found) if isinstance(value, tuple) or origin is tuple else found


def _finite(array: NDArray[Any], name: str) -> NDArray[Any]:
    require(array.dtype.kind != "f" or bool(np.isfinite(array).all()), name, "finite numbers", "NaN or infinite ones")
    return array


def as_tensors(tree: Any, name: str = "state") -> Any:
    """Return a tree with its arrays converted to tensors; their numbers must be finite."""
    if isinstance(tree, dict):
        return {key: as_tensors(part, f"{name}.{key}") for key, part in tree.items()}
    if isinstance(tree, list):
        return [as_tensors(part, name) for part in tree]
    return torch.from_numpy(_finite(tree, name)) if isinstance(tree, np.ndarray) else tree
