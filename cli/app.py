"""The commands. Exit codes: 0 done; 1 a run failed; 2 wrong usage; 130 interrupted. Errors are one line on stderr."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .. import __version__
from . import options as o
from .options import Several, Whole

if TYPE_CHECKING:
    from .sweep import Outcome

PROGRAM = "bilevel-gym"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True})
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Bilevel reinforcement learning: a leader sets the rules, a follower learns to live under them."""


cli.command_class = o.Command


@cli.command()
@o.CHOICE
@o.WITH
@click.option("--seed", type=Whole(0), help="Of the leader, its followers and their worlds; 0 by default.")
@o.CONF
@o.log_folder("runs")
@click.option("--resume", type=o.PATH, help="Go on with the run of this folder.")
@o.WATCHED
@o.AS_JSON
def train(
    conf_file: Path | None, log_folder: Path, resume: Path | None, trust_code: bool, as_json: bool, **options: Any
) -> None:
    """Train a leader and save the run in LOG_FOLDER/LEADER-FOLLOWER/ENV_1.

    Settings that you leave out come from --conf-file, and otherwise from the tuned settings in the package (`list tuned`).
    """
    from . import run
    from .logs import Extras
    from .settings import read, settings_of

    extras = Extras(**{field.name: options[field.name] for field in fields(Extras)})
    given = o.given_settings(options)
    if resume is not None:
        budget = {name: given.pop(name) for name in o.BUDGETS}
        others = [key for key, item in {**given, "conf_file": conf_file}.items() if item not in (None, {})]
        if others:
            names = ", ".join(f"--{key.replace('_', '-')}" for key in others)
            raise click.UsageError(f"--resume: expected no other setting than a budget beside it, got {names}")
        _show(run.resume(resume, extras, budget, trust_code), as_json)
        return
    settings = settings_of(given, None if conf_file is None else read(conf_file), trust_code)

    def folder(plan: Any) -> Path:
        made = run.new_folder(log_folder, settings)
        click.echo(f"{settings.env}, {settings.name}, seed {settings.seed}: {made}", err=True)
        if plan is not None and not extras.progress:  # learn shows it before its bar
            click.echo(plan, err=True)
        return made

    _show(run.train(settings, folder, extras), as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    """Print the record of a run as JSON, or as lines with a name and a value."""
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, item in {"run": result["run"], **result["evaluation"]}.items():
        if item is not None:
            click.echo(f"{key:<24}{item:.6g}" if isinstance(item, float) else f"{key:<24}{item}")


@cli.command()
@o.RUN
@o.TRUST
@o.AS_JSON
def evaluate(run: Path, trust_code: bool, as_json: bool) -> None:
    """Evaluate the leader of a run at the follower's best response.

    If no model is known, this trains new followers.
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
@o.RUN
@click.option("-o", "--output", type=o.PATH, help="A .gif, or an .mp4 (extra video); RUN/follower.gif by default.")
@click.option("-n", "--n-timesteps", "steps", type=Whole(1), default=100, help="Steps to record.")
@click.option("--seed", type=Whole(0), default=0, help="Seed of the recorded episodes.")
@click.option("--fps", type=Whole(1), help="Frames per second; the environment's own by default.")
@click.option("--untrained", is_flag=True, help="Use the x before training.")
@o.TRUST
def record(run: Path, output: Path | None, **options: Any) -> None:
    """Record the follower under the leader of a run, as a .gif or .mp4.

    For an exact leader, the follower is the exact best response; in a game, both players play the Nash equilibrium.
    """
    from .pictures import record as write

    click.echo(write(run, output or run / "follower.gif", **options))


@cli.command()
@o.RUN
@click.option("-o", "--output", type=o.PATH, help="Folder of the card; RUN/card by default.")
@click.option("--push", metavar="USER/NAME", help="Upload it to this repository of the Hugging Face Hub (extra hub).")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@o.TRUST
def card(run: Path, output: Path | None, push: str | None, private: bool, trust_code: bool) -> None:
    """Write a model card for a run: a folder with the card, the leader, and its followers as plain SB3 models."""
    from ..agents.model_card import push_to_hub, write_model_card
    from .run import load

    folder = write_model_card(load(run, trust_code=trust_code), output or run / "card")
    click.echo(folder if push is None else push_to_hub(folder, push, private))


@cli.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=o.PATH)
@click.option("-o", "--output", type=o.PATH, default="curves.png", help="File of the picture.")
@click.option("-x", "--x", default="num_timesteps", help="Recorded value on the x axis.")
@click.option("-y", "--y", default="leader_return", help="Recorded value on the y axis.")
def plot(runs: tuple[Path, ...], output: Path, x: str, y: str) -> None:
    """Plot learning curves of all runs in these folders, with one panel per environment and one line per leader.

    A line is the mean over the runs of a leader, such as several seeds, with a 95% band (Student's t below 20 runs).
    """
    from .pictures import plot as draw
    from .pictures import run_folders

    click.echo(draw(run_folders(runs), output, x, y))


def _report(outcome: Outcome) -> None:
    """Print a line on stderr when a run has ended."""
    its = outcome.settings
    word = f"{PROGRAM}: failed" if outcome.error is not None else "done" if outcome.repeated else "there"
    error = "" if outcome.error is None else f": {outcome.error}"
    click.echo(f"{word}: {its.env_name} {its.name} seed {its.seed} {its.hash}{error}", err=True)


def _end(outcomes: Sequence[Outcome]) -> None:
    """Raise if any run failed."""
    from .run import RunFailed

    failed = sum(outcome.error is not None for outcome in outcomes)
    if failed:
        raise RunFailed(f"{failed} of {len(outcomes)} runs failed; the others are done")


@cli.command()
@click.option("--env", "envs", cls=Several, metavar="ID ...", help="Environments.")
@click.option("--leader", "leaders", cls=Several, metavar="NAME ...", default=["PBRL"], help="Leaders.")
@click.option("--follower", "followers", cls=Several, metavar="NAME ...", default=["PPO"], help="Algorithms.")
@o.WITH
@click.option("--seeds", cls=Several, metavar="SEED ...", type=Whole(0), help="Seeds of the leader.")
@click.option("--n-seeds", type=Whole(1), help="Seeds 0, 1, ...; 1 by default.")
@click.option("--env-seeds", is_flag=True, help="Give each seed to the environment, too.")
@click.option("--grid", cls=Several, metavar="KEY:A,B,... ...", help="Values to try for leader.X, follower.X or env.X.")
@click.option("--search", type=Whole(1), metavar="TRIALS", help="Search with Optuna (extra optuna) instead.")
@click.option("--space", cls=Several, metavar="KEY:log(A,B) ...", help="Search space: log, float, int or choice.")
@o.CONF
@o.log_folder("runs/sweep")
@o.SIDE_BY_SIDE
@o.AS_JSON
def sweep(as_json: bool, conf_file: Path | None, trust_code: bool, **options: Any) -> None:
    """Run a grid or a search over environments, leaders, followers, settings and seeds.

    Finished runs are not repeated, so the same command continues a sweep that was stopped. A failed run is reported and does
    not stop the others; the exit code is then 1. LOG_FOLDER/summary.json has a row for each setting, the best first.
    """
    from . import catalogue
    from . import sweep as runs
    from .logs import write_text
    from .settings import read, settings_of
    from .statistics import table

    envs, seeds, env_seeds, grid, space = (options[key] for key in ("envs", "seeds", "env_seeds", "grid", "space"))
    if not envs:
        raise click.UsageError("--env: expected at least one environment (`bilevel-gym list environments`), got none")
    if seeds and options["n_seeds"]:
        raise click.UsageError("--n-seeds: expected --seeds or --n-seeds, got both")
    given, conf = o.given_settings(options), None if conf_file is None else read(conf_file)
    found = []
    for env, leader in itertools.product(envs, options["leaders"]):
        if catalogue.takes_follower(catalogue.leader(leader)):
            named = [{"env": env, "leader": leader, "follower": follower} for follower in options["followers"]]
        else:  # it solves its follower
            named = [{"env": env, "leader": leader, "follower_kwargs": None}]
        # Of two budgets, one for each kind of leader, each leader takes its own.
        both = given["n_timesteps"] is not None and given["n_iterations"] is not None
        own = {
            name: given[name] for name in o.BUDGETS if not both or name == catalogue.counts(catalogue.leader(leader))
        }
        rest = {name: item for name, item in given.items() if name not in o.BUDGETS}
        found += [settings_of(rest | own | names, conf, trust_code) for names in named]
    chosen = seeds or range(options["n_seeds"] or 1)
    keys = ("log_folder", "jobs", "backend", "address", "save_freq")
    pool = runs.Pool(**{key: options[key] for key in keys}, report=_report)
    if options["search"] is None:
        if space:
            raise click.UsageError("--space: expected --search beside it, got none")
        tried = [runs.changed(base, changes) for base in found for changes in runs.grid(grid)]
        outcomes = pool.run([run for settings in tried for run in runs.over_seeds(settings, chosen, env_seeds)])
    else:
        if grid:
            raise click.UsageError("--grid: expected --grid or --search, got both")
        searches = [runs.search(base, space, options["search"], chosen, env_seeds, pool) for base in found]
        outcomes = list(itertools.chain(*searches))
    rows = runs.summary(outcomes)
    write_text(pool.log_folder / runs.SUMMARY, json.dumps(rows, indent=1) + "\n")
    click.echo(json.dumps(rows) if as_json else table(runs.differences(rows)))
    _end(outcomes)


@cli.command()
@o.CHOICE
@click.option("--n-seeds", type=Whole(1), default=3, help="How many seeds of the recorded result to repeat.")
@o.BUDGET
@o.log_folder("runs/benchmark")
@o.SIDE_BY_SIDE
@o.AS_JSON
def benchmark(as_json: bool, n_seeds: int, **options: Any) -> None:
    """Repeat tuned settings and compare the result with the recorded one (`list tuned`).

    Choose them with --env, --leader or --follower. A smaller budget than the recorded one makes it a smoke test.
    `python -m benchmarks` in a checkout makes the pages of docs/results.
    """
    from .evidence import chosen, rows, runs_of
    from .statistics import table
    from .sweep import Pool

    names = [options.pop(key) for key in ("env", "leader", "follower")]
    budget = {key: options.pop(key) for key in o.BUDGETS}
    if names == [None, None, None]:
        raise click.UsageError("--env: expected --env, --leader or --follower, got none of them")
    entries = chosen(*names)
    runs = [runs_of(entry, n_seeds, budget) for entry in entries]
    outcomes = Pool(**options, report=_report).run(list(itertools.chain(*runs)))
    found = rows(entries, runs, outcomes, any(budget.values()))
    click.echo(json.dumps(found) if as_json else table(found))
    _end(outcomes)


@cli.command("list")
@click.argument("what", type=o.OneOf(("environments", "leaders", "followers", "tuned", "all")), default="all")
@o.AS_JSON
def list_(what: str, as_json: bool) -> None:
    """List environments, leaders, followers or tuned settings, one per line."""
    from . import catalogue
    from .settings import entries

    found: dict[str, dict[str, str]] = {}
    if what in ("environments", "all"):
        found["environments"] = {name: catalogue.environment_line(name) for name in catalogue.environment_ids()}
    if what in ("leaders", "all"):  # with what they know: the model, steps, answers
        known = sorted(catalogue.leaders().items())
        found["leaders"] = {name: f"{catalogue.kind(cls)}: {catalogue.first_line(cls)}" for name, cls in known}
    if what in ("followers", "all"):
        algorithms = sorted(catalogue.followers().items())
        found["followers"] = {name: catalogue.first_line(cls, name) for name, cls in algorithms}
    if what == "tuned":
        rests_on = {" ".join(names): entry["evidence"] for *names, entry in entries()}
        found["tuned"] = {n: f"{e['measure']} {e['value']:g}, {e['runs']}: {e['page']}" for n, e in rests_on.items()}
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for number, (title, rows) in enumerate(found.items()):
        if len(found) > 1:
            click.echo(("\n" if number else "") + title)
        width = max(map(len, rows), default=0)
        for name, line in rows.items():
            click.echo(f"{name:<{width}}  {line}".rstrip())


# --- errors ---------------------------------------------------------------------------------------------------------------


def _line(error: BaseException) -> str:
    """Format an error as one line."""
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
    """Let SIGTERM and SIGHUP interrupt like Ctrl-C. An ignored signal, for instance under nohup, stays ignored."""
    heard = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    mine = [number for number in numbers if heard and signal.getsignal(number) is signal.SIG_DFL]
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
    """The exit code of an error: 2 for wrong usage or a missing library, 1 for a failed run."""
    missing = type(error).__name__ == "DependencyNotInstalled"  # Gymnasium's, which is no ImportError
    wrong = isinstance(error, (ValueError, click.UsageError, ImportError, FileNotFoundError))
    return 2 if missing or wrong else 1
