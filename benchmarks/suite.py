"""The suite: compares any leaders on fixed problems, with one judge and one score.

    python -m benchmarks suite --leader my_module:MyLeader [--leader ...]

A leader is a class or a callable. If it has a parameter named ``follower``, it enters the track *samples*. It is called as
``MyLeader(env, follower, seed=seed)``, where ``env`` is a leader environment with hidden tables and ``follower`` is SB3's
PPO; ``learn(steps)`` may take this many steps in ``env`` and its copies, all of which are counted. Otherwise it enters the
track *model*. It is called as ``MyLeader(env, seed=seed)``, finds the tables in ``env.get_wrapper_attr("problem")``, and
``learn(iterations)`` may take this many iterations. The suite judges ``leader.x`` after ``learn``.

The judge solves the follower's problem at x by soft policy iteration in NumPy, without the library's solvers, and computes
the leader's return exactly. The score is (return - start) / (reference - start): 0 is the untrained leader, 1 the best
exact answer known when the suite was frozen. A negative score is worse than no training. A score above 1 counts as 1, and the
page says where the reference was beaten.

``suite.json`` beside this file is the suite: the problems with their parameters, seeds, budgets, the judge's temperature,
starts, references, fingerprints of the tables, a version and a checksum. A problem whose tables have changed is refused.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import inspect
import io
import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import beta, trim_mean

import bilevel_gym  # noqa: F401  (registers its environments)
from bilevel_gym.cli.statistics import Interval, interval

from . import references
from .runs import Data, Runs, grid, run_all

FILE = Path(__file__).with_suffix(".json")
VERSION = 1
ENTRIES = (
    "bilevel_gym.agents:Hypergradient",
    "bilevel_gym.agents:TabularPBRL",
    "bilevel_gym.agents:PBRL",
    "bilevel_gym.agents:ZeroOrder",
    "examples.extending.exact_method:ConditionalGradient",
)
"""Three of our leaders, a baseline, and one that a user might write."""
TOLERANCE = 1.1
"""Steps that a leader with samples may take, relative to its budget, to finish its last iteration."""
TIE = 1e-6
"""Scores closer than this count as equal."""

GAME, CITY = "bilevel_gym/StackelbergGame-v0", "bilevel_gym/TollDesign-v0"
CITY_9: Data = {"n_nodes": 9, "tau": 0.5, "gamma": 0.999}
CITY_12: Data = {"n_nodes": 12, "tau": 0.1, "gamma": 0.999}
PROBLEMS: dict[str, Data] = {
    "games_20": {"track": "model", "env": GAME, "kwargs": {"n_states": 20}, "seeds": [5, 6, 7], "kind": "game_20"},
    "games_100": {"track": "model", "env": GAME, "kwargs": {"n_states": 100}, "seeds": [5, 6, 7], "kind": "game_100"},
    "tolls_9": {"track": "model", "env": CITY, "kwargs": CITY_9, "seeds": [1, 2, 3], "kind": "city_9"},
    "tolls_12": {"track": "model", "env": CITY, "kwargs": CITY_12, "seeds": [10, 11, 12], "kind": "city_12"},
    "games_20_sampled": {
        "track": "samples",
        "env": GAME,
        "kwargs": {"n_states": 20},
        "seeds": [5, 6],
        "kind": "game_20",
    },
    "tolls_9_sampled": {"track": "samples", "env": CITY, "kwargs": CITY_9, "seeds": [1, 2], "kind": "city_9"},
}
"""The problems from which a freeze makes the suite."""
BUDGETS = {"model": 300, "samples": 200_000}
"""Iterations (track *model*) and environment steps (track *samples*)."""
TRACKS = {"model": "the model is known", "samples": "followers are learned from samples"}


Floats = NDArray[np.float64]


# --- the judge --------------------------------------------------------------------------------------------------------


def best_response(P: Floats, r: Floats, gamma: float, tau: float, terminal: Any, mask: Any) -> Floats:
    """The soft-optimal policy, ``[..., S, A]``, by soft policy iteration.

    Args:
        P: transition probabilities, ``[..., S, A, S]``.
        r: rewards, ``[..., S, A]``.
        gamma: discount.
        tau: temperature, positive.
        terminal: terminal states, bool ``[..., S]``; they pay once, without entropy, and end the episode.
        mask: available actions, bool ``[..., S, A]``.

    Raises:
        ArithmeticError: it has not converged to 1e-9.
    """
    on = ~terminal[..., None]
    pi = mask / mask.sum(-1, keepdims=True)
    for _ in range(1000):
        entropy = -xlogy(pi, pi).sum(-1)
        V = values(P, (pi * r).sum(-1) + tau * on[..., 0] * entropy, pi, gamma, on)
        Q = np.where(mask, r + gamma * on * np.einsum("...sat,...t->...sa", P, V), -np.inf)
        top = Q.max(-1, keepdims=True)
        hot, greedy = np.exp((Q - top) / tau), (top - 1e-12 * (1.0 + np.abs(top)) <= Q).astype(float)
        pi = np.where(on, hot, greedy)
        backup = top[..., 0] + tau * on[..., 0] * np.log(hot.sum(-1))
        pi = pi / pi.sum(-1, keepdims=True)
        if np.abs(backup - V).max() < 1e-9 * (1.0 + np.abs(V).max()):
            return np.asarray(pi)
    raise ArithmeticError(f"the judge: no best response to 1e-9, residual {np.abs(backup - V).max():.1e}")


def values(P: Floats, paid: Floats, pi: Floats, gamma: float, on: Any) -> Floats:
    """The value of a policy in each state, ``[..., S]``, for rewards that are given per state."""
    moves = np.einsum("...sa,...sat->...st", pi * on, P)
    return np.asarray(np.linalg.solve(np.eye(pi.shape[-2]) - gamma * moves, paid[..., None])[..., 0])


def judge(problem: Any, x: Any, tau: float) -> float:
    """The leader's exact return at the follower's best response of temperature tau.

    Args:
        problem: a tabular problem whose leader's reward depends on state and action.
        x: a point of X, ``[dim]``.
        tau: temperature, positive; a small one breaks ties evenly.

    Raises:
        ValueError: an x outside X.
    """
    point = problem.leader_set.check(torch.as_tensor(np.asarray(x, dtype=np.float64)))
    mdp, reward = problem.follower_mdp(point), problem.leader_reward(point).numpy()
    P, r, reward = np.broadcast_arrays(mdp.P.numpy(), mdp.r.numpy()[..., None], reward[..., None])
    r, reward = r[..., 0], reward[..., 0]
    none = np.zeros(r.shape[:-1], dtype=bool)
    terminal = none if mdp.terminal is None else np.broadcast_to(mdp.terminal.numpy(), none.shape)
    mask = ~np.zeros(r.shape, dtype=bool) if mdp.mask is None else np.broadcast_to(mdp.mask.numpy(), r.shape)
    pi = best_response(P, r, mdp.gamma, tau, terminal, mask)
    V = values(P, (pi * reward).sum(-1), pi, mdp.gamma, ~terminal[..., None])
    by_context = (mdp.rho.numpy() * V).sum(-1)
    return float(by_context if problem.context_probs is None else problem.context_probs.numpy() @ by_context)


# --- what is frozen ---------------------------------------------------------------------------------------------------


def made(problem: Data, seed: int) -> gym.Env[Any, Any]:
    """The environment of an instance."""
    return gym.make(problem["env"], seed=seed, **problem["kwargs"])


def fingerprint(problem: Any) -> list[float]:
    """Numbers that change with nearly every change of the tables."""
    x = problem.leader_set.project(problem.start_x() + 0.1)
    mdp, parts = problem.follower_mdp(x), []
    for part in (mdp.P, mdp.r, mdp.rho, problem.leader_reward(x)):
        flat = part.detach().double().reshape(-1)
        parts.append(float(torch.cos(torch.arange(len(flat), dtype=torch.float64)) @ flat))
    return [round(part, 9) for part in parts]


def checksum(suite: Data) -> str:
    """A checksum of the suite, without the checksum itself."""
    text = json.dumps({key: value for key, value in suite.items() if key != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def frozen(problems: dict[str, Data] | None = None) -> Data:
    """The suite that the current code makes, with the stored references.

    Raises:
        ValueError: an instance without a reference.
    """
    suite: Data = {"version": VERSION, "problems": {}}
    for name, about in (PROBLEMS if problems is None else problems).items():
        instances = []
        for seed in about["seeds"]:
            problem: Any = made(about, seed).get_wrapper_attr("problem")
            tau = float(problem.tau0)
            instance = {"seed": seed, "tau": tau, "start": judge(problem, problem.start_x().numpy(), tau)}
            found = {"reference": references.reference(about["kind"], seed), "fingerprint": fingerprint(problem)}
            instances.append(instance | found)
        rest = {key: about[key] for key in ("track", "env", "kwargs")}
        suite["problems"][name] = rest | {"budget": BUDGETS[about["track"]], "instances": instances}
    return suite | {"checksum": checksum(suite)}


def read(path: Path = FILE) -> Data:
    """Read the frozen suite.

    Raises:
        ValueError: a file that is not what was frozen.
    """
    suite: Data = json.loads(path.read_text(encoding="utf-8"))
    if suite.get("checksum") != checksum(suite):
        raise ValueError(
            f"{path}: expected checksum {checksum(suite)}, got {suite.get('checksum')}: it is not what was frozen"
        )
    return suite


# --- a run ------------------------------------------------------------------------------------------------------------


class Sampled(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that hides its tables and counts its steps over all its copies in this process."""

    taken = 0
    allowed = 10**18

    def has_wrapper_attr(self, name: str) -> bool:
        return name != "problem" and super().has_wrapper_attr(name)

    def get_wrapper_attr(self, name: str) -> Any:
        if name == "problem":
            raise AttributeError("problem: the track 'samples' hides the tables")
        return super().get_wrapper_attr(name)

    def step(self, action: Any) -> Any:
        Sampled.taken += 1
        if Sampled.taken > Sampled.allowed:
            raise RuntimeError(f"the budget is spent: {Sampled.taken} steps, {Sampled.allowed} allowed")
        return super().step(action)


