"""Trains, resumes and loads runs. A run has a folder:

settings.yml     what decides the numbers; a --conf-file for the same run again
leader.zip       the last checkpoint, in the end the trained leader
progress.json    one line of JSON per evaluation at the best response, as SB3's logger writes it
result.json      at the end: the settings, the record of x, and x; written atomically
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..envs.mdp.checks import require
from . import catalogue
from .logs import Extras, new_logger, require_folder, require_writers, write_text
from .processes import stop_asked
from .settings import BUDGETS, Settings, build, checked, follower_of, in_its_unit, read, require_no_code, world_of

SETTINGS, LEADER, RESULT = "settings.yml", "leader.zip", "result.json"
NEVER = 10**12
"""Iterations between checkpoints if none are requested: one is written at the end and on a signal."""
LARGE = 10_000
"""Size of x above which a result stores only a digest of it."""
LARGEST_RESULT = 2**22
"""Maximal size of a result that is read, in bytes; an x of ``LARGE`` numbers fits."""


class RunFailed(Exception):  # noqa: N818
    """A run started and could not be finished."""


def new_folder(root: Path, settings: Settings) -> Path:
    """Make the folder ``root/LEADER-FOLLOWER/ENV_1``, or the one with the next free number."""
    parent = require_folder(root / settings.name, "--log-folder")
    for number in itertools.count(1):
        folder = parent / f"{settings.env_name}_{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def train(settings: Settings, folder: Callable[[Any], Path], extras: Extras) -> dict[str, Any]:
    """Learn in the folder that is made once the leader is built; the result that is written there.

    Args:
        settings: of the run.
        folder: makes the folder; called with the leader's plan for the budget, None for a leader that has no plans.
        extras: what else is written.

    Raises:
        ValueError: settings that cannot be built, a budget that buys no iteration, a folder that cannot be written to; nothing
            has been learned then.
        RunFailed: what else ends the run.
    """
    require_writers(extras)
    leader = build(settings)
    plan = leader.plan(settings.budget) if hasattr(leader, "plan") else None
    if plan is not None:
        plan.require_iteration()
    made = require_folder(folder(plan), "--log-folder")
    write_text(made / SETTINGS, settings.as_yaml())
    return _learn(leader, settings, made, extras, upto=None)


def resume(folder: Path, extras: Extras, budget: dict[str, int | None], trust_code: bool) -> dict[str, Any]:
    """Go on with the run of a folder from its last checkpoint, to its own budget or to another.

    Args:
        folder: of the run.
        extras: what else is written.
        budget: ``n_timesteps``, ``n_iterations`` or ``budget``, whichever the leader counts; nothing for its own.
        trust_code: whether code that the settings there name may be imported and run.

    Raises:
        ValueError: a budget that the leader does not count, no checkpoint there, code that is named there and not trusted, a
            library that is to write the records and is not installed.
        RunFailed: what ends the run.
    """
    require_writers(extras)
    settings = settings_in(folder, "--resume")
    given = {name: number for name, number in budget.items() if number is not None}
    if given:
        if not trust_code:
            require_no_code(asdict(settings), "--resume")
        unit = catalogue.counts(catalogue.leader(settings.leader))
        require(len(given) == 1, "--resume", "one budget", ", ".join(given))
        changes = {unit if name == "budget" else name: number for name, number in given.items()}
        settings = in_its_unit(checked(replace(settings, **{unit: None} | changes)))  # type: ignore[arg-type]
        write_text(folder / SETTINGS, settings.as_yaml())
    leader = load(folder, "--resume", trust_code)
    done = leader.num_timesteps
    if done >= settings.budget:
        return _finish(leader, settings, folder, 0.0)
    return _learn(leader, settings, folder, extras, upto=done)


def settings_in(folder: Path, name: str) -> Settings:
    """The settings of a run's folder.

    Raises:
        ValueError: the folder is not that of a run.
    """
    require((folder / SETTINGS).is_file(), name, f"a run's folder, with {SETTINGS}", repr(str(folder)))
    found = read(folder / SETTINGS, name)
    known = {field.name for field in fields(Settings)}
    whole = found.keys() <= known and known - found.keys() <= set(BUDGETS)
    require(whole, name, f"{SETTINGS} with {', '.join(sorted(known))}", ", ".join(sorted(found)))
    return checked(Settings(**found))


def load(folder: Path, name: str = "RUN", trust_code: bool = False) -> Any:
    """Load the leader of a run from its last checkpoint.

    Args:
        folder: folder of the run.
        name: name of the argument in errors.
        trust_code: whether code that the run's settings name may be imported and run.

    Raises:
        ValueError: the folder is not that of a run or has no checkpoint, its environment or follower has changed, or its
            settings name code that is not trusted.
    """
    settings = settings_in(folder, name)
    if not trust_code:
        require_no_code(asdict(settings), name)
    require((folder / LEADER).is_file(), name, f"a run with a checkpoint, {LEADER}", f"none in {folder}")
    cls = catalogue.leader(settings.leader)
    given: dict[str, Any] = {}
    if settings.follower is not None and (":" in settings.follower or settings.follower_kwargs):
        given["follower"] = follower_of(settings)
    if ":" in settings.env:
        env, _ = world_of(settings)
        if not isinstance(env, str):
            given["env" if catalogue.takes_follower(cls) else "problem"] = env
    return cls.load(folder / LEADER, **given)


def _learn(leader: Any, settings: Settings, folder: Path, extras: Extras, upto: int | None) -> dict[str, Any]:
    from ..agents import Checkpoint

    logger = new_logger(folder, settings, extras)
    leader.set_logger(logger)
    checkpoint = Checkpoint(folder / LEADER, extras.save_freq or NEVER)

    def leave(leader: Any) -> None:
        if stop_asked():
            leader.save(folder / LEADER, replay=True)
            raise KeyboardInterrupt

    def judge(leader: Any) -> None:  # a preference learner's loop has no evaluations at the best response
        if settings.eval_freq is not None and leader.iteration % settings.eval_freq == 0:
            leader.record(leader.evaluate().as_dict())

    callbacks: list[Callable[[Any], Any]] = [checkpoint, leave]  # last: what a signal ends has been judged
    if catalogue.kind(type(leader)) == "preferences":
        callbacks.insert(0, judge)
    start = time.perf_counter()
    try:
        with one_thread():
            left = settings.budget - (upto or 0)
            leader.learn(left, callbacks, extras.progress, reset_num_timesteps=upto is None)
            ended = leader.method.ended(leader.state)  # by itself, before the budget
            if (
                leader.num_timesteps < settings.budget and not ended
            ):  # a signal that whoever held it before has let pass
                raise KeyboardInterrupt
            if checkpoint.saved != leader.iteration:  # it only warned
                leader.save(folder / LEADER)
            return _finish(leader, settings, folder, time.perf_counter() - start)
    except KeyboardInterrupt:  # a checkpoint is of a whole iteration: one that is there stays
        if not (folder / LEADER).is_file():
            leader.save(folder / LEADER)
        raise
    except Exception as error:
        raise RunFailed(f"{type(error).__name__}: {error}") from error
    finally:
        logger.close()
        if hasattr(leader, "close"):
            leader.close()


def _finish(leader: Any, settings: Settings, folder: Path, seconds: float) -> dict[str, Any]:
    x = leader.x
    result = {
        "run": str(folder),
        "settings": asdict(settings),
        "evaluation": leader.evaluate().as_dict(),
        "x": x.tolist() if x.size <= LARGE else hashlib.sha256(x.tobytes()).hexdigest(),
        "num_timesteps": leader.num_timesteps,
        "iterations": leader.iteration,
        "version": __version__,
        "seconds": round(seconds, 1),
    }
    write_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, or None if there is no valid result."""
    try:
        if (folder / RESULT).stat().st_size > LARGEST_RESULT:
            return None
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        score(found["evaluation"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found  # type: ignore[no-any-return]


def score(evaluation: dict[str, Any]) -> float:
    """The score of a run: the leader's return at the best response, or the true return for a learned reward."""
    return float(evaluation["leader_return" if "leader_return" in evaluation else "true_return"])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, so that numbers do not depend on the number of threads."""
    held = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(held)
