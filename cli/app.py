"""The commands. Exit codes: 0 done; 1 a run failed; 2 bad usage; 130 interrupted. Errors are one line on stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .. import __version__
from .options import CHOICE, CONF, LENGTH, TRUST, WITH, Command, OneOf, Several, Whole, given_settings, many

if TYPE_CHECKING:
    from .run import Extras
    from .sweep import Outcome, Pool

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
@TRUST
@WATCHED
@AS_JSON
def train(
    conf_file: Path | None, log_folder: Path, resume: Path | None, trust_code: bool, as_json: bool, **options: Any
) -> None:
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
        result = run.resume(resume, extras, steps, trust_code)
    else:
        settings = settings_of(given, None if conf_file is None else read(conf_file), trust_code)

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
@TRUST
@AS_JSON
def evaluate(run: Path, trust_code: bool, as_json: bool) -> None:
    """Evaluate the leader of a run's folder honestly: at the follower's best response.

    Where no model is known, a follower is trained afresh for it.
    """
    from .run import RunFailed, load, one_thread

    leader = load(run, trust_code=trust_code)
    try:
        with one_thread():
            record = leader.evaluate().as_dict()
    except Exception as error:
        raise RunFailed(f"{type(error).__name__}: {error}") from error
    _show({"run": str(run), "evaluation": record}, as_json)


@cli.command()
@RUN
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A .gif, or an .mp4 (extra video); RUN/follower.gif by default.",
)
@click.option("-n", "--n-timesteps", type=Whole(1), default=100, show_default=True, help="Steps that are shown.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Of the play.")
@click.option("--fps", type=Whole(1), help="Pictures a second; the environment's own by default.")
@click.option("--untrained", is_flag=True, help="Under the leader before training.")
@TRUST
def record(
    run: Path, output: Path | None, n_timesteps: int, seed: int, fps: int | None, untrained: bool, trust_code: bool
) -> None:
    """Record a moving picture of the follower under the leader of a run's folder.

    The follower of an exact leader is the exact best response; of a game, both players at the Nash equilibrium.
    """
    from .pictures import record as write

    click.echo(write(run, output or run / "follower.gif", n_timesteps, seed, fps, untrained, trust_code))


@cli.command()
@RUN
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder; RUN/card by default.")
@click.option("--push", metavar="USER/NAME", help="Upload it to this repository of the Hugging Face Hub (extra hub).")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@TRUST
def card(run: Path, output: Path | None, push: str | None, private: bool, trust_code: bool) -> None:
    """Write the leader of a run's folder as a model card folder: the card, the leader, its followers as plain SB3 models."""
    from ..agents import push_to_hub, write_model_card
    from .run import load

    folder = write_model_card(load(run, trust_code=trust_code), output or run / "card")
    click.echo(folder if push is None else push_to_hub(folder, push, private))


@cli.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="curves.png", show_default=True, help="The picture."
)
@click.option("-x", "--x", default="num_timesteps", show_default=True, help="Record along the axis.")
@click.option("-y", "--y", default="leader_return", show_default=True, help="Record that is drawn.")
def plot(runs: tuple[Path, ...], output: Path, x: str, y: str) -> None:
    """Draw learning curves of runs' folders, and of all below them: a panel an environment, a line a leader.

    Lines are means over runs that differ by anything else, seeds for one, with their 95% bootstrap bands.
    """
    from .pictures import plot as draw
    from .pictures import run_folders

    click.echo(draw(run_folders(runs), output, x, y))


SIDE_BY_SIDE = many(
    click.option("-j", "--jobs", type=Whole(1), help="Runs side by side; as many as there are cores by default."),
    click.option("--backend", type=OneOf("processes", "serial", "ray"), default="processes", help="What runs them."),
    click.option("--address", help="Of a running Ray cluster; one on this machine by default."),
)


def _pool(log_folder: Path, jobs: int | None, backend: Any, address: str | None, save_freq: int | None = None) -> Pool:
    from .sweep import Pool

    def report(outcome: Outcome) -> None:
        run = (
            f"{outcome.settings.env_name} {outcome.settings.name} seed {outcome.settings.seed} {outcome.settings.hash}"
        )
        if outcome.error is not None:
            click.echo(f"{PROGRAM}: failed: {run}: {outcome.error}", err=True)
        else:
            click.echo(f"{'done' if outcome.repeated else 'there'}: {run}", err=True)

    return Pool(log_folder, backend, jobs or os.cpu_count() or 1, address, save_freq, report)


def _end(outcomes: Sequence[Outcome]) -> None:
    """Raise where runs failed."""
    from .run import RunFailed

    failed = sum(outcome.error is not None for outcome in outcomes)
    if failed:
        raise RunFailed(f"{failed} of {len(outcomes)} runs failed; the others are done")


