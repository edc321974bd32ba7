"""Sweeps: a grid or a search over environments, leaders, followers, settings and seeds, with several runs at a time.

Each run has a folder named by a hash of its settings. Finished runs are not repeated. A failed run is reported and does not
stop the others. The numbers of a run do not depend on the backend, its own process or a Ray worker.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal

from ..envs.mdp.checks import check_size, require
from .logs import Extras, require_folder, write_text
from .processes import THREADS, run_all
from .run import LEADER, RESULT, RunFailed, load, read_result, resume, score, settings_in, train
from .settings import BUDGETS, KWARGS, Settings
from .statistics import Interval, interval
from .values import literal

Backend = Literal["processes", "serial", "ray"]
FAILURE, SUMMARY = "error.txt", "summary.json"
OPTUNA = 'Optuna, pip install "bilevel-gym[optuna]"'
_PARTS = {"env": "env_kwargs", "leader": "leader_kwargs", "follower": "follower_kwargs"}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run.

    Attributes:
        settings: settings of the run.
        result: the result in its folder; None if the run failed.
        error: the error in one line; None if the run did not fail.
        repeated: whether it was run now; False if its folder already had the result.
    """

    settings: Settings
    result: dict[str, Any] | None
    error: str | None
    repeated: bool


# --- which runs -----------------------------------------------------------------------------------------------------------


def split_values(text: str) -> list[Any]:
    """Split raw values at the commas outside brackets."""
    try:
        found = ast.parse(f"[{text}]", mode="eval").body
        assert isinstance(found, ast.List)
        return [literal(ast.get_source_segment(f"[{text}]", node) or "") for node in found.elts]
    except SyntaxError:
        return [literal(part.strip()) for part in text.split(",")]


def keyed(texts: Sequence[str], name: str) -> dict[tuple[str, str], str]:
    """Parse texts such as ``leader.learning_rate:...`` by field of :class:`Settings` and key in it.

    Raises:
        ValueError: a text has another form, or a key occurs twice.
    """
    found: dict[tuple[str, str], str] = {}
    for text in texts:
        key, colon, written = text.partition(":")
        part, dot, own = key.partition(".")
        fits = bool(colon and dot and written) and part in _PARTS and own.isidentifier()
        require(fits, name, "env.KEY:..., leader.KEY:... or follower.KEY:...", repr(text))
        require((_PARTS[part], own) not in found, name, "each key once", f"{key!r} twice")
        found[_PARTS[part], own] = written
    return found


def changed(settings: Settings, changes: Mapping[tuple[str, str], Any]) -> Settings:
    """The settings with these keys changed; the follower's keys are ignored for leaders without one."""
    kwargs: dict[str, Any] = {name: dict(getattr(settings, name)) for name in KWARGS}
    for (part, key), item in changes.items():
        if part != "follower_kwargs" or settings.follower is not None:
            kwargs[part][key] = item
    return replace(settings, **kwargs)


def grid(texts: Sequence[str]) -> list[dict[tuple[str, str], Any]]:
    """All combinations of the values in texts such as ``leader.learning_rate:0.05,0.1``; a single empty one for no texts."""
    axes = [[(key, item) for item in split_values(text)] for key, text in keyed(texts, "--grid").items()]
    return [dict(chosen) for chosen in itertools.product(*axes)]


def over_seeds(settings: Settings, seeds: Sequence[int], env_seeds: bool) -> list[Settings]:
    """The settings with each seed of the leader and, with ``env_seeds``, of the environment."""
    found = [replace(settings, seed=seed) for seed in seeds]
    return [changed(s, {("env_kwargs", "seed"): s.seed}) for s in found] if env_seeds else found


# --- one run --------------------------------------------------------------------------------------------------------------


def folder_of(settings: Settings, root: Path) -> Path:
    """The folder of a run of a sweep."""
    return root / f"{settings.env_name}__{settings.name}__{settings.seed}__{settings.hash}"


def run_one(settings: Settings, root: Path, save_freq: int | None, search_path: str) -> Outcome:
    """Run these settings in their folder; an error becomes part of the outcome.

    Args:
        settings: settings of the run.
        root: folder of the sweep.
        save_freq: see :class:`Extras`.
        search_path: a further folder from which modules are imported.
    """
    if search_path not in sys.path:
        sys.path.append(search_path)
    folder = folder_of(settings, root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = _go_on(folder, settings) or train(settings, lambda _: folder, Extras(save_freq=save_freq))
    except Exception as error:
        text = " ".join(str(error if isinstance(error, (ValueError, RunFailed)) else repr(error)).split())
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FAILURE, traceback.format_exc())
        return Outcome(settings, None, text, repeated=True)
    (folder / FAILURE).unlink(missing_ok=True)
    return Outcome(settings, result, None, repeated=True)


