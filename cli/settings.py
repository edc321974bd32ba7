"""Settings of a run. They come from the command line, then from a file, then from tuned settings, then from defaults.

A file is either flat, like the ``settings.yml`` of a run (it then replaces the tuned settings), or a table by
environment, leader and follower, like ``tuned.yml`` beside this module:

    bilevel_gym/StackelbergGame-v0:
      PBRL:
        PPO:
          n_timesteps: 2000000
          leader_kwargs: {estimator: KnownModel}
          evidence: {...}

For leaders that solve their follower, the follower's key is ``exact``.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from ..envs.mdp.checks import check_count, check_size, require, texts_within
from . import catalogue
from .values import value

EXACT = "exact"
"""The follower's key for a leader that solves its follower."""
KWARGS = ("env_kwargs", "leader_kwargs", "follower_kwargs")
BUDGETS = ("n_timesteps", "n_iterations")
LARGEST, DEEPEST = 2**18, 32
"""Maximal size of a settings file in bytes, and its maximal nesting."""
_CODE = re.compile(r"[\w.]:[\w./-]")


@dataclass(frozen=True)
class Settings:
    """All settings that determine a run's numbers; values are raw, as :func:`.values.value` reads them.

    Attributes:
        env: an environment's id, or ``module:callable``.
        leader: a leader's name, or ``module:class``.
        follower: an algorithm's name, or ``module:callable``; None for a leader that solves its follower.
        n_timesteps: budget of a leader whose ``learn`` counts environment steps; None for one that counts iterations.
        n_iterations: budget of a leader whose ``learn`` counts outer iterations; None for one that counts steps.
        seed: of the leader.
        env_kwargs: arguments of the environment.
        leader_kwargs: arguments of the leader and fields of its config.
        follower_kwargs: arguments of the algorithm, which override this library's settings for it, or of the callable.
        eval_freq: iterations between evaluations at the best response; None takes the leader's own.
    """

    env: str
    leader: str
    follower: str | None
    n_timesteps: int | None = None
    n_iterations: int | None = None
    seed: int = 0
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    leader_kwargs: dict[str, Any] = field(default_factory=dict)
    follower_kwargs: dict[str, Any] = field(default_factory=dict)
    eval_freq: int | None = None

    @property
    def budget(self) -> int:
        """The budget, in what the leader counts."""
        found = self.n_timesteps if self.n_iterations is None else self.n_iterations
        assert found is not None
        return found

    @property
    def name(self) -> str:
        """Leader and follower as a folder name: ``TabularPBRL`` or ``PBRL-PPO``."""
        return "-".join(part.replace(":", ".") for part in (self.leader, self.follower) if part)

    @property
    def env_name(self) -> str:
        """The environment as a folder name, without this package's prefix."""
        return self.env.removeprefix(catalogue.PREFIX).replace("/", "-").replace(":", ".")

    @property
    def hash(self) -> str:
        """A hash of all settings, with twelve hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_yaml(self) -> str:
        """What :func:`read` reads."""
        held = {key: item for key, item in asdict(self).items() if key not in BUDGETS or item is not None}
        return str(yaml.safe_dump(held, sort_keys=False, allow_unicode=True))


# --- files ----------------------------------------------------------------------------------------------------------------


@functools.cache
def tuned() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """The tuned settings in the package, by environment, leader and follower."""
    text = (files(__package__) / "tuned.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]


def entries() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """All tuned entries: environment, leader, follower (or ``EXACT``), and the settings with their recorded result."""
    for env, leaders in tuned().items():
        for leader, followers in leaders.items():
            for follower, entry in followers.items():
                yield env, leader, follower, entry


def read(path: str | Path, name: str = "--conf-file") -> dict[str, Any]:
    """Read a YAML file of settings, with limits on its size and nesting.

    Raises:
        ValueError: the file is missing, not YAML or not a mapping; it is too large or too deeply nested; or it has an alias,
            with which a few bytes can expand to gigabytes.
    """
    path = Path(path)
    require(path.is_file(), name, "a file", repr(str(path)))
    size = path.stat().st_size
    require(size <= LARGEST, name, f"a file of at most {LARGEST:,} bytes", f"{size:,} in {path}")
    try:
        text, depth = path.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise yaml.MarkedYAMLError("an alias is not read: write out what it stands for", event.start_mark)
            if depth > DEEPEST:
                raise yaml.MarkedYAMLError(f"deeper than {DEEPEST} levels", event.start_mark)
        found = yaml.safe_load(text)
    except Exception as error:  # PyYAML's, and what its constructors raise at numbers and dates that are none
        raise ValueError(f"{name}: expected YAML, got {path} ({' '.join(str(error).split())})") from error
    require(isinstance(found, dict), name, "YAML that is a mapping", f"{type(found).__name__} in {path}")
    return found  # type: ignore[no-any-return]


def require_no_code(found: Mapping[str, Any], name: str) -> None:
    """Raise ``ValueError`` if settings from a file name code to import, or an object that writes a file.

    Code is named as ``module:attribute``: as environment, leader or follower, or in their arguments, which may hold the id of
    another environment. Labellers that store their questions in a file are refused too.

    Args:
        found: fields of :class:`Settings`.
        name: name of the argument in errors.
    """
    expected = "settings that name no code, or --trust-code to import and run the code that they name"
    for key in ("env", "leader", "follower"):
        require(":" not in str(found.get(key)), name, expected, f"{key} {str(found.get(key))!r}")
    for key in KWARGS:
        for text in texts_within(value(found.get(key), f"{name} {key}", files=False)):
            require(not _CODE.search(text), name, expected, f"{text!r} under {key}")


def look_up(table: Mapping[str, Any], env: str, leader: str, follower: str | None) -> dict[str, Any]:
    """Look up the settings of this environment, leader and follower in a table; empty if there are none."""
    found: Any = table
    for key in (env, leader, follower or EXACT):
        found = found.get(key) if isinstance(found, Mapping) else None
        if found is None:
            return {}
    require(isinstance(found, Mapping), "--conf-file", f"settings of {env}, {leader}", repr(found))
    return dict(found)


def settings_of(given: Mapping[str, Any], conf: Mapping[str, Any] | None = None, trust_code: bool = False) -> Settings:
    """Combine given settings, which have priority, with those of a file and then with tuned ones.

    Args:
        given: fields of :class:`Settings`; None or empty where nothing was given. Mappings are merged key by key. ``budget``
            stands for the one of ``n_timesteps`` and ``n_iterations`` that the leader counts.
        conf: what :func:`read` gave.
        trust_code: whether the file may name code (see :func:`require_no_code`).

    Raises:
        ValueError: a field that is unknown, missing or out of range, an environment, leader or follower that does not exist.
    """
    conf = {} if conf is None else conf
    names = [f.name for f in fields(Settings)]
    flat = dict(conf) if any(name in conf for name in names) else {}
    if not trust_code:
        require_no_code(flat, "--conf-file")
    given = {key: item for key, item in given.items() if item not in (None, {})}
    either = given.pop("budget", None)
    chosen = {name: given.get(name, flat.get(name)) for name in ("env", "leader", "follower")}
    require(chosen["env"] is not None, "--env", "an environment (`bilevel-gym list environments`)", None)
    require(
        chosen["follower"] is None or isinstance(chosen["follower"], str), "--follower", "a name", chosen["follower"]
    )
    env = str(chosen["env"])
    env = env if ":" in env and catalogue.environment(env) else catalogue.full_id(env)
    leader = str(chosen["leader"] or "PBRL")
    cls = catalogue.leader(leader)
    follower = (chosen["follower"] or "PPO") if catalogue.takes_follower(cls) else None
    if follower is None:
        expected = f"none: {leader} solves its follower"
        require(given.get("follower") is None, "--follower", expected, given.get("follower"))
        require(not given.get("follower_kwargs"), "--follower-kwargs", expected, given.get("follower_kwargs"))
    else:
        catalogue.follower(follower)
    unit = catalogue.counts(cls)
    if either is not None:
        require(not any(name in given for name in BUDGETS), "-n", "one budget", f"{_option(unit)} too")
        given[unit] = either
    layers: list[Any] = [flat or look_up(tuned(), env, leader, follower), look_up(conf, env, leader, follower), given]
    if not trust_code:
        require_no_code(layers[1], "--conf-file")
    for layer in layers[:2]:
        layer.pop("evidence", None)
    merged: dict[str, Any] = {}
    for layer in layers:
        unknown = sorted(str(key) for key in set(layer) - set(names))
        require(not unknown, "--conf-file", f"settings named {', '.join(names)}", ", ".join(unknown))
        for key, item in layer.items():
            merged[key] = {**merged.get(key, {}), **item} if key in KWARGS and isinstance(item, Mapping) else item
    merged |= {"env": env, "leader": leader, "follower": follower}
    return in_its_unit(checked(Settings(**merged)))


def checked(settings: Settings) -> Settings:
    """Check the types and ranges of all settings; raise ``ValueError`` if one is wrong."""
    for name in ("env", "leader", "follower"):
        held = getattr(settings, name)
        require(isinstance(held, str) or (held is None and name == "follower"), f"--{name}", "a name", repr(held))
    check_count(settings.seed, "--seed")
    known = f"a number: there are no tuned settings for {settings.env}, {settings.leader}, {settings.follower or EXACT}"
    given = [name for name in BUDGETS if getattr(settings, name) is not None]
    require(bool(given), "-n", known, None)
    steps = {name: check_size(getattr(settings, name), _option(name)) for name in given}
    if settings.eval_freq is not None:
        check_size(settings.eval_freq, "--eval-freq")
    for name in KWARGS:
        held = getattr(settings, name)
        require(isinstance(held, Mapping), _option(name), "keys and values", repr(held))
    return replace(settings, **steps)  # type: ignore[arg-type]


def in_its_unit(settings: Settings) -> Settings:
    """The settings, if their budget is in what the leader counts, whose class is looked up; raises ``ValueError``."""
    unit = catalogue.counts(catalogue.leader(settings.leader))
    counted = "outer iterations" if unit == "n_iterations" else "steps"
    for name in BUDGETS:
        if name != unit and getattr(settings, name) is not None:
            raise ValueError(
                f"{_option(name)}: expected {_option(unit)}: {settings.leader} counts {counted}, got {_option(name)}"
            )
    return settings


def _option(field: str) -> str:
    """The command line's name of a field."""
    return f"--{field.replace('_', '-')}"


