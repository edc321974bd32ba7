"""Checks of arguments: each error names the argument, what was expected and what came."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import operator
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

DISTRIBUTION_ATOL = 1e-6
"""Largest distance from 1 that the sum of a distribution may have: what rounding to float32 leaves."""

LONGEST_EPISODE = 1.000001e9
"""Largest discounted length of an episode, 1/(1 - gamma) if it does not end, at which values are exact to six digits."""


class ArgumentError(TypeError, ValueError):
    """An unknown argument name: a ``TypeError``, as in Python, and a ``ValueError``, as for other invalid arguments."""


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise ``ValueError`` naming the argument unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def plain(value: Any) -> Any:
    """Convert a NumPy scalar, or a 0-dimensional array or tensor, to a Python number; return anything else unchanged."""
    return value.item() if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0 else value


def plain_fields(instance: Any) -> None:
    """Apply :func:`plain` to every field of a frozen dataclass; call it in ``__post_init__``."""
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, plain(getattr(instance, field.name)))


def require_imported(value: Any, name: str, otherwise: str) -> None:
    """Raise ``ValueError`` if a string in nested data from a file is an environment id that would import a module.

    Gymnasium imports the module of an id such as ``module:Env-v0``. Modules that are imported already are allowed.

    Args:
        value: the file's content: nested dicts and lists of strings and numbers.
        name: the name at the start of the error message.
        otherwise: the other values that the error message says are expected.
    """
    for part in texts_within(value):
        module, colon, _ = part.partition(":")
        if colon and module not in sys.modules:
            top = module.partition(".")[0]
            try:
                found = top != "" and importlib.util.find_spec(top) is not None
            except ValueError:  # imported, but of unknown origin
                found = True
            require(
                not found,
                name,
                f"{otherwise}, or {module} to be imported first: a file never imports a module",
                repr(part),
            )


def texts_within(value: Any) -> Iterator[str]:
    """Iterate over all strings in nested data from a file, including keys."""
    parts = [value]
    while parts:
        part = parts.pop()
        parts += [*part, *part.values()] if isinstance(part, Mapping) else part if isinstance(part, list) else []
        if isinstance(part, str):
            yield part


def as_float64(value: Any, name: str) -> Tensor:
    """Return ``value`` as a float64 tensor (a float64 tensor is passed through with its graph)."""
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected numbers, got {type(value).__name__} ({error})") from error


def keep(record: Any, *names: str) -> None:
    """Make fields of a frozen dataclass float64 tensors; raises ``ValueError`` for one that is not finite."""
    for name in names:
        value = as_float64(getattr(record, name), name)
        check_finite(value, name)
        object.__setattr__(record, name, value)


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise ``ValueError`` if an entry is NaN or infinite."""
    # A sum is finite only where its terms are, and takes no memory; it may overflow, so finite terms are looked for.
    if bool(torch.isfinite(tensor.detach().sum())):
        return
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        where = tuple(int(i) for i in (~finite).nonzero()[0])
        raise ValueError(f"{name}: expected finite numbers, got {tensor.detach()[where].item()} at index {where}")


def check_distribution(tensor: Tensor, name: str) -> None:
    """Raise ``ValueError`` unless the last axis holds distributions (non-negative, sum one within 1e-6)."""
    p = tensor.detach()
    require(p.numel() > 0, name, "probabilities", "none")
    check_finite(p, name)
    low = p.min()
    if low < 0:
        where = tuple(int(i) for i in (p == low).nonzero()[0])
        raise ValueError(f"{name}: expected probabilities >= 0, got {low.item():.6g} at index {where}")
    error = (p.sum(-1) - 1).abs()
    if error.max() > DISTRIBUTION_ATOL:
        where = tuple(int(i) for i in (error == error.max()).nonzero()[0])
        total = p.sum(-1)[where].item()
        raise ValueError(f"{name}: expected rows that sum to 1, got a sum of {total:.9g} at index {where}")