def _go_on(folder: Path, settings: Settings) -> dict[str, Any] | None:
    """Finish a run that was stopped after a checkpoint; None if it has to start again."""
    try:
        if not (folder / LEADER).is_file() or settings_in(folder, "RUN").hash != settings.hash:
            return None
        load(folder, trust_code=True)  # the code that these settings name was named by the user
    except ValueError:
        return None
    return resume(folder, Extras(), {}, trust_code=True)


# --- many runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Pool:
    """Executes many runs.

    Attributes:
        log_folder: folder of the sweep.
        backend: ``processes`` on this machine, ``serial`` in this process, or the workers of a ``ray`` cluster.
        jobs: number of runs at the same time.
        address: address of a running Ray cluster; None starts one on this machine.
        save_freq: see :class:`Extras`.
        report: called with every outcome.

    Raises:
        ValueError: Ray is not installed.
    """

    log_folder: Path
    backend: Backend = "processes"
    jobs: int = 1
    address: str | None = None
    save_freq: int | None = None
    report: Callable[[Outcome], None] | None = None

    def __post_init__(self) -> None:
        self.log_folder, self.jobs = self.log_folder.resolve(), check_size(self.jobs, "--jobs")
        if self.backend == "ray" and importlib.util.find_spec("ray") is None:
            raise ValueError('--backend: expected ray, pip install "bilevel-gym[ray]", got none')

    def run(self, runs: Sequence[Settings]) -> list[Outcome]:
        """Execute runs and return their outcomes in order; raise ``ValueError`` if the folder cannot be written to."""
        require_folder(self.log_folder, "--log-folder")  # here: what is asked for wrongly leaves no folder
        outcomes: dict[str, Outcome] = {}
        todo: list[Settings] = []

        def note(number: int, answer: Any) -> None:
            outcome = answer if isinstance(answer, Outcome) else Outcome(todo[number], None, str(answer), repeated=True)
            folder = folder_of(outcome.settings, self.log_folder)
            if outcome.result is not None and read_result(folder) is None:  # a worker of Ray's had another disk
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / RESULT, json.dumps(outcome.result, indent=1) + "\n")
            outcomes[outcome.settings.hash] = outcome
            if self.report is not None:
                self.report(outcome)

        for settings in {s.hash: s for s in runs}.values():
            held = read_result(folder_of(settings, self.log_folder))
            if held is None:
                todo.append(settings)
            else:
                note(-1, Outcome(settings, held, None, repeated=False))
        tasks = [(settings, self.log_folder, self.save_freq, os.getcwd()) for settings in todo]
        if self.backend == "serial":
            for number, task in enumerate(tasks):
                note(number, run_one(*task))
        elif self.backend == "processes":
            run_all(run_one, tasks, self.jobs, note, saves=True)
        elif tasks:
            self._on_ray(tasks, note)
        return [outcomes[settings.hash] for settings in runs]

    def _on_ray(self, tasks: Sequence[tuple[Any, ...]], note: Callable[[int, Any], None]) -> None:
        """Execute each run as a Ray task, at most ``jobs`` at a time on a cluster that is started here."""
        import ray

        ours = not ray.is_initialized()
        if ours:
            here: dict[str, Any] = {"num_cpus": self.jobs, "include_dashboard": False}
            cluster = here if self.address is None else {"address": self.address}
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **cluster)
        try:
            call = ray.remote(max_retries=0, runtime_env={"env_vars": dict.fromkeys(THREADS, "1")})(run_one)
            asked = {call.remote(*task): number for number, task in enumerate(tasks)}
            while asked:
                (ended, *_), _ = ray.wait(list(asked))
                number = asked.pop(ended)
                try:
                    note(number, ray.get(ended))
                except ray.exceptions.RayError as error:
                    note(number, f"its process died ({type(error).__name__})")
        finally:
            if ours:
                ray.shutdown()


# --- search ---------------------------------------------------------------------------------------------------------------


