"""Parses values from the command line and from YAML, without running code.

8, 3e-4, true, [64, 64], dict(net_arch=[64, 64])     Python's literals, and calls of ``dict``
lin_3e-4                                             rl_zoo3's linear schedule: Linear(3e-4, 0)
Geometric(2, 8), BellmanPenalty(lam=4), Rollouts     objects of this library; without arguments, with their defaults
SGD, nn.Tanh                                         classes of torch.optim and torch.nn
anything else                                        a string
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..envs.mdp.checks import require

_WORDS = {"true": True, "false": False, "none": None, "null": None, "inf": math.inf, "nan": math.nan}
_PARTS = {
    "schedules": "Constant Linear Geometric Power Quench",
    "estimators.rollouts": "Rollouts",
    "estimators.known_model": "KnownModel",
    "monte_carlo": "MonteCarlo",
    "penalties": "ValuePenalty BellmanPenalty NikaidoIsodaPenalty",
    "followers": "SoftPolicyIteration MirrorDescent PolicyGradient",
    "held_policies": "Softmax Direct Solved",
    "preferences.training": "FitConfig",
    "preferences.fragmenters": "RandomFragmenter ActiveFragmenter WholeEpisodes",
    "preferences.labels": "TrueReturnLabeller ProgramLabeller",
    "preferences.files": "FileLabeller LoggedLabeller",
    "preferences.reward_model": "MLPReward ConvReward",
    "preferences.atari": "AtariCNN",
    "preferences.planner": "Planner",
    "preferences.worlds": "Copies",
}
"""Names that a value may use, by their module of ``agents``; leaders and environments are not among them."""
_WRITERS = ("FileLabeller", "LoggedLabeller")
"""Those of the names whose objects write a file."""


class JustTextError(Exception):
    """A text is a plain string and not an expression."""


def literal(text: str) -> Any:
    """Parse a number, a boolean, None or a literal list; anything else stays a string."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: a dict with a list for a key
        return text


def pairs(texts: Iterable[str], name: str) -> dict[str, Any]:
    """Parse ``key:value`` texts, as in rl_zoo3, into a dictionary of raw values (see :func:`value`).

    Raises:
        ValueError: a text has no key, or a key occurs twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, colon, written = text.partition(":")
        require(colon == ":" and key.isidentifier(), name, "key:value with a key that is a name", repr(text))
        require(key not in found, name, "each key once", f"{key!r} twice")
        found[key] = literal(written)
    return found


def value(raw: Any, name: str, files: bool = True) -> Any:
    """Parse a raw value of the command line or of YAML; in lists and mappings, each entry.

    Args:
        raw: the raw value.
        name: name of the argument in errors.
        files: whether the value may name objects that write a file.

    Raises:
        ValueError: the value calls an unknown name, or the arguments of a call do not fit.
    """
    if isinstance(raw, Mapping):
        return {str(key): value(item, f"{name}.{key}", files) for key, item in raw.items()}
    if isinstance(raw, (list, tuple)):
        return [value(item, name, files) for item in raw]
    if not isinstance(raw, str):
        return raw
    if raw.startswith("lin_"):
        from ..agents import Linear

        start = literal(raw[len("lin_") :])
        require(isinstance(start, (int, float)), name, "lin_ followed by a number", repr(raw))
        return Linear(float(start), 0.0)
    try:
        return _Reader(name, files).read(ast.parse(raw.strip(), mode="eval").body)
    except (SyntaxError, JustTextError, RecursionError, MemoryError):
        return raw


def parts() -> dict[str, type]:
    """All classes that a value may use, by name."""
    homes = {home: importlib.import_module(f"{__package__.rpartition('.')[0]}.agents.{home}") for home in _PARTS}
    return {name: getattr(homes[home], name) for home, names in _PARTS.items() for name in names.split()}


class _Reader:
    """Parses the syntax tree of one argument's value."""

    def __init__(self, name: str, files: bool) -> None:
        self.name = name
        self.known = {word: cls for word, cls in parts().items() if files or word not in _WRITERS}

    def read(self, node: ast.expr) -> Any:
        """Evaluate an expression; raise :class:`JustTextError` if it is not one."""
        match node:
            case ast.Constant(value):
                return value
            case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, operand):
                number = self.read(operand)
                if isinstance(number, (int, float)):
                    return -number if isinstance(sign, ast.USub) else number
            case ast.List(items) | ast.Tuple(items):
                return [self.read(item) for item in items]
            case ast.Dict(keys, values) if all(isinstance(key, ast.Constant) for key in keys):
                names = [key.value for key in keys if isinstance(key, ast.Constant)]
                return dict(zip(names, map(self.read, values), strict=True))
            case ast.Name(word) if word.lower() in _WORDS:
                return _WORDS[word.lower()]
            case ast.Name(word) if word in self.known:
                return self.made(word, [], {})
            case ast.Name() | ast.Attribute():
                return _of_torch(ast.unparse(node))
            case ast.Call(function, args, keywords):
                given = [self.read_or_text(arg) for arg in args]
                return self.made(
                    ast.unparse(function), given, {k.arg: self.read_or_text(k.value) for k in keywords if k.arg}
                )
        raise JustTextError

    def read_or_text(self, node: ast.expr) -> Any:
        """Evaluate an argument of a call, in which a string need not be quoted."""
        try:
            return self.read(node)
        except JustTextError:
            return ast.unparse(node)

    def made(self, word: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Evaluate a call of ``dict`` or of one of the known classes."""
        known = word == "dict" or word in self.known
        require(known, self.name, f"a call of dict or one of {', '.join(sorted(self.known))}", f"{word}(...)")
        if word == "dict":
            require(not args, self.name, "dict with keyword arguments only", f"dict({', '.join(map(repr, args))}, ...)")
            return kwargs
        signature = inspect.signature(self.known[word])
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            shown = ", ".join(str(parameter).split(":")[0] for parameter in signature.parameters.values())
            raise ValueError(
                f"{self.name}: expected {word}({shown}), got arguments that do not fit ({error})"
            ) from error
        return self.known[word](*args, **kwargs)


def _of_torch(dotted: str) -> Any:
    """A class of ``torch.optim``, or of ``torch.nn`` as in ``nn.Tanh``."""
    import torch

    module, _, word = dotted.removeprefix("torch.").rpartition(".")
    home, kind = (torch.nn, torch.nn.Module) if module == "nn" else (torch.optim, torch.optim.Optimizer)
    found = getattr(home, word, None) if module == "nn" or dotted == word else None
    if isinstance(found, type) and issubclass(found, kind):
        return found
    raise JustTextError