def check_count(value: object, name: str, least: int = 0) -> int:
    """Return ``value`` as an int; raise ``ValueError`` unless it is a whole number of at least ``least``."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    require(number >= least and not isinstance(value, bool), name, f"a whole number >= {least}", repr(value))
    return number


def check_size(value: object, name: str) -> int:
    """Return ``value`` as an int; raise ``ValueError`` unless it is a whole number of at least one."""
    return check_count(value, name, 1)


def check_seed(seed: object, name: str = "seed") -> int | None:
    """Return ``seed`` as an int or None; raise ``ValueError`` unless it is None or a whole number that is not negative."""
    try:
        number = None if seed is None else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    fits = number is None or (number >= 0 and not isinstance(seed, bool))
    require(fits, name, "None or a whole number >= 0", repr(seed))
    return number


def check_number(
    value: object,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    text: bool = False,
) -> float:
    """Return ``value`` as a float; raise ``ValueError`` unless it lies in the interval. ``text``: whether it is a string."""
    left, right = ("(" if open_low or low == -math.inf else "["), (")" if open_high or high == math.inf else "]")
    expected = f"a number in {left}{low:g}, {high:g}{right}"
    single = isinstance(value, (str, bytes, bytearray)) == text and getattr(value, "ndim", 0) == 0
    require(single, name, expected, repr(value))
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name}: expected {expected}, got {value!r}") from error
    inside = (number > low if open_low else number >= low) and (number < high if open_high else number <= high)
    require(inside and not isinstance(value, bool), name, expected, repr(value))
    return number


def one_number(value: Any, name: str) -> float:
    """Return a reward as a float, given a number or, as some environments return, an array with one entry; NaN is allowed.

    Raises:
        ValueError: the reward is a vector (the message says how to make one number of it), or not a number.
    """
    if type(value) is float:
        return value
    array = np.asarray(value)
    if array.size > 1 or array.ndim > 1:
        raise ValueError(
            f"{name}: expected one number a step, got an array of shape {array.shape}; make one number of it first, e.g. by "
            "gymnasium.wrappers.TransformReward(env, lambda r: float(weights @ r)) or MO-Gymnasium's LinearReward"
        )
    try:
        return float(array.item())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a number a step, got {value!r}") from error


def check_gamma(gamma: object, *, endless: bool = False) -> float:
    """Return the discount as a float; it must lie in [0, 1).

    Args:
        gamma: the discount.
        endless: whether episodes do not end, so that their discounted length is 1/(1 - gamma): it must be at most
            ``LONGEST_EPISODE``.
    """
    number = check_number(gamma, "gamma", low=0.0, high=1.0, open_high=True)
    if endless:
        check_length(number, 1.0 / (1.0 - number))
    return number


def check_length(gamma: float, length: float) -> None:
    """Raise ``ValueError`` if an episode's discounted length is too large to solve for in double precision."""
    expected = (
        f"a discount at which an episode lasts at most {LONGEST_EPISODE:g} discounted steps "
        "(beyond that, values in double precision have fewer than six digits)"
    )
    got = f"{gamma!r} = 1 - {1.0 - gamma:.3g}, at which it lasts {length:.3g}"
    require(0.0 < length <= LONGEST_EPISODE, "gamma", expected, got)


def check_tau(tau: object, *, positive: bool = False, name: str = "tau") -> float:
    """Return the temperature as a float; non-negative, or positive where the method needs it."""
    return check_number(tau, name, low=0.0, high=math.inf, open_low=positive, open_high=True)


def broadcast_batch(*named: tuple[str, torch.Size]) -> torch.Size:
    """The batch axes that all of these broadcast to.

    Raises:
        ValueError: batch axes that do not fit, with the first pair that does not.
    """
    shape, names = torch.Size([]), "no batch axes"
    for name, other in named:
        if not other or other == shape:
            continue
        try:
            shape = torch.broadcast_shapes(shape, other)
        except RuntimeError:
            raise ValueError(
                f"{name}: expected batch axes that broadcast with {tuple(shape)} ({names}), got {tuple(other)}"
            ) from None
        names = name if names == "no batch axes" else f"{names}, {name}"
    return shape