def space(texts: Sequence[str]) -> dict[tuple[str, str], Callable[[Any], Any]]:
    """Parse a search space: each key has ``log(0.01, 0.3)``, ``float(0, 1)``, ``int(4, 64)`` or ``choice(8, 16)``.

    Returns:
        For each key, a function from an Optuna trial to a raw value.

    Raises:
        ValueError: a text has another form.
    """
    found: dict[tuple[str, str], Callable[[Any], Any]] = {}
    for (part, key), text in keyed(texts, "--space").items():
        name, _, rest = text.partition("(")
        values = split_values(rest.removesuffix(")")) if rest.endswith(")") else []
        numbers = len(values) == 2 and all(isinstance(v, (int, float)) for v in values)
        fits = bool(values) if name == "choice" else name in ("log", "float", "int") and numbers
        require(fits, "--space", "KEY:log(a, b), float(a, b), int(a, b) or choice(a, b, ...)", repr(text))
        if name == "choice":
            drawn = methodcaller("suggest_categorical", f"{part}.{key}", values)
        elif name == "int":
            drawn = methodcaller("suggest_int", f"{part}.{key}", *map(int, values))
        else:
            drawn = methodcaller("suggest_float", f"{part}.{key}", *map(float, values), log=name == "log")
        found[part, key] = drawn
    return found


def search(
    base: Settings, texts: Sequence[str], trials: int, seeds: Sequence[int], env_seeds: bool, pool: Pool, seed: int = 0
) -> list[Outcome]:
    """Search with Optuna for the settings with the highest mean score over the seeds; returns all runs.

    Optuna proposes ``pool.jobs`` trials at a time with a fixed seed. The same search therefore asks for the same runs again and
    finds their results.

    Raises:
        ValueError: Optuna is not installed, or the search space has another form.
    """
    require(bool(texts), "--space", "at least one KEY:log(a, b) or the like beside --search", None)
    drawn = space(texts)
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"--search: expected {OPTUNA}, got none ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    outcomes: list[Outcome] = []
    while len(study.trials) < trials:
        asked = [study.ask() for _ in range(min(pool.jobs, trials - len(study.trials)))]
        chosen = [changed(base, {key: suggest(trial) for key, suggest in drawn.items()}) for trial in asked]
        found = pool.run([run for settings in chosen for run in over_seeds(settings, seeds, env_seeds)])
        outcomes += found
        for number, trial in enumerate(asked):
            mine = found[number * len(seeds) : (number + 1) * len(seeds)]
            scores = [score(o.result["evaluation"]) for o in mine if o.result is not None]
            if len(scores) == len(seeds):
                study.tell(trial, sum(scores) / len(scores))
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return outcomes


# --- what came of it ------------------------------------------------------------------------------------------------------


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row for all runs that differ only in their seed: mean score with interval, runs, failures. The best is first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in {o.settings.hash: o for o in outcomes}.values():
        same = changed(replace(outcome.settings, seed=0), {("env_kwargs", "seed"): None})
        groups.setdefault(same.hash, []).append(outcome)
    rows = []
    for found in groups.values():
        scores = [score(o.result["evaluation"]) for o in found if o.result is not None]
        mean, low, high = interval(scores)[:3] if scores else (None, None, None)
        settings = asdict(found[0].settings)
        rows.append(
            {
                **{key: settings[key] for key in ("env", "leader", "follower", *BUDGETS, *KWARGS)},
                "score": mean,
                "low": low,
                "high": high,
                "seeds": sorted(o.settings.seed for o in found if o.result is not None),
                "failed": {str(o.settings.seed): o.error for o in found if o.error is not None},
            }
        )
    return sorted(rows, key=lambda row: -1e300 if row["score"] is None else row["score"], reverse=True)


def differences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the summary with only those settings that differ between rows, besides environment and leader."""
    flat: list[dict[str, Any]] = []
    for row in rows:
        own = {name: row[name] for name in ("env", "leader", "follower", *BUDGETS)}
        for part, name in _PARTS.items():
            own |= {f"{part}.{key}": item for key, item in row[name].items() if (part, key) != ("env", "seed")}
        flat.append(own)
    names = dict.fromkeys(name for own in flat for name in own)
    kept = [name for name in names if name in ("env", "leader") or len({str(own.get(name)) for own in flat}) > 1]
    found = []
    for own, row in zip(flat, rows, strict=True):
        settings = {name: "" if own.get(name) is None else own[name] for name in kept}
        mean = (
            "none"
            if row["score"] is None
            else Interval(row["score"], row["low"], row["high"], len(row["seeds"])).text(4, "g")
        )
        came = {"return": mean}
        found.append(settings | came | {"runs": len(row["seeds"]), "failed": len(row["failed"])})
    return found