# --- what they mean -------------------------------------------------------------------------------------------------------


def config_class(cls: type) -> type[Any] | None:
    """The class of a leader's ``config`` argument, the first one if there are several."""
    method: Any = getattr(cls, "method_class", None)
    if hasattr(method, "config_class"):
        return method.config_class  # type: ignore[no-any-return]
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    kinds = get_args(hints.get("config")) or [hints.get("config")]
    return next((hint for hint in kinds if isinstance(hint, type) and hint is not type(None)), None)


def takes_fields(cls: type) -> bool:
    """Whether a leader takes the fields of its config as keywords; a user's own may take a config alone."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())


def follower_of(settings: Settings) -> Any:
    """The follower to give to the leader, or None."""
    if settings.follower is None:
        return None
    found = catalogue.follower(settings.follower)
    kwargs = {key: value(raw, f"--follower-kwargs {key}") for key, raw in settings.follower_kwargs.items()}
    if not kwargs:
        return found
    if not isinstance(found, type):
        return functools.partial(found, **kwargs)
    from ..agents.followers.spec import AlgorithmSpec

    algorithm: Any = found
    return AlgorithmSpec(algorithm, kwargs)


def world_of(settings: Settings) -> tuple[Any, dict[str, Any] | None]:
    """Return the arguments ``env`` and ``env_kwargs`` of the leader's constructor."""
    found = catalogue.environment(settings.env)
    kwargs = {key: value(raw, f"--env-kwargs {key}") for key, raw in settings.env_kwargs.items()}
    if isinstance(found, str):
        return found, kwargs or None
    made = functools.partial(found, **kwargs) if kwargs else found
    return (made, None) if catalogue.takes_follower(catalogue.leader(settings.leader)) else (made(), None)