def load(leader: str) -> Callable[..., Any]:
    """The leader that ``module:name`` names.

    Raises:
        ValueError: no such module, or no such name in it.
    """
    module, _, name = leader.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--leader: expected module:name of a class or a callable, got {leader!r} ({error})"
        ) from error
    if not callable(found):
        raise ValueError(f"--leader: expected a class or a callable, got {leader!r}, a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def track_of(leader: Callable[..., Any]) -> str:
    """The track of a leader: ``"samples"`` if it takes a follower, else ``"model"``."""
    return "samples" if "follower" in inspect.signature(leader).parameters else "model"


def play(leader: str, about: Data, seed: int, budget: int) -> tuple[Any, int]:
    """Train a leader on an instance: its x, and what it used."""
    found, env = load(leader), made(about, seed)
    if track_of(found) == "model":
        learned = found(env, seed=0)
        learned.learn(budget)
        return learned.x, budget
    from stable_baselines3 import PPO

    Sampled.taken, Sampled.allowed = 0, int(TOLERANCE * budget)
    learned = found(Sampled(env), PPO, seed=0)
    learned.learn(budget)
    return learned.x, Sampled.taken


def run_one(leader: str, problem: str, seed: int, suite: Data, budget: int | None = None, code: str = "") -> Data:
    """Run one leader on one instance: its score, or the error that it raised.

    Args:
        leader: ``module:name``.
        problem: name of a problem of the suite.
        seed: seed of the instance.
        suite: the frozen suite.
        budget: a budget that replaces the suite's.
        code: hash of the leader's file, under which a row is stored.
    """
    about = suite["problems"][problem]
    instance = next(i for i in about["instances"] if i["seed"] == seed)
    tables: Any = made(about, seed).get_wrapper_attr("problem")
    if not np.allclose(fingerprint(tables), instance["fingerprint"], rtol=0.0, atol=1e-6):
        raise ValueError(
            f"{problem}, seed {seed}: the tables are not those that were frozen in version {suite['version']}"
        )
    row: Data = {"score": 0.0, "leader_return": None, "spent": None, "error": None, "beaten": False}
    before = time.process_time()
    try:
        x, spent = play(leader, about, seed, about["budget"] if budget is None else budget)
        value = judge(tables, x, instance["tau"])
    except Exception as error:  # a leader of somebody's: the others go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        row["error"] = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
    else:
        share = (value - instance["start"]) / (instance["reference"] - instance["start"])
        row |= {"score": min(share, 1.0), "leader_return": value, "spent": spent, "beaten": share > 1.0 + TIE}
    return row | {"seconds": round(time.process_time() - before, 1)}


def cells_of(suite: Data, leaders: Sequence[str]) -> list[Data]:
    """The runs of all leaders, on the problems of their tracks."""
    return [
        cell
        for leader in leaders
        for name, about in suite["problems"].items()
        if about["track"] == track_of(load(leader))
        for cell in grid(
            leader=[leader], problem=[name], seed=[i["seed"] for i in about["instances"]], code=[code(leader)]
        )
    ]


def code(leader: str) -> str:
    """A hash of a leader's file, so that stored runs of another version are not used."""
    file = inspect.getsourcefile(inspect.unwrap(load(leader)))
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def run(quick: bool, jobs: int, leaders: Sequence[str] = ENTRIES) -> Data:
    """Run leaders on the problems of their tracks."""
    suite = read()
    cells = cells_of(suite, leaders)
    if quick:
        cells = [cell for cell in cells if cell["seed"] == suite["problems"][cell["problem"]]["instances"][0]["seed"]]
    budgets = {"model": 20, "samples": 2_000} if quick else {}
    for cell in cells:
        cell["budget"] = budgets.get(suite["problems"][cell["problem"]]["track"])
    runs = run_all(run_one, cells, jobs, "suite", suite=suite)
    return {"version": suite["version"], "checksum": suite["checksum"], "leaders": list(leaders), "runs": runs}


# --- reading ----------------------------------------------------------------------------------------------------------

COLUMNS = ("version", "track", "problem", "seed", "leader", "score", "leader_return", "spent", "error")


def table(data: Data) -> str:
    """The scores as CSV, one row per run; a second run of the same leaders gives the same text."""
    suite, text = read(), io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for r in data["runs"]:
        numbers = {key: None if r[key] is None else f"{r[key]:.6f}" for key in ("score", "leader_return")}
        track = suite["problems"][r["problem"]]["track"]
        writer.writerow(r | {"version": data["version"], "track": track} | numbers)
    return text.getvalue()


def entrants(data: Data, track: str) -> list[str]:
    """The leaders of a track."""
    problems = read()["problems"]
    return [
        leader
        for leader in data["leaders"]
        if any(r["leader"] == leader and problems[r["problem"]]["track"] == track for r in data["runs"])
    ]


def scores(data: Data, leader: str, problem: str | None = None) -> Floats:
    """A leader's scores on one problem or on all; a run that raised counts as the untrained leader."""
    rows = Runs(data["runs"])(leader=leader)
    return np.array(rows(problem=problem)["score"] if problem else rows["score"], dtype=np.float64)


def interquartile_mean(values: Floats) -> Interval:
    """The mean of the middle half of the scores."""
    return interval(values, statistic=lambda sample, axis: trim_mean(sample, 0.25, axis=axis))


def improvement(data: Data, a: str, b: str) -> Interval:
    """The probability that a leader's score exceeds another's on the same instance; ties count half.

    Equal scores count half.
    """
    ahead = scores(data, a) - scores(data, b)
    n, won = len(ahead), float(np.where(np.abs(ahead) <= TIE, 0.5, ahead > 0.0).sum())
    low = 0.0 if won == 0.0 else float(beta.ppf(0.025, won, n - won + 1.0))
    high = 1.0 if won == n else float(beta.ppf(0.975, won + 1.0, n - won))
    return Interval(won / n, low, high, n)


def short(leader: str) -> str:
    """The short name of a leader in tables."""
    return leader.partition(":")[2]
