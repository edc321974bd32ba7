"""What the commands' options share: lists of several words, ``key:value`` pairs, types whose errors say what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_PAIR = re.compile(r"[A-Za-z_][\w.]*:")
_OPTION = re.compile(r"--?[A-Za-z]")


def _require_words(ctx: click.Context, name: str, taken: int) -> None:
    if name and not taken:
        raise click.BadOptionUsage(name, f"{name}: expected at least one word, got none", ctx)


class Whole(click.ParamType):  # type: ignore[type-arg]
    """A whole number, at least ``low``; 1_000_000 and 1e6 are read too."""

    name = "integer"

    def __init__(self, low: int) -> None:
        self.low = low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if number != number or number in (float("inf"), float("-inf")) or number != int(number) or number < self.low:
            self.fail(f"expected a whole number, at least {self.low}, got {value!r}", param, ctx)
        return int(number)


class OneOf(click.ParamType):  # type: ignore[type-arg]
    """One of a few words."""

    name = "word"

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """For ``--help``."""
        return "|".join(self.words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word."""
        if value not in self.words:
            self.fail(f"expected one of {', '.join(self.words)}, got {value!r}", param, ctx)
        return str(value)


class Several(click.Option):
    """An option that takes all words up to the next option, as argparse's ``nargs="+"`` and rl_zoo3 do.

    With ``keyed`` it takes words of the form ``key:value`` alone, so that a command's own argument may follow.
    """

    def __init__(self, *args: Any, keyed: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"multiple": True})
        self.keyed = keyed


class Command(click.Command):
    """A command whose :class:`Several` take several words, and which knows ``--debug``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write ``--name a b`` as ``--name a --name b`` first."""
        several = {name: param for param in self.params if isinstance(param, Several) for name in param.opts}
        spread: list[str] = []
        name = ""  # of the option whose words these are
        taken = 0
        for position, word in enumerate(args):
            if word == "--":
                return super().parse_args(ctx, spread + args[position:])
            if _OPTION.match(word):
                _require_words(ctx, name, taken)
                name, taken = (word, 0) if word in several else ("", 0)
                if not name:
                    spread.append(word)
            elif name and (not several[name].keyed or taken == 0 or _PAIR.match(word)):
                spread += [name, word]
                taken += 1
            else:
                name = ""
                spread.append(word)
        _require_words(ctx, name, taken)
        return super().parse_args(ctx, spread)


def as_pairs(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Callback: ``key:value`` words as a dictionary."""
    from .values import pairs

    return pairs(texts, param.opts[0]) if texts else {}


def many(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several decorators as one, in the order in which ``--help`` shows them."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def kwargs_option(name: str, help: str) -> Callable[[F], F]:
    """An option of ``key:value`` pairs."""
    return click.option(name, cls=Several, keyed=True, callback=as_pairs, metavar="KEY:VALUE ...", help=help)


CHOICE = many(
    click.option("--env", metavar="ID", help="Environment: an id (`list environments`) or module:callable."),
    click.option("--leader", metavar="NAME", help="Leader (`list leaders`) or module:class; PBRL by default."),
    click.option(
        "--follower", metavar="NAME", help="Algorithm of SB3 or sb3-contrib, or module:callable; PPO by default."
    ),
)
WITH = many(
    kwargs_option("--env-kwargs", "Arguments of the environment."),
    kwargs_option("--leader-kwargs", "Arguments of the leader, and fields of its config."),
    kwargs_option("--follower-kwargs", "Arguments of the follower's algorithm."),
)
LENGTH = many(
    click.option("-n", "--n-timesteps", type=Whole(1), help="Steps of all followers; iterations of an exact leader."),
    click.option("--n-envs", type=Whole(1), help="Copies of the world per follower."),
    click.option("--vec-env", type=OneOf("native", "dummy", "subproc"), help="How copies are stepped."),
    click.option("--eval-freq", type=Whole(1), help="Iterations between honest evaluations."),
)
CONF = click.option(
    "--conf-file", type=click.Path(path_type=Path), help="YAML: a run's settings.yml, or keyed as tuned.yml."
)

TRUST = click.option(
    "--trust-code", is_flag=True, help="Import and run what a file of settings names (module:attribute)."
)


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are settings; ``n_envs`` and ``vec_env`` are fields of the leader's config."""
    found = {key: options.get(key) for key in ("env", "leader", "follower", "seed", "n_timesteps", "eval_freq")}
    kwargs = {key: dict(options.get(key) or {}) for key in ("env_kwargs", "leader_kwargs", "follower_kwargs")}
    for key in ("n_envs", "vec_env"):
        if options.get(key) is not None:
            kwargs["leader_kwargs"][key] = options[key]
    return found | kwargs