def build(settings: Settings) -> Any:
    """Build the leader of these settings.

    Raises:
        ValueError: an argument does not exist or does not fit.
    """
    from ..agents.config import keywords

    cls = catalogue.leader(settings.leader)
    own = [name for name in keywords(cls) if name not in _OWN]
    config = config_class(cls)
    known = [f.name for f in fields(config)] if config is not None else []
    arguments: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for key, raw in settings.leader_kwargs.items():
        expected = f"one of {', '.join([*own, *known])}"
        require(key in own or key in known, "--leader-kwargs", expected, repr(key))
        (arguments if key in own else changes)[key] = value(raw, f"--leader-kwargs {key}")
    if settings.eval_freq is not None and "eval_every" in known:
        changes["eval_every"] = settings.eval_freq
    env, env_kwargs = world_of(settings)
    follower = follower_of(settings)
    try:
        if changes and config is not None and not takes_fields(cls):
            arguments["config"], changes = config(**changes), {}
        given = [env] if follower is None else [env, follower]
        return cls(*given, seed=settings.seed, env_kwargs=env_kwargs, **arguments, **changes)
    except TypeError as error:  # an argument of the environment or of the algorithm, whose signatures are not ours
        reason = " ".join(str(error).split())
        raise ValueError(f"arguments: expected some that fit {settings.env}, {settings.name}, got {reason}") from error


_OWN = ("env", "problem", "follower", "config", "seed", "env_kwargs")
