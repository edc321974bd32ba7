"""Sweeps: which runs there are, what runs them, what fails, what is not repeated."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bilevel_gym.agents import TabularPBRL
from bilevel_gym.agents.leaders.pbrl import PBRLMethod
from bilevel_gym.cli import sweep
from bilevel_gym.cli.settings import Settings
from bilevel_gym.cli.sweep import Outcome, Pool, folder_of, over_seeds

from .conftest import Call

EXACT = ("--env", "TwoState-v0", "--leader", "TabularPBRL", "Hypergradient", "-n", "10")
TWO = "bilevel_gym/TwoState-v0"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def numbers(outcomes: list[Outcome]) -> list[Any]:
    """What of the results may not depend on what ran them."""
    return [o.result and {k: v for k, v in o.result.items() if k not in ("seconds", "run")} for o in outcomes]


def sampled() -> list[Settings]:
    """Four short runs with learned followers."""
    kwargs = {"warmup_steps": 64, "follower_steps": 64, "estimator": "Rollouts(n_envs=4)", "n_envs": 4}
    base = Settings(TWO, "PBRL", "A2C", 1_000, leader_kwargs=kwargs)
    return over_seeds(base, range(4), env_seeds=False)


def test_a_grid_is_run_once(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--grid", "leader.learning_rate:0.05,0.1", "env.gamma:0.5,0.9", "--seeds", "3", "4", "--backend", "serial")
    answer = call("sweep", *EXACT, *words, "--json")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)
    assert len(rows) == 8
    assert answer.err.count("done: ") == 16
    assert {(row["leader"], row["leader_kwargs"]["learning_rate"], row["env_kwargs"]["gamma"]) for row in rows} == {
        (name, rate, gamma) for name in ("TabularPBRL", "Hypergradient") for rate in (0.05, 0.1) for gamma in (0.5, 0.9)
    }
    assert all(row["seeds"] == [3, 4] for row in rows)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert json.loads(Path("runs/sweep/summary.json").read_text()) == rows
    (row,) = (
        r for r in rows if (r["leader"], r["leader_kwargs"], r["env_kwargs"])
        == ("TabularPBRL", {"learning_rate": 0.05}, {"gamma": 0.5})
    )  # fmt: skip
    from bilevel_gym.agents import TabularPBRLConfig

    leader = TabularPBRL(TWO, config=TabularPBRLConfig(learning_rate=0.05), env_kwargs={"gamma": 0.5}, seed=3).learn(10)
    assert row["score"] == leader.evaluate().leader_return
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("a finished run was repeated"))
    again = call("sweep", *EXACT, *words, "--json")
    assert again.code == 0
    assert again.err.count("there: ") == 16
    assert json.loads(again.out) == rows


def test_a_failed_run_is_reported_and_the_others_go_on(call: Call) -> None:
    words = ("--grid", "leader.learning_rate:-1,0.1", "--backend", "serial")
    answer = call("sweep", *EXACT, *words)
    assert answer.code == 1
    assert answer.err.count("bilevel-gym: failed: TwoState-v0") == 2
    assert answer.err.count("learning_rate: expected a number in (0, inf), got -1.0") == 2
    assert answer.err.endswith("bilevel-gym: error: 2 of 4 runs failed; the others are done\n")
    assert len(list(Path("runs/sweep").glob("*/result.json"))) == 2
    (error, _) = Path("runs/sweep").glob("*/error.txt")
    assert "Traceback" in error.read_text()
    lines = answer.out.splitlines()
    assert lines[0].split("|")[1:-1][-3].strip() == "return"
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["0", "0", "2", "2"] or len(lines) == 6


def test_processes_give_what_serial_gives_and_outlive_a_death(tmp_path: Path) -> None:
    """Three good runs, one that fails, one that kills its process: once serial without the last, once in two processes."""
    Path("deadly.py").write_text(
        "import os, gymnasium as gym, bilevel_gym\n"
        "def world(die=False):\n    os._exit(3) if die else None\n    return gym.make('bilevel_gym/TwoState-v0')\n"
    )
    good = [*sampled()[:2], Settings("deadly:world", "TabularPBRL", None, 5)]
    wrong = Settings(TWO, "TabularPBRL", None, 5, leader_kwargs={"learning_rate": -1})
    deadly = Settings("deadly:world", "TabularPBRL", None, 5, env_kwargs={"die": True})
    serial = Pool(tmp_path / "serial", "serial").run([*good, wrong])
    both = Pool(tmp_path / "processes", "processes", jobs=2).run([deadly, *good, wrong])
    assert numbers(both[1:]) == numbers(serial)
    assert all(o.result is not None for o in both[1:4])
    assert both[4].error == serial[3].error == "learning_rate: expected a number in (0, inf), got -1.0"
    assert both[0].result is None
    assert both[0].error == "its process died (exit code 3)"


def test_ray_gives_what_serial_gives(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    runs = [*sampled()[:2], Settings(TWO, "TabularPBRL", None, 5, leader_kwargs={"learning_rate": -1})]
    serial = Pool(tmp_path / "serial", "serial").run(runs)
    ray = Pool(tmp_path / "ray", "ray", jobs=2).run(runs)
    assert numbers(ray) == numbers(serial)
    assert [o.error for o in ray] == [o.error for o in serial]
    assert serial[2].error == "learning_rate: expected a number in (0, inf), got -1.0"
    assert all(o.repeated for o in ray)


def test_a_backend_that_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    find = sweep.importlib.util.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))  # type: ignore[attr-defined]
    answer = call("sweep", *EXACT, "--backend", "ray")
    assert answer.code == 2
    assert answer.err == 'bilevel-gym: error: --backend: expected ray, pip install "bilevel-gym[ray]", got none\n'


def test_a_half_written_result_is_no_result(tmp_path: Path) -> None:
    settings = Settings(TWO, "TabularPBRL", None, 5)
    folder = folder_of(settings, tmp_path)
    folder.mkdir()
    (folder / "result.json").write_text('{"evaluation": {"leader_ret')
    (outcome,) = Pool(tmp_path, "serial").run([settings])
    assert outcome.repeated
    assert json.loads((folder / "result.json").read_text()) == outcome.result


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(sampled()[0], n_timesteps=1500)
    whole = Pool(tmp_path / "whole", "serial").run([settings])
    step, begun = PBRLMethod.step, list[int]()

    def stopped(self: PBRLMethod, state: Any, progress: Any) -> Any:
        begun.append(state.num_timesteps)
        if len(begun) == 2:
            raise OSError("the machine was switched off")
        return step(self, state, progress)

    monkeypatch.setattr(PBRLMethod, "step", stopped)
    (broken,) = Pool(tmp_path / "broken", "serial", save_freq=1).run([settings])
    assert broken.error == "OSError: the machine was switched off"
    again = Pool(tmp_path / "broken", "serial", save_freq=1).run([settings])
    assert begun[0] == 0 < begun[1] == begun[2]  # the first iteration is not repeated
    assert numbers(again) == numbers(whole)
    assert not (folder_of(settings, tmp_path / "broken") / "error.txt").exists()


def test_what_a_worker_with_another_disk_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(TWO, "TabularPBRL", None, 5)
    result = {"evaluation": {"leader_return": 1.0}}
    monkeypatch.setattr(sweep, "run_one", lambda *_: Outcome(settings, result, None, repeated=True))
    Pool(tmp_path, "serial").run([settings])
    assert json.loads((folder_of(settings, tmp_path) / "result.json").read_text()) == result


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"evaluation": 3}', '{"evaluation": {"leader_return": "much"}}', "[1]", '"' + "a" * 2**23 + '"'],
)
def test_a_forged_result_is_no_result(tmp_path: Path, text: str) -> None:
    settings = Settings(TWO, "TabularPBRL", None, 5)
    folder = folder_of(settings, tmp_path)
    folder.mkdir()
    (folder / "result.json").write_text(text)
    (outcome,) = Pool(tmp_path, "serial").run([settings])
    assert outcome.repeated
    assert outcome.error is None
    assert json.loads((folder / "result.json").read_text()) == outcome.result


def test_a_folder_with_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    settings = Settings(TWO, "TabularPBRL", None, 5)
    (whole,) = Pool(tmp_path / "whole", "serial").run([settings])
    folder = folder_of(settings, tmp_path / "forged")
    (first,) = Pool(tmp_path / "forged", "serial").run([settings])
    assert numbers([first]) == numbers([whole])
    (folder / "result.json").unlink()
    forged = replace(settings, env="subprocess:Popen", env_kwargs={"args": ["touch", str(tmp_path / "owned")]})
    (folder / "settings.yml").write_text(forged.as_yaml())
    (again,) = Pool(tmp_path / "forged", "serial").run([settings])
    assert numbers([again]) == numbers([whole])
    assert not (tmp_path / "owned").exists()


# --- search ---------------------------------------------------------------------------------------------------------------

SEARCH = (
    "--env",
    "TwoState-v0",
    "--leader",
    "TabularPBRL",
    "-n",
    "5",
    "--backend",
    "serial",
    "--jobs",
    "2",
    "--search",
    "4",
)


def test_a_search_asks_for_the_same_runs_again(call: Call) -> None:
    pytest.importorskip("optuna")
    words = (*SEARCH, "--space", "leader.learning_rate:log(1e-4,1)", "leader.eval_every:choice(1,5)", "--n-seeds", "1")
    first, again = call("sweep", *words, "--json"), call("sweep", *words, "--json")
    assert (first.code, again.code) == (0, 0), first.err
    rows = json.loads(first.out)
    assert len(rows) == 4
    assert json.loads(again.out) == rows
    assert again.err.count("there: ") == 4
    assert all(1e-4 <= row["leader_kwargs"]["learning_rate"] <= 1.0 for row in rows)
    assert {row["leader_kwargs"]["eval_every"] for row in rows} <= {1, 5}


def test_without_optuna(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = call("sweep", *SEARCH, "--space", "leader.learning_rate:log(1e-4,1)")
    assert answer.code == 2
    assert '--search: expected Optuna, pip install "bilevel-gym[optuna]", got none' in answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sweep",), "--env: expected at least one environment"),
        (("sweep", *EXACT, "--grid", "lam:1,2"), "--grid: expected env.KEY:..., leader.KEY:... or follower.KEY:"),
        (("sweep", *EXACT, "--seeds", "1", "--n-seeds", "2"), "--n-seeds: expected --seeds or --n-seeds, got both"),
        (("sweep", *EXACT, "--space", "leader.a:log(1,2)"), "--space: expected --search beside it, got none"),
        (("sweep", *SEARCH, "--grid", "leader.a:1"), "--grid: expected --grid or --search, got both"),
        (("sweep", *SEARCH), "--space: expected at least one KEY:log(a, b) or the like beside --search, got None"),
        (("sweep", *SEARCH, "--space", "leader.a:log(1)"), "--space: expected KEY:log(a, b), float(a, b), int(a, b) or choice"),
        (("sweep", *EXACT, "--backend", "threads"), "--backend: expected one of processes, serial, ray, got 'threads'"),
        (("benchmark",), "--env: expected --env, --leader or --follower, got none of them"),
        (("benchmark", "--env", "TwoState-v0"), "--env: expected tuned settings (`bilevel-gym list tuned`), got none for "),
    ],
)  # fmt: skip
def test_bad_usage(call: Call, words: tuple[str, ...], message: str) -> None:
    answer = call(*words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"bilevel-gym: error: {message}")
    assert answer.err.count("\n") == 1


# --- benchmark ------------------------------------------------------------------------------------------------------------


def test_tuned_settings_are_run_beside_their_evidence(call: Call) -> None:
    words = ("--env", "StackelbergGame-v0", "--leader", "Hypergradient", "--n-seeds", "2", "--backend", "serial")
    answer = call("benchmark", *words, "--json")
    assert answer.code == 0, answer.err
    (row,) = json.loads(answer.out)
    assert (row["evidence"], row["runs"], row["page"]) == ("8.3", 2, "docs/results/stackelberg_exact.md")
    here = float(row["here"].split()[0])
    published = json.loads((Path(__file__).resolve().parents[2] / "docs/results/stackelberg_exact.json").read_text())
    same = [
        run["best"]["leader_return"] for run in published["data"]["runs"]
        if (run["method"], run["size"], run["seed"] in (0, 1)) == ("hypergradient_quenched", 100, True)
    ]  # fmt: skip
    assert here == pytest.approx(sum(same) / 2, abs=0.01)  # to the digits that are shown
