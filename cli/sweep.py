"""Sweeps: a grid or a search over environments, leaders, followers, settings and seeds, many runs side by side.

A run has a folder of its own, named by a hash of its settings. One that is finished is not run again; one that fails is
reported, and the others go on. What runs it, joblib's processes, Ray or Dask, does not change its numbers.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..envs.mdp.checks import check_size, require
from . import catalogue
from .logs import require_folder, write_text
from .run import LEADER, RESULT, Extras, RunFailed, load, read_result, resume, score, train
from .settings import KWARGS, Settings, settings_of
from .statistics import interval
from .values import literal

Backend = Literal["processes", "serial", "ray", "dask"]
FAILURE, SUMMARY = "error.txt", "summary.json"
OPTUNA = 'Optuna, pip install "bilevel-gym[optuna]"'
_PARTS = {"env": "env_kwargs", "leader": "leader_kwargs", "follower": "follower_kwargs"}


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        settings: of the run.
        result: as its folder holds it; None where it failed.
        error: in one line, where it failed.
        repeated: whether it was run now; False where its folder had the result already.
    """

    settings: Settings
    result: dict[str, Any] | None
    error: str | None
    repeated: bool


# --- which runs -----------------------------------------------------------------------------------------------------------


def split_values(text: str) -> list[Any]:
    """Raw values between commas that stand outside brackets."""
    try:
        found = ast.parse(f"[{text}]", mode="eval").body
        assert isinstance(found, ast.List)
        return [literal(ast.get_source_segment(f"[{text}]", node) or "") for node in found.elts]
    except SyntaxError:
        return [literal(part.strip()) for part in text.split(",")]


