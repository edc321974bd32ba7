"""The commands. Exit codes: 0 done; 1 a run failed; 2 bad usage; 130 interrupted. Errors are one line on stderr."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .. import __version__
from .options import CHOICE, CONF, LENGTH, WITH, Command, OneOf, Whole, given_settings, many

if TYPE_CHECKING:
    from .run import Extras

PROGRAM = "bilevel-gym"
RUN = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Group(click.Group):
    command_class = Command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Bilevel reinforcement learning: a leader sets the rules, a follower learns to live under them."""


WATCHED = many(
    click.option("--save-freq", type=Whole(1), help="Iterations between checkpoints."),
    click.option("--tensorboard-log", type=click.Path(path_type=Path), help="Folder of TensorBoard events."),
    click.option("--track", is_flag=True, help="Send the records to Weights & Biases."),
    click.option("--wandb-project-name", default=PROGRAM, show_default=True, help="Project there."),
    click.option("--wandb-entity", help="Entity there."),
    click.option("-P", "--progress", is_flag=True, help="Show a progress bar."),
)


def _extras(options: dict[str, Any]) -> Extras:
    from .run import Extras

    return Extras(
        save_freq=options["save_freq"],
        tensorboard_log=options["tensorboard_log"],
        track=options["track"],
        project=options["wandb_project_name"],
        entity=options["wandb_entity"],
        progress=options["progress"],
    )


@cli.command()
@CHOICE
@WITH
@LENGTH
@click.option("--seed", type=Whole(0), help="Of the leader, its followers and their worlds; 0 by default.")
@CONF
@click.option(
    "-f", "--log-folder", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where runs go."
)
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with the run of this folder.")
@WATCHED
@AS_JSON
def train(conf_file: Path | None, log_folder: Path, resume: Path | None, as_json: bool, **options: Any) -> None:
    """Train a leader; what it leaves is LOG_FOLDER/LEADER-FOLLOWER/ENV_1.

    Settings that are not given come from --conf-file, else from those that ship with the package (`list tuned`).
    """
    from . import run
    from .settings import read, settings_of

    extras = _extras(options)
    given = given_settings(options)
    if resume is not None:
        steps = given.pop("n_timesteps")
        others = [key for key, item in given.items() if item not in (None, {})] + ["conf_file"] * (
            conf_file is not None
        )
        if others:
            names = ", ".join(f"--{key.replace('_', '-')}" for key in others)
            raise click.UsageError(f"--resume: expected no other setting than --n-timesteps beside it, got {names}")
        result = run.resume(resume, extras, steps)
    else:
        settings = settings_of(given, None if conf_file is None else read(conf_file))

        def folder() -> Path:
            made = run.new_folder(log_folder, settings)
            click.echo(f"{settings.env}, {settings.name}, seed {settings.seed}: {made}", err=True)
            return made

        result = run.train(settings, folder, extras)
    _show(result, as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    """The record of a run on stdout: JSON, or a name and a value a line."""
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, item in {"run": result["run"], **result["evaluation"]}.items():
        if item is not None:
            click.echo(f"{key:<24}{item:.6g}" if isinstance(item, float) else f"{key:<24}{item}")


@cli.command()
@RUN
@AS_JSON
def evaluate(run: Path, as_json: bool) -> None:
    """Evaluate the leader of a run's folder honestly: at the follower's best response.

    Where no model is known, a follower is trained afresh for it.
    """
    from .run import RunFailed, load, one_thread

    leader = load(run)
    try:
        with one_thread():
            record = leader.evaluate().as_dict()
    except Exception as error:
        raise RunFailed(f"{type(error).__name__}: {error}") from error
    _show({"run": str(run), "evaluation": record}, as_json)


@cli.command("list")
@click.argument("what", type=OneOf("environments", "leaders", "followers", "tuned", "all"), default="all")
@AS_JSON
def list_(what: str, as_json: bool) -> None:
    """List environments, leaders, followers or tuned settings, one a line."""
    from .listing import listing

    found = listing(what)
    if as_json:
        click.echo(json.dumps({title: dict(rows) for title, rows in found.items()}, indent=1))
        return
    for number, (title, rows) in enumerate(found.items()):
        if len(found) > 1:
            click.echo(("\n" if number else "") + title)
        width = max((len(name) for name, _ in rows), default=0)
        for name, line in rows:
            click.echo(f"{name:<{width}}  {line}".rstrip())


# --- errors ---------------------------------------------------------------------------------------------------------------


def _line(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, click.exceptions.NoSuchOption):
        text = f"{error.option_name}: expected an option that --help lists, got {error.option_name}"
    elif isinstance(error, click.exceptions.MissingParameter):
        name = error.param.human_readable_name if error.param is not None else "an argument"
        text = f"{name}: expected a value, got none"
    elif isinstance(error, click.BadParameter) and error.param is not None:
        text = f"{'/'.join(error.param.opts)}: {error.message}"
    else:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    return f"{PROGRAM}: error: {' '.join(text.split())}"


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    click.echo(f"{PROGRAM}: warning: {' '.join(str(message).split())}", err=True)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _warn
    try:
        code = cli.main(words, prog_name=PROGRAM, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"{PROGRAM}: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.exit(0)
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        click.echo(_line(error), err=True)
        sys.exit(_code(error))


def _code(error: Exception) -> int:
    """2 for what the command line asked wrongly, 1 for a run that failed."""
    return 2 if isinstance(error, (ValueError, click.UsageError, ImportError, FileNotFoundError)) else 1
