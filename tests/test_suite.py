"""The frozen suite: its judge, what is frozen, leaders that enter, fail and overspend, and its scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("jinja2")

from benchmarks import pages, references, suite
from benchmarks.__main__ import ENTERED, parse
from bilevel_gym.agents import leader_return_at_best_response
from bilevel_gym.envs.mdp import TollDesignProblem, random_city, random_stackelberg

SMALL = {
    "games": {
        "track": "model",
        "env": suite.GAME,
        "kwargs": {"n_states": 4, "n_leader_actions": 2, "n_follower_actions": 2},
        "seeds": [0, 1],
        "kind": "small",
    },
    "games_sampled": {
        "track": "samples",
        "env": suite.GAME,
        "kwargs": {"n_states": 4, "n_leader_actions": 2, "n_follower_actions": 2},
        "seeds": [0],
        "kind": "small",
    },
}


class Ascent:
    """Coordinate ascent on the leader's return at the follower's best response, on the tables."""

    def __init__(self, env: Any, seed: int = 0) -> None:
        self.problem, self.x = env.get_wrapper_attr("problem"), env.get_wrapper_attr("leader_x")

    def learn(self, iterations: int) -> None:
        for k in range(iterations):
            tried = self.x.copy()
            tried[k % len(tried)] = np.clip(tried[k % len(tried)] + (3.0 if k // len(tried) % 2 else -3.0), -10.0, 10.0)
            before, after = (leader_return_at_best_response(self.problem, torch.from_numpy(x)) for x in (self.x, tried))
            self.x = tried if after > before else self.x


class Worse(Ascent):
    """What is worst for it."""

    def learn(self, iterations: int) -> None:
        super().learn(iterations)
        self.x = -self.x


class Raises(Ascent):
    """Fails on one of the instances."""

    def learn(self, iterations: int) -> None:
        if self.problem.P[0, 0, 0, 0] > 0.2:
            raise KeyError("nothing for this one")


class Outside(Ascent):
    """Answers with no point of X."""

    def learn(self, iterations: int) -> None:
        self.x = self.x + 11.0


class Plays:
    """Takes the steps that it is given, and so many more."""

    more = 0

    def __init__(self, env: Any, follower: Any, seed: int = 0) -> None:
        self.env, self.x = env, env.get_wrapper_attr("leader_x")
        assert follower.__name__ == "PPO"

    def learn(self, steps: int) -> None:
        self.env.reset(seed=0)
        for _ in range(steps + self.more):
            *_, truncated, _ = self.env.step(0)
            if truncated:
                self.env.reset()


class Overspends(Plays):
    """Never ends."""

    more = 10**6


class Peeks(Plays):
    """Asks for the tables."""

    def learn(self, steps: int) -> None:
        assert not self.env.has_wrapper_attr("problem")
        self.x = self.env.get_wrapper_attr("problem").start_x()


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    known = {("small", seed): {"start": 0.0, "best": best} for seed, best in ((0, 8.0), (1, 8.5))}
    monkeypatch.setattr(references, "_known", lambda: known)
    made = suite.frozen(SMALL)
    monkeypatch.setattr(suite, "FILE", tmp_path / "suite.json")
    (tmp_path / "suite.json").write_text(json.dumps(made), encoding="utf-8")
    monkeypatch.setattr(suite, "read", lambda: made)
    return made


def entered(frozen: dict[str, Any], *leaders: Any) -> dict[str, Any]:
    """The data of a page, without processes."""
    names = [f"{__name__}:{leader.__name__}" for leader in leaders]
    budget = {"model": 24, "samples": 50}
    cells = suite.cells_of(frozen, names)
    runs = [
        suite.run_one(**cell, suite=frozen, budget=budget[frozen["problems"][cell["problem"]]["track"]]) | cell
        for cell in cells
    ]
    return {"version": frozen["version"], "checksum": frozen["checksum"], "leaders": names, "runs": runs}


# --- the judge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["game", "sharp game", "city", "warm city"])
def test_the_judge_agrees_with_the_library(name: str) -> None:
    make: dict[str, Callable[[], Any]] = {
        "game": lambda: random_stackelberg(12, seed=3),
        "sharp game": lambda: random_stackelberg(7, 3, 4, gamma=0.99, seed=4),
        "city": lambda: TollDesignProblem(random_city(9, 2), 0.999, 0.1),
        "warm city": lambda: TollDesignProblem(random_city(9, 1), 0.999, 0.5),
    }
    problem = make[name]()
    drawn = problem.start_x() + torch.rand(problem.leader_dim, generator=torch.Generator().manual_seed(0)).double()
    x = problem.project(drawn)
    assert suite.judge(problem, x.numpy(), problem.tau0) == pytest.approx(
        leader_return_at_best_response(problem, x), rel=1e-8
    )


def test_the_judge_breaks_ties_evenly() -> None:
    """One state, two actions that pay the follower alike: J_L is the mean of the leader's two rewards over 1 - gamma."""
    P, r = np.ones((1, 2, 1)), np.array([[0.3, 0.3]])
    pi = suite.best_response(P, r, 0.9, 0.002, np.zeros(1, dtype=bool), np.ones((1, 2), dtype=bool))
    assert pi == pytest.approx(np.array([[0.5, 0.5]]))
    paid = (pi * np.array([[1.0, 0.0]])).sum(-1)
    assert suite.values(P, paid, pi, 0.9, np.ones((1, 1), dtype=bool)) == pytest.approx(5.0)