@cli.command()
@click.option("--env", "envs", cls=Several, metavar="ID ...", help="Environments.")
@click.option("--leader", "leaders", cls=Several, metavar="NAME ...", help="Leaders; PBRL by default.")
@click.option("--follower", "followers", cls=Several, metavar="NAME ...", help="Algorithms; PPO by default.")
@WITH
@LENGTH
@click.option("--seeds", cls=Several, metavar="SEED ...", type=Whole(0), help="Seeds of the leader.")
@click.option("--n-seeds", type=Whole(1), help="Seeds 0, 1, ...; 1 by default.")
@click.option("--env-seeds", is_flag=True, help="Give each seed to the environment, too.")
@click.option(
    "--grid", cls=Several, keyed=True, metavar="KEY:A,B,... ...", help="Values of leader.X, follower.X or env.X."
)
@click.option("--search", type=Whole(1), metavar="TRIALS", help="Search with Optuna (extra optuna) instead.")
@click.option(
    "--space", cls=Several, keyed=True, metavar="KEY:log(A,B) ...", help="Of the search: log, float, int, choice."
)
@CONF
@click.option(
    "-f",
    "--log-folder",
    type=click.Path(path_type=Path),
    default="runs/sweep",
    show_default=True,
    help="Where runs go.",
)
@TRUST
@SIDE_BY_SIDE
@click.option("--save-freq", type=Whole(1), help="Iterations between checkpoints.")
@AS_JSON
def sweep(
    envs: tuple[str, ...],
    leaders: tuple[str, ...],
    followers: tuple[str, ...],
    seeds: tuple[int, ...],
    n_seeds: int | None,
    env_seeds: bool,
    grid: tuple[str, ...],
    search: int | None,
    space: tuple[str, ...],
    conf_file: Path | None,
    log_folder: Path,
    trust_code: bool,
    jobs: int | None,
    backend: str,
    address: str | None,
    save_freq: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a grid, or a search, over environments, leaders, followers, settings and seeds.

    Finished runs are not repeated: the same command goes on where it was stopped. A run that fails is reported, the others go
    on, and the exit code is 1. LOG_FOLDER/summary.json has a row for each setting, the best first.
    """
    from . import sweep as runs
    from .settings import read

    if not envs:
        raise click.UsageError("--env: expected at least one environment (`bilevel-gym list environments`), got none")
    if seeds and n_seeds:
        raise click.UsageError("--n-seeds: expected --seeds or --n-seeds, got both")
    given = {
        key: item for key, item in given_settings(options).items() if key not in ("env", "leader", "follower", "seed")
    }
    conf = None if conf_file is None else read(conf_file)
    found = runs.bases(envs, leaders or ["PBRL"], followers or ["PPO"], given, conf, trust_code)
    chosen = list(seeds) or list(range(n_seeds or 1))
    pool = _pool(log_folder, jobs, backend, address, save_freq)
    if search is None:
        if space:
            raise click.UsageError("--space: expected --search beside it, got none")
        tried = [runs.changed(base, changes) for base in found for changes in runs.grid(grid)]
        outcomes = pool.run([run for settings in tried for run in runs.over_seeds(settings, chosen, env_seeds)])
    else:
        if grid:
            raise click.UsageError("--grid: expected --grid or --search, got both")
        outcomes = [o for base in found for o in runs.search(base, space, search, chosen, env_seeds, pool)]
    rows = runs.summary(outcomes)
    runs.write_summary(rows, pool.root)
    click.echo(json.dumps(rows) if as_json else _table(rows))
    _end(outcomes)


def _table(rows: list[dict[str, Any]]) -> str:
    from .statistics import shown, table
    from .sweep import differing

    columns = differing(rows)
    lines = [
        [
            *(texts[i] for _, texts in columns),
            shown(row["score"], row["low"], row["high"]),
            str(len(row["seeds"])),
            str(len(row["failed"])),
        ]
        for i, row in enumerate(rows)
    ]
    return table([*(name for name, _ in columns), "return", "runs", "failed"], lines)


@cli.command()
@CHOICE
@click.option("--n-seeds", type=Whole(1), default=3, show_default=True, help="The first seeds of the evidence.")
@click.option("-n", "--n-timesteps", type=Whole(1), help="Fewer steps than the evidence has: a smoke test.")
@click.option(
    "-f",
    "--log-folder",
    type=click.Path(path_type=Path),
    default="runs/benchmark",
    show_default=True,
    help="Where runs go.",
)
@SIDE_BY_SIDE
@AS_JSON
def benchmark(
    env: str | None,
    leader: str | None,
    follower: str | None,
    n_seeds: int,
    n_timesteps: int | None,
    log_folder: Path,
    jobs: int | None,
    backend: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Run tuned settings again and set what comes out beside their evidence (`list tuned`).

    Which: --env, --leader, --follower, each if given. The pages of docs/results come from `python -m benchmarks` in a checkout.
    """
    from .evidence import chosen, rows, runs_of
    from .statistics import table

    if env is None and leader is None and follower is None:
        raise click.UsageError("--env: expected --env, --leader or --follower, got none of them")
    entries = chosen(env, leader, follower)
    pool = _pool(log_folder, jobs, backend, address)
    runs = [runs_of(entry, n_seeds, n_timesteps) for entry in entries]
    outcomes = pool.run([run for mine in runs for run in mine])
    found = rows(entries, runs, outcomes, n_timesteps is not None)
    if as_json:
        click.echo(json.dumps(found))
    else:
        names = ["env", "leader", "follower", "steps", "measure", "evidence", "here", "runs", "page"]
        click.echo(table(names, [[str(row[name]) for name in names] for row in found]))
    _end(outcomes)


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


@contextmanager
def _heeding_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, wherever they come; one that is ignored, by nohup for one, stays so."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    mine = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        mine = []
    for number in mine:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    click.echo(f"{PROGRAM}: warning: {' '.join(str(message).split())}", err=True)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _warn
    try:
        with _heeding_signals():
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
    """2 for what the command line asked wrongly, a library that is not there among it; 1 for a run that failed."""
    missing = type(error).__name__ == "DependencyNotInstalled"  # Gymnasium's, which is no ImportError
    wrong = isinstance(error, (ValueError, click.UsageError, ImportError, FileNotFoundError))
    return 2 if missing or wrong else 1