def keyed(texts: Sequence[str], name: str) -> dict[tuple[str, str], str]:
    """``leader.learning_rate:...`` texts by the field of :class:`Settings` and the key in it.

    Raises:
        ValueError: another form, a key twice.
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
    """Settings with these keys changed; those of a follower that there is none of are left out."""
    kwargs: dict[str, Any] = {name: dict(getattr(settings, name)) for name in KWARGS}
    for (part, key), item in changes.items():
        if part != "follower_kwargs" or settings.follower is not None:
            kwargs[part][key] = item
    return replace(settings, **kwargs)


def bases(
    envs: Sequence[str],
    leaders: Sequence[str],
    followers: Sequence[str],
    given: Mapping[str, Any],
    conf: Mapping[str, Any] | None = None,
) -> list[Settings]:
    """Settings of every environment, leader and follower, seed 0; a leader that solves its follower stands once.

    Args:
        envs: names.
        leaders: names.
        followers: names; of the leaders that take one.
        given: other fields of :class:`Settings`, the same for all.
        conf: as ``settings_of`` takes it.
    """
    found: list[Settings] = []
    for env, leader in itertools.product(envs, leaders):
        takes = catalogue.takes_follower(catalogue.leader(leader))
        for follower in followers if takes else [None]:
            mine = {**given, "env": env, "leader": leader, "follower": follower}
            if not takes:
                mine.pop("follower_kwargs", None)
            found.append(settings_of(mine, conf))
    return found


def grid(texts: Sequence[str]) -> list[dict[tuple[str, str], Any]]:
    """Every combination of the values of ``leader.learning_rate:0.05,0.1`` texts; one empty one of none."""
    axes = [[(key, item) for item in split_values(text)] for key, text in keyed(texts, "--grid").items()]
    return [dict(chosen) for chosen in itertools.product(*axes)]


def over_seeds(settings: Settings, seeds: Sequence[int], env_seeds: bool) -> list[Settings]:
    """These settings with each seed, of the leader and, with ``env_seeds``, of the environment."""
    found = [replace(settings, seed=seed) for seed in seeds]
    return [changed(s, {("env_kwargs", "seed"): s.seed}) for s in found] if env_seeds else found


# --- one run --------------------------------------------------------------------------------------------------------------


def folder_of(settings: Settings, root: Path) -> Path:
    """Where a run of a sweep lies."""
    return root / f"{settings.env_name}__{settings.name}__{settings.seed}__{settings.hash}"


def run_one(settings: Settings, root: Path, save_freq: int | None = None, search_path: str | None = None) -> Outcome:
    """Run these settings in their folder, unless it holds their result; whatever goes wrong is in the outcome.

    Args:
        settings: of the run.
        root: the sweep's folder.
        save_freq: see :class:`Extras`.
        search_path: a folder in which modules are looked for, too.
    """
    if search_path is not None and search_path not in sys.path:
        sys.path.append(search_path)
    folder = folder_of(settings, root)
    held = read_result(folder)
    if held is not None:
        return Outcome(settings, held, None, repeated=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = _go_on(folder, settings) or train(settings, folder, Extras(save_freq=save_freq))
    except Exception as error:
        text = " ".join(str(error if isinstance(error, (ValueError, RunFailed)) else repr(error)).split())
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FAILURE, traceback.format_exc())
        return Outcome(settings, None, text, repeated=True)
    (folder / FAILURE).unlink(missing_ok=True)
    return Outcome(settings, result, None, repeated=True)


def _go_on(folder: Path, settings: Settings) -> dict[str, Any] | None:
    """Finish a run that was stopped after a checkpoint, to the bit; None where it has to begin anew."""
    if not (folder / LEADER).is_file():
        return None
    try:
        load(folder)
    except ValueError:
        return None
    return resume(folder)


# --- many runs ------------------------------------------------------------------------------------------------------------


class Pool:
    """What runs many runs.

    Args:
        root: the sweep's folder.
        backend: joblib's processes on this machine, one after another, or the workers of a Ray or a Dask cluster.
        jobs: runs side by side.
        address: of a running cluster; None starts one on this machine.
        save_freq: see :class:`Extras`.
        report: called with every outcome.

    Raises:
        ValueError: Ray or Dask is not installed.
    """

    def __init__(
        self,
        root: Path,
        backend: Backend = "processes",
        jobs: int = 1,
        address: str | None = None,
        save_freq: int | None = None,
        report: Callable[[Outcome], None] | None = None,
    ) -> None:
        self.root, self._given = root.resolve(), root
        self.backend, self.jobs, self.address = backend, check_size(jobs, "--jobs"), address
        self.save_freq, self._report = save_freq, report or (lambda _: None)
        if backend in ("ray", "dask"):
            package = "ray" if backend == "ray" else "distributed"
            if importlib.util.find_spec(package) is None:
                raise ValueError(f'--backend: expected {backend}, pip install "bilevel-gym[{backend}]", got none')

    def run(self, runs: Sequence[Settings]) -> list[Outcome]:
        """The outcomes of these runs, in their order; raises ``ValueError`` for a folder that cannot be written to."""
        require_folder(self._given, "--log-folder")  # here: what is asked for wrongly leaves no folder
        outcomes: dict[str, Outcome] = {}

        def note(outcome: Outcome) -> None:
            if outcome.settings.hash not in outcomes:
                self._keep(outcome)
                outcomes[outcome.settings.hash] = outcome
                self._report(outcome)

        todo = []
        for settings in {s.hash: s for s in runs}.values():
            held = read_result(folder_of(settings, self.root))
            note(Outcome(settings, held, None, repeated=False)) if held is not None else todo.append(settings)
        with self._workers() as workers:
            try:
                for outcome in workers(todo):
                    note(outcome)
            except (
                Exception
            ) as died:  # a worker, not a run: its error is in its outcome. Whose it was shows one at a time
                for settings in todo:
                    if settings.hash not in outcomes:
                        note(self._alone(workers, settings, died))
        return [outcomes[settings.hash] for settings in runs]

    def _alone(self, workers: Callable[[Sequence[Settings]], Any], settings: Settings, died: Exception) -> Outcome:
        try:
            (outcome,) = workers([settings])
        except Exception as error:
            reason = f"its process died ({type(error).__name__}; the first: {type(died).__name__})"
            return Outcome(settings, None, reason, repeated=True)
        return outcome  # type: ignore[no-any-return]

    def _keep(self, outcome: Outcome) -> None:
        """Write the result here too, where a worker had another disk."""
        folder = folder_of(outcome.settings, self.root)
        if outcome.result is not None and read_result(folder) is None:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / RESULT, json.dumps(outcome.result, indent=1) + "\n")

    @contextmanager
    def _workers(self) -> Iterator[Callable[[Sequence[Settings]], Any]]:
        """A map of :func:`run_one` over runs, by the backend."""
        import joblib

        here = os.getcwd()
        call = joblib.delayed(run_one)

        def each(todo: Sequence[Settings], **how: Any) -> Any:
            tasks = (call(settings, self.root, self.save_freq, here) for settings in todo)
            return joblib.Parallel(n_jobs=self.jobs, batch_size=1, pre_dispatch="all", **how)(tasks) if todo else []

        if self.backend == "serial":
            yield lambda todo: (run_one(settings, self.root, self.save_freq, here) for settings in todo)
        elif self.backend == "processes":
            with joblib.parallel_config("loky", inner_max_num_threads=1):
                yield lambda todo: each(todo, return_as="generator_unordered")
        elif self.backend == "ray":
            with _ray(self.address, self.jobs), joblib.parallel_config("ray"):
                yield each
        else:
            with _dask(self.address, self.jobs), joblib.parallel_config("dask"):
                yield each


@contextmanager
def _ray(address: str | None, jobs: int) -> Iterator[None]:
    import ray
    from ray.util.joblib import register_ray

    ours = not ray.is_initialized()
    if ours:
        cluster: dict[str, Any] = (
            {"num_cpus": jobs, "include_dashboard": False} if address is None else {"address": address}
        )
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **cluster)
    register_ray()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _dask(address: str | None, jobs: int) -> Iterator[None]:
    from distributed import Client, LocalCluster

    if address is not None:
        with Client(address):
            yield
        return
    quiet = {"dashboard_address": None, "silence_logs": 40}
    with LocalCluster(n_workers=jobs, threads_per_worker=1, processes=True, **quiet) as cluster, Client(cluster):
        yield


# --- search ---------------------------------------------------------------------------------------------------------------


def space(texts: Sequence[str]) -> dict[tuple[str, str], Callable[[Any], Any]]:
    """What each key is drawn from: ``log(0.01, 0.3)``, ``float(0, 1)``, ``int(4, 64)`` or ``choice(8, 16)``.

    Returns:
        By key, a function from an Optuna trial to a raw value.

    Raises:
        ValueError: another form.
    """
    found: dict[tuple[str, str], Callable[[Any], Any]] = {}
    for (part, key), text in keyed(texts, "--space").items():
        name, bracket, rest = text.partition("(")
        values = split_values(rest.removesuffix(")")) if bracket and rest.endswith(")") else []
        expected = "KEY:log(a, b), float(a, b), int(a, b) or choice(a, b, ...)"
        numbers = len(values) == 2 and all(isinstance(v, (int, float)) for v in values)
        require(
            bool(name == "choice" and values) or (name in ("log", "float", "int") and numbers),
            "--space",
            expected,
            repr(text),
        )
        found[part, key] = _suggestion(f"{part}.{key}", name, values)
    return found


def _suggestion(label: str, name: str, values: list[Any]) -> Callable[[Any], Any]:
    if name == "choice":
        return lambda trial: trial.suggest_categorical(label, values)
    if name == "int":
        return lambda trial: trial.suggest_int(label, int(values[0]), int(values[1]))
    low, high = float(values[0]), float(values[1])
    return lambda trial: trial.suggest_float(label, low, high, log=name == "log")


def search(
    base: Settings,
    texts: Sequence[str],
    trials: int,
    seeds: Sequence[int],
    env_seeds: bool,
    pool: Pool,
    seed: int = 0,
) -> list[Outcome]:
    """Optuna's search for the settings of the highest mean score over the seeds; all its runs.

    Trials are asked for ``pool.jobs`` at a time, and the sampler has a seed: the same search again asks for the same runs, whose
    results then lie there.

    Raises:
        ValueError: Optuna is not installed, a space of another form.
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
    """A row for the settings that differ by their seed alone: mean score with its interval, runs, failures; best first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in {o.settings.hash: o for o in outcomes}.values():
        same = changed(replace(outcome.settings, seed=0), {("env_kwargs", "seed"): None})
        groups.setdefault(same.hash, []).append(outcome)
    rows = []
    for found in groups.values():
        scores = [score(o.result["evaluation"]) for o in found if o.result is not None]
        mean, low, high = interval(scores)
        settings = asdict(found[0].settings)
        rows.append(
            {
                **{key: settings[key] for key in ("env", "leader", "follower", "n_timesteps", *KWARGS)},
                "score": mean,
                "low": low,
                "high": high,
                "seeds": sorted(o.settings.seed for o in found if o.result is not None),
                "failed": {str(o.settings.seed): o.error for o in found if o.error is not None},
            }
        )
    return sorted(rows, key=lambda row: -1e300 if row["score"] is None else row["score"], reverse=True)


def write_summary(rows: Sequence[dict[str, Any]], root: Path) -> Path:
    """``summary.json`` in the sweep's folder."""
    path = root / SUMMARY
    write_text(path, json.dumps(list(rows), indent=1) + "\n")
    return path


def differing(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The columns, name and a text a row, in which the rows are not all alike; the environment and the leader always."""
    flat: list[dict[str, Any]] = []
    for row in rows:
        own = {name: row[name] for name in ("env", "leader", "follower", "n_timesteps")}
        for part, name in _PARTS.items():
            own |= {f"{part}.{key}": item for key, item in row[name].items() if (part, key) != ("env", "seed")}
        flat.append(own)
    names = list(dict.fromkeys(name for own in flat for name in own))
    texts = {name: ["" if own.get(name) is None else str(own[name]) for own in flat] for name in names}
    return [(name, texts[name]) for name in names if name in ("env", "leader") or len(set(texts[name])) > 1]