def test_the_judge_refuses_a_point_outside_x() -> None:
    problem = random_stackelberg(3, 2, 2, seed=0)
    with pytest.raises(ValueError, match="expected a point of X"):
        suite.judge(problem, np.full(problem.leader_dim, 11.0), 0.002)


# --- what is frozen -------------------------------------------------------------------------------------------------------


def test_a_file_that_was_changed_is_refused(
    frozen: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # the reader, too
    file = tmp_path / "suite.json"
    file.write_text(json.dumps(frozen), encoding="utf-8")
    assert suite.read(file) == frozen
    frozen["problems"]["games"]["budget"] += 1
    file.write_text(json.dumps(frozen), encoding="utf-8")
    with pytest.raises(ValueError, match="it is not what was frozen"):
        suite.read(file)


def test_a_problem_that_has_changed_is_refused(frozen: dict[str, Any]) -> None:
    frozen["problems"]["games"]["kwargs"]["gamma"] = 0.9000001
    assert (
        suite.run_one(f"{__name__}:Ascent", "games", 0, frozen, 1)["error"] is None
    )  # within rounding of the fingerprint
    frozen["problems"]["games"]["kwargs"]["sparsity"] = 0.1
    with pytest.raises(ValueError, match="games, seed 0: the tables are not those that were frozen in version 1"):
        suite.run_one(f"{__name__}:Ascent", "games", 0, frozen, 1)


# --- leaders that enter ---------------------------------------------------------------------------------------------------


def test_scores_are_the_same_on_a_second_run(frozen: dict[str, Any]) -> None:
    first, second = (entered(frozen, Ascent, Worse, Plays) for _ in range(2))
    assert suite.table(first) == suite.table(second)
    assert suite.table(first).splitlines()[0] == "version,track,problem,seed,leader,score,leader_return,spent,error"
    assert all(0.0 < score <= 1.0 for score in suite.scores(first, first["leaders"][0]))
    assert all(score < 0.5 for score in suite.scores(first, first["leaders"][1]))
    assert suite.scores(first, first["leaders"][2]) == pytest.approx([0.0])  # x as it was
    assert [r["spent"] for r in first["runs"]] == [24, 24, 24, 24, 50]


def test_a_score_is_the_share_of_the_reference(frozen: dict[str, Any]) -> None:
    data = entered(frozen, Ascent)
    for r, instance in zip(data["runs"], frozen["problems"]["games"]["instances"], strict=True):
        gained = r["leader_return"] - instance["start"]
        assert r["score"] == pytest.approx(gained / (instance["reference"] - instance["start"]))
    first = frozen["problems"]["games"]["instances"][0]
    first["reference"] = first["start"] + 1e-3
    beaten = suite.run_one(f"{__name__}:Ascent", "games", 0, frozen, 24)
    assert (beaten["score"], beaten["beaten"]) == (1.0, True)


def test_a_leader_that_raises_is_named_and_the_others_go_on(frozen: dict[str, Any]) -> None:
    data = entered(frozen, Raises, Outside, Ascent)
    errors = {(r["leader"].rpartition(":")[2], r["seed"]): r["error"] for r in data["runs"] if r["error"]}
    assert set(errors) >= {("Outside", 0), ("Outside", 1)}
    assert any(key[0] == "Raises" for key in errors)
    assert "expected a point of X" in errors["Outside", 0]
    assert all(r["error"] is None for r in data["runs"] if r["leader"].endswith("Ascent"))
    record = {"benchmark": "suite", "command": "", "quick": False, "wall_seconds": 1.0, "cores": 1, "versions": {}}
    text = pages.page(record | {"data": data})
    assert (
        "`tests.test_suite:Outside`, games, seed 1: ValueError" in text or "Outside`, games, seed 1: ValueError" in text
    )
    assert "KeyError: 'nothing for this one'" in text


def test_the_tables_are_hidden_from_leaders_over_samples_and_their_steps_counted(frozen: dict[str, Any]) -> None:
    assert suite.track_of(Plays) == "samples"
    assert suite.track_of(Ascent) == "model"
    data = entered(frozen, Plays, Overspends, Peeks)
    assert {r["problem"] for r in data["runs"]} == {"games_sampled"}
    ends, endless, peeking = data["runs"]
    assert (ends["spent"], ends["error"]) == (50, None)
    assert "the budget is spent: 56 steps, 55 allowed" in endless["error"]
    assert "the track 'samples' hides the tables" in peeking["error"]


@pytest.mark.parametrize("entry", suite.ENTRIES)
def test_our_own_entries_load_and_enter_a_track(entry: str) -> None:
    expected = "samples" if entry.endswith(":PBRL") else "model"
    assert suite.track_of(suite.load(entry)) == expected


@pytest.mark.parametrize("entry", ["nothing", "json:nothing", "no_such_module:Leader", ":x", "json:__name__"])
def test_a_leader_that_is_not_there_is_refused(entry: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--leader: expected"):
        suite.load(entry)
    with pytest.raises(SystemExit):
        parse(["suite", "--leader", entry])
    assert "--leader: expected" in capsys.readouterr().err


def test_a_leader_of_somebody_s_does_not_replace_our_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["suite", "--leader", f"{__name__}:Ascent"]).out == ENTERED
    with pytest.raises(SystemExit):
        parse(["speed", "--leader", f"{__name__}:Ascent"])
    assert "with the benchmark suite alone" in capsys.readouterr().err


# --- scores ---------------------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_and_the_probability_of_improvement() -> None:
    values = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 100.0])
    assert suite.interquartile_mean(values).estimate == pytest.approx(0.35)
    runs = [{"leader": leader, "score": score, "problem": "p", "seed": k}
            for leader, row in {"a": [1.0, 0.5, 0.2, 0.9], "b": [0.5, 0.5, 0.4, 0.1]}.items()
            for k, score in enumerate(row)]  # fmt: skip
    data = {"runs": runs}
    ahead, behind = suite.improvement(data, "a", "b"), suite.improvement(data, "b", "a")
    assert ahead.estimate == pytest.approx((1.0 + 0.5 + 0.0 + 1.0) / 4)
    assert ahead.estimate + behind.estimate == pytest.approx(1.0)
    assert ahead.n == 4
    always = suite.improvement({"runs": [r for r in runs if r["seed"] in (0, 3)]}, "a", "b")
    assert always == pytest.approx((1.0, 0.025**0.5, 1.0, 2))  # two of two: 1 - confidence of a probability p is p^2


def test_the_frozen_suite_is_of_the_problems_as_they_are() -> None:
    made = suite.read(suite.FILE)
    assert made["version"] == suite.VERSION
    for name, about in made["problems"].items():
        assert about["budget"] == suite.BUDGETS[about["track"]]
        for instance in about["instances"]:
            problem: Any = suite.made(about, instance["seed"]).get_wrapper_attr("problem")
            assert suite.fingerprint(problem) == pytest.approx(instance["fingerprint"], abs=1e-6), name
            start = suite.judge(problem, problem.start_x().numpy(), instance["tau"])
            assert start == pytest.approx(instance["start"], abs=1e-9)
            assert start < instance["reference"]
