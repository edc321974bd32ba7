"""Records: settings and states as plain numbers, texts and arrays, and back. No code is named in them, and none runs.

Settings are dataclasses of this library or of a user's (:func:`storable`), by :func:`encode` and :func:`decode`. A state is a
dataclass of tensors, numbers, generators, and of objects with ``state_dict`` and ``load_state_dict`` (optimisers, networks,
followers), by :func:`snapshot` and :func:`restore`. What a state is read into, a fresh one of the same settings, is its schema.
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..envs.mdp.checks import require

Class = TypeVar("Class", bound=type)
_CLASSES: dict[str, type] = {}


# --- settings -----------------------------------------------------------------------------------------------------------


def storable(cls: Class) -> Class:
    """Class decorator: a dataclass whose instances a leader file may hold.

    The library's classes go by their own names, all others by ``module:name``, so that none takes another's place.
    """
    _CLASSES[_name(cls)] = cls
    return cls


def storables() -> dict[str, type]:
    """What a leader file may hold of the classes that are imported, by name."""
    return dict(_CLASSES)


def _name(cls: Any) -> str:
    own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if own else f"{cls.__module__}:{cls.__qualname__}"


def _kept(cls: Any) -> list[str]:
    """The fields of a record that a file holds: all but those with the metadata ``{"kept": False}``."""
    return [f.name for f in dataclasses.fields(cls) if f.metadata.get("kept", True)]


def encode(value: Any) -> Any:
    """A setting as JSON.

    Raises:
        TypeError: a value that no leader file can hold, such as a function.
    """
    kind: Any = type(value)
    if dataclasses.is_dataclass(value) and _CLASSES.get(_name(kind)) is kind:
        return {"class": _name(kind), "fields": {name: encode(getattr(value, name)) for name in _kept(kind)}}
    if isinstance(value, type):
        name = value.__name__
        if getattr(torch.optim, name, None) is value:
            return {"optimizer": name}
        raise TypeError(f"a leader file cannot hold the class {name}; it is none of torch.optim")
    if isinstance(value, (np.ndarray, Tensor, np.generic)):
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
        cls, fields = _CLASSES[value["class"]], value["fields"]
        require(set(fields) <= set(_kept(cls)), "path", f"a {cls.__name__} of {_kept(cls)}", sorted(fields))
        return cls(**{key: decode(item) for key, item in fields.items()})
    if "optimizer" in value:
        found = getattr(torch.optim, value["optimizer"], None)
        is_optimizer = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
        require(is_optimizer, "path", "a leader file with a class of torch.optim", repr(value["optimizer"]))
        return found
    return {key: decode(item) for key, item in value["dict"].items()}


# --- states -------------------------------------------------------------------------------------------------------------


def snapshot(value: Any) -> Any:
    """A state as nested dicts and lists of numbers, texts and arrays."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str, np.ndarray)):
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
    """What :func:`snapshot` gave, in the place of a fresh state; objects and records take it in, the rest is returned.

    Args:
        value: the fresh state; None stands for what is not known yet.
        tree: what was read.
        name: for errors.
        kind: the annotation of ``value``.

    Raises:
        ValueError: another form than the fresh state's or its annotation's: a shape, a type, a number that is not finite.
        KeyError, TypeError, RuntimeError: what an object makes of a state that is not its own.
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if tree is None and len(options) < len(typing.get_args(kind)):
            return None
        kind = options[0] if len(options) == 1 else Any
    if dataclasses.is_dataclass(value) or dataclasses.is_dataclass(kind):
        return _restore_record(value, tree, name, kind)
    if isinstance(value, Tensor) or kind is Tensor:
        return _restore_tensor(value, tree, name)
    if isinstance(value, np.ndarray):
        return _restore_tensor(torch.from_numpy(value), tree, name).numpy()
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = tree
        return value
    if isinstance(value, torch.Generator):
        value.set_state(_restore_tensor(value.get_state(), tree, name))
        return value
    if isinstance(value, torch.optim.Optimizer):
        value.load_state_dict(_optimizer_state(value, tree))
        return value
    if hasattr(value, "load_state_dict"):
        value.load_state_dict(as_tensors(tree))
        return value
    if isinstance(value, (bool, int, float, str)) or kind in (bool, int, float, str):
        wanted = kind if kind in (bool, int, float, str) else type(value)
        fits = type(tree) is wanted or (wanted is float and type(tree) is int)
        require(fits, name, f"a {wanted.__name__}", repr(tree))
        return wanted(tree)
    if isinstance(value, dict) and value:
        alike = isinstance(tree, dict) and tree.keys() == {str(key) for key in value}
        require(alike, name, f"a part for each of {sorted(map(str, value))}", repr(tree))
        (_, of) = typing.get_args(kind) or (Any, Any)
        return {key: restore(item, tree[str(key)], f"{name}.{key}", of) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or typing.get_origin(kind) in (list, tuple):
        return _restore_sequence(value, tree, name, kind)
    return as_tensors(tree)


def _restore_record(value: Any, tree: Any, name: str, kind: Any) -> Any:
    cls: Any = type(value) if dataclasses.is_dataclass(value) else kind
    hints = typing.get_type_hints(cls)
    fields = _kept(cls)
    alike = isinstance(tree, dict) and tree.keys() == set(fields)
    require(alike, name, f"a record of {fields}", repr(tree))
    found = {f: restore(getattr(value, f, None), tree[f], f, hints[f]) for f in fields}
    if value is None or cls.__dataclass_params__.frozen:
        return cls(**found)
    for field, part in found.items():
        setattr(value, field, part)
    return value


def _restore_tensor(value: Tensor | None, tree: Any, name: str) -> Tensor:
    require(isinstance(tree, np.ndarray), name, "an array", repr(tree))
    found = torch.from_numpy(np.array(tree))
    dtype = torch.float64 if value is None else value.dtype
    require(found.dtype == dtype, name, f"numbers of {dtype}", found.dtype)
    require(
        value is None or value.shape == found.shape,
        name,
        f"shape {None if value is None else tuple(value.shape)}",
        tuple(found.shape),
    )
    if found.is_floating_point():
        require(bool(torch.isfinite(found).all()), name, "finite numbers", "others")
    if value is None or not value.requires_grad:
        return found
    with torch.no_grad():
        return value.copy_(found)


def _restore_sequence(value: Any, tree: Any, name: str, kind: Any) -> Any:
    require(isinstance(tree, list), name, "a list", repr(tree))
    of = (*typing.get_args(kind), Any)[0]
    known = list(value or ())
    if typing.get_origin(kind) is not list:
        require(value is None or len(known) == len(tree), name, f"{len(known)} parts", len(tree))
    known += [None] * (len(tree) - len(known))
    found = [restore(item, part, f"{name}[{i}]", of) for i, (item, part) in enumerate(zip(known, tree, strict=False))]
    return tuple(found) if isinstance(value, tuple) or typing.get_origin(kind) is tuple else found


def as_tensors(tree: Any) -> Any:
    """A tree with its arrays as tensors."""
    if isinstance(tree, dict):
        return {key: as_tensors(part) for key, part in tree.items()}
    if isinstance(tree, list):
        return [as_tensors(part) for part in tree]
    return torch.from_numpy(np.array(tree)) if isinstance(tree, np.ndarray) else tree


def _optimizer_state(optimizer: torch.optim.Optimizer, tree: Any) -> Any:
    """An optimiser's ``state_dict`` from a tree: alike in form to what this optimiser has after a step."""
    probe = copy.deepcopy(optimizer)
    for group in probe.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    probe.step()
    fresh = probe.state_dict()
    alike = isinstance(tree, dict) and tree.keys() == {"state", "param_groups"} and isinstance(tree["state"], dict)
    require(alike, "optimizer", "the state of an optimiser", repr(tree))
    groups = [_alike(old, new) for old, new in zip(fresh["param_groups"], tree["param_groups"], strict=True)]
    moments = {int(key): _alike(fresh["state"][int(key)], part) for key, part in tree["state"].items()}
    return {"state": moments, "param_groups": groups}


def _alike(fresh: Any, tree: Any) -> Any:
    """A tree that is built like a fresh one, numbers standing for finite numbers; raises ``ValueError`` for any other."""
    if isinstance(fresh, dict):
        alike = isinstance(tree, dict) and tree.keys() == {str(key) for key in fresh}
        require(alike, "optimizer", f"a part for each of {sorted(fresh)}", repr(tree))
        return {key: _alike(part, tree[str(key)]) for key, part in fresh.items()}
    if isinstance(fresh, (list, tuple)):
        require(isinstance(tree, list) and len(tree) == len(fresh), "optimizer", f"{len(fresh)} parts", repr(tree))
        return type(fresh)(_alike(part, other) for part, other in zip(fresh, tree, strict=True))
    if isinstance(fresh, Tensor):
        return _restore_tensor(fresh, tree, "optimizer")
    numbers = type(fresh) in (int, float) and type(tree) in (int, float) and bool(np.isfinite(tree))
    require(
        numbers or (type(tree) is type(fresh) and tree == fresh), "optimizer", f"something like {fresh!r}", repr(tree)
    )
    return tree
