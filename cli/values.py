"""Values as they are written on the command line and in YAML; reading one runs no code.

8, 3e-4, true, [64, 64], dict(net_arch=[64, 64])     Python's literals, and calls of ``dict``
lin_3e-4                                             rl_zoo3's linear schedule: Linear(3e-4, 0)
Geometric(2, 8), BellmanPenalty(lam=4), Rollouts     this library's own parts; without arguments, their defaults
SGD, nn.Tanh                                         classes of torch.optim and torch.nn
anything else                                        a string
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..envs.mdp.checks import require

_WORDS = {"true": True, "false": False, "none": None, "null": None, "inf": math.inf, "nan": math.nan}
_HOMES = ("schedules", "estimators", "penalties", "followers", "common.policies", "preferences")
"""Modules of ``agents`` whose public classes may be called in a value: parts of a method, no leader and no environment."""


class JustTextError(Exception):
    """A text that is a string and nothing more."""


def literal(text: str) -> Any:
    """A number, a truth value, None or a literal list as itself; whatever else is a string as it stands."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: a dict with a list for a key
        return text


def pairs(texts: Iterable[str], name: str) -> dict[str, Any]:
    """``key:value`` texts, as rl_zoo3 has them, as a dictionary of raw values (see :func:`value`).

    Raises:
        ValueError: a text without a key, a key that is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, colon, written = text.partition(":")
        require(colon == ":" and key.isidentifier(), name, "key:value with a key that is a name", repr(text))
        require(key not in found, name, "each key once", f"{key!r} twice")
        found[key] = literal(written)
    return found


def value(raw: Any, name: str) -> Any:
    """What a raw value, of the command line or of YAML, means; lists and mappings entry by entry.

    Raises:
        ValueError: a call of what is none of this library's parts, or with arguments that do not fit.
    """
    if isinstance(raw, Mapping):
        return {str(key): value(item, f"{name}.{key}") for key, item in raw.items()}
    if isinstance(raw, (list, tuple)):
        return [value(item, name) for item in raw]
    if not isinstance(raw, str):
        return raw
    if raw.startswith("lin_"):
        from ..agents import Linear

        start = literal(raw[len("lin_") :])
        require(isinstance(start, (int, float)), name, "lin_ and a number", repr(raw))
        return Linear(float(start), 0.0)
    try:
        return _evaluate(ast.parse(raw.strip(), mode="eval").body, name)
    except (SyntaxError, JustTextError, RecursionError, MemoryError):
        return raw


def parts() -> dict[str, type]:
    """The classes that a value may name, by name."""
    from .. import agents

    found = {}
    for name, home in agents._HOME.items():
        if home.startswith(_HOMES):
            cls = getattr(agents, name)
            if inspect.isclass(cls) and not inspect.isabstract(cls) and not issubclass(cls, Exception):
                found[name] = cls
    return found


def _evaluate(node: ast.expr, name: str) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = _evaluate(node.operand, name)
        if not isinstance(number, (int, float)):
            raise JustTextError
        return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluate(item, name) for item in node.elts]
    if isinstance(node, ast.Dict):
        if not all(isinstance(key, ast.Constant) for key in node.keys):
            raise JustTextError
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        return dict(zip(keys, (_evaluate(item, name) for item in node.values), strict=True))
    if isinstance(node, ast.Name):
        return _named(node.id, name)
    if isinstance(node, ast.Attribute):
        return _of_torch_nn(ast.unparse(node))
    if isinstance(node, ast.Call):
        return _called(node, name)
    raise JustTextError


def _named(word: str, name: str) -> Any:
    """A word: a truth value, a part with its defaults, an optimiser's class."""
    import torch

    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if word in parts():
        return _made(parts()[word], [], {}, name)
    optimizer = getattr(torch.optim, word, None)
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        return optimizer
    raise JustTextError


def _of_torch_nn(dotted: str) -> Any:
    import torch

    module, _, word = dotted.removeprefix("torch.").rpartition(".")
    found = getattr(torch.nn, word, None) if module == "nn" else None
    if isinstance(found, type) and issubclass(found, torch.nn.Module):
        return found
    raise JustTextError


def _called(node: ast.Call, name: str) -> Any:
    word = ast.unparse(node.func)
    args = [_evaluate_or_text(arg, name) for arg in node.args]
    kwargs = {item.arg: _evaluate_or_text(item.value, name) for item in node.keywords if item.arg is not None}
    if word == "dict":
        require(not args, name, "dict with keys alone", ast.unparse(node))
        return kwargs
    known = parts()
    require(word in known, name, f"a call of dict or one of {', '.join(sorted(known))}", ast.unparse(node))
    return _made(known[word], args, kwargs, name)


def _evaluate_or_text(node: ast.expr, name: str) -> Any:
    try:
        return _evaluate(node, name)
    except JustTextError:
        return ast.unparse(node)


def _made(cls: type, args: list[Any], kwargs: dict[str, Any], name: str) -> Any:
    signature = inspect.signature(cls)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        shown = [str(parameter).split(":")[0] for parameter in signature.parameters.values()]
        raise ValueError(
            f"{name}: expected {cls.__name__}({', '.join(shown)}), got arguments that do not fit ({error})"
        ) from error
    return cls(*args, **kwargs)
