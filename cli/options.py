"""Option types of the commands: options with several words, ``key:value`` pairs, and types with clear errors."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

BUDGETS = ("n_timesteps", "n_iterations", "budget")
"""The options of a run's length."""
F = TypeVar("F", bound=Callable[..., Any])
_OPTION = re.compile(r"--?[A-Za-z]|--$")


class Whole(click.ParamType):  # type: ignore[type-arg]
    """A whole number of at least ``low``; 1_000_000 and 1e6 are accepted."""

    name = "integer"

    def __init__(self, low: int) -> None:
        self.low = low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not number.is_integer() or number < self.low:
            self.fail(f"expected a whole number, at least {self.low}, got {value!r}", param, ctx)
        return int(number)


class OneOf(click.Choice[str]):
    """One of a few words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word."""
        if value not in self.choices:
            self.fail(f"expected one of {', '.join(self.choices)}, got {value!r}", param, ctx)
        return str(value)


class Several(click.Option):
    """An option that takes all words up to the next option, as argparse's ``nargs="+"`` and rl_zoo3 do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"multiple": True})


class Command(click.Command):
    """A command with ``--debug``, whose :class:`Several` options take several words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite ``--name a b`` as ``--name a --name b`` before parsing."""
        several = {name for param in self.params if isinstance(param, Several) for name in param.opts}
        end = args.index("--") if "--" in args else len(args)
        spread, name = list[str](), ""  # of the option whose words these are
        for word, following in itertools.pairwise([*args[:end], "--"]):
            if not _OPTION.match(word):
                spread += [name, word] if name else [word]
            elif word not in several:
                name = ""
                spread.append(word)
            elif _OPTION.match(following):
                raise click.BadOptionUsage(word, f"{word}: expected at least one word, got none", ctx)
            else:
                name = word
        return super().parse_args(ctx, spread + args[end:])


def as_pairs(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Callback that makes a dictionary of ``key:value`` words."""
    from .values import pairs

    return pairs(texts, param.opts[0])


def many(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Combine several decorators, in the order in which ``--help`` shows their options."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def kwargs_option(name: str, help: str) -> Callable[[F], F]:
    """An option of ``key:value`` pairs."""
    return click.option(name, cls=Several, metavar="KEY:VALUE ...", help=help, callback=as_pairs)


PATH = click.Path(path_type=Path)
RUN = click.argument("run", metavar="RUN", type=PATH)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
TRUST = click.option(
    "--trust-code", is_flag=True, help="Import and run code that a settings file names (module:attribute)."
)
CONF = many(
    click.option("--conf-file", type=PATH, help="YAML: a run's settings.yml, or a table like tuned.yml."), TRUST
)
SAVE = click.option("--save-freq", type=Whole(1), help="Iterations between checkpoints.")
CHOICE = many(
    click.option("--env", metavar="ID", help="Environment: an id (`list environments`) or module:callable."),
    click.option("--leader", metavar="NAME", help="Leader (`list leaders`) or module:class; PBRL by default."),
    click.option(
        "--follower", metavar="NAME", help="Algorithm of SB3 or sb3-contrib, or module:callable; PPO by default."
    ),
)
BUDGET = many(
    click.option("--n-timesteps", type=Whole(1), help="Budget of a sampled leader: environment steps."),
    click.option("--n-iterations", type=Whole(1), help="Budget of an exact leader: outer iterations."),
    click.option("-n", "budget", type=Whole(1), help="Budget of either, in what it counts."),
)
WITH = many(
    kwargs_option("--env-kwargs", "Arguments of the environment."),
    kwargs_option("--leader-kwargs", "Arguments of the leader, and fields of its config."),
    kwargs_option("--follower-kwargs", "Arguments of the follower's algorithm."),
    BUDGET,
    click.option("--n-envs", type=Whole(1), help="Parallel environments per follower."),
    click.option(
        "--vec-env", type=OneOf(("native", "dummy", "subproc")), help="How the parallel environments are stepped."
    ),
    click.option("--eval-freq", type=Whole(1), help="Iterations between evaluations at the best response."),
)
WATCHED = many(
    SAVE,
    click.option("--tensorboard-log", type=PATH, help="Folder of TensorBoard events."),
    click.option("--track", is_flag=True, help="Send the records to Weights & Biases."),
    click.option("--wandb-project-name", "project", default="bilevel-gym", help="Project of Weights & Biases."),
    click.option("--wandb-entity", "entity", help="Entity of Weights & Biases."),
    click.option("-P", "--progress", is_flag=True, help="Show a progress bar."),
)
SIDE_BY_SIDE = many(
    click.option(
        "-j",
        "--jobs",
        type=Whole(1),
        default=os.cpu_count() or 1,
        help="Runs at the same time; one per core by default.",
    ),
    click.option(
        "--backend", type=OneOf(("processes", "serial", "ray")), default="processes", help="How the runs are executed."
    ),
    click.option("--address", help="Address of a running Ray cluster; by default Ray starts on this machine."),
    SAVE,
)


def log_folder(default: str) -> Callable[[F], F]:
    """The option for the folder of all runs."""
    return click.option("-f", "--log-folder", type=PATH, default=default, help="Folder in which runs are saved.")


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are settings; ``n_envs`` and ``vec_env`` are fields of the leader's config."""
    found = {key: options.get(key) for key in ("env", "leader", "follower", "seed", *BUDGETS, "eval_freq")}
    kwargs = {key: dict(options.get(key) or {}) for key in ("env_kwargs", "leader_kwargs", "follower_kwargs")}
    kwargs["leader_kwargs"] |= {key: options[key] for key in ("n_envs", "vec_env") if options.get(key) is not None}
    return found | kwargs
