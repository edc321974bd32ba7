"""The benchmarks: pages as their data gives them, runs that are kept, and what the command line refuses before work is lost."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip(
    "pandas"
)  # with Jinja, of the extra dev: the benchmarks' pages need them, no part of the library does
pytest.importorskip("jinja2")

from benchmarks import pages, references, runs, sampled_bellman, sampled_penalties, stackelberg_sampled, toll_sampled
from benchmarks.__main__ import BENCHMARKS, QUICK, parse
from benchmarks.four_rooms import CELLS
from benchmarks.runs import Runs, grid, run_all
from benchmarks.statistics import mean_interval, paired_difference, paired_ratio, stratified_interval, wins
from benchmarks.ties import worst_over_ties
from bilevel_gym.cli.processes import WorkerError
from bilevel_gym.cli.statistics import Interval, band, interval
from bilevel_gym.envs.mdp import policy_return, random_stackelberg
from tests.squares import square

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
WRITTEN = [name for name in BENCHMARKS if (RESULTS / f"{name}.json").is_file()]


SHARES: dict[str, Callable[[Any], list[float]]] = {
    "toll_sampled": lambda d: [
        a / b
        for method in (*toll_sampled.ALGORITHMS, *toll_sampled.EXACT)
        for a, b in zip(
            toll_sampled.improvements(d, method, "best"), toll_sampled.improvements(d, "reference", ""), strict=True
        )
    ],
    "stackelberg_sampled": lambda d: [
        r["best"] / stackelberg_sampled.best_known(Runs(d["runs"]), r["size"], r["seed"]) for r in d["runs"]
    ],
    "sampled_bellman": lambda d: [sampled_bellman.share(d, r, r["best"]) for r in d["runs"]],
    "sampled_penalties": lambda d: sampled_penalties.shares(Runs(d["runs"]), "best"),
}
"""Every share that a page shows, of its data."""


# --- pages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_a_page_is_what_its_data_gives(name: str) -> None:
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert pages.page(record) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_the_lists_are_what_the_data_gives(tmp_path: Path) -> None:
    for name in WRITTEN:
        os.symlink(RESULTS / f"{name}.json", tmp_path / f"{name}.json")
    pages.write_lists(tmp_path, BENCHMARKS)
    for name in ("README.md", "standing.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (RESULTS / name).read_text(encoding="utf-8")


def test_a_page_says_that_it_is_of_a_quick_run_or_of_one_that_was_stopped() -> None:
    record = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    text = pages.page(record | {"quick": True, "kept": 3})
    assert "\n\n**A quick run: a smoke test, not a result.**\n\n## SB3 inside" in text
    assert " s on 2 cores, without the time of 3 runs that were kept from before it was stopped; python 3.11" in text


def test_a_template_that_names_what_is_not_there_says_so() -> None:
    record = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    del record["data"]["exact"][0]["cpu_ms"]
    with pytest.raises(Exception, match="cpu_ms"):
        pages.page(record)


# --- runs -----------------------------------------------------------------------------------------------------------------


def test_runs_that_ended_are_kept_until_they_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").touch()
    with pytest.raises(WorkerError, match="ValueError: not today"):
        run_all(square, grid(number=range(5)), 1, "squares")
    assert Path("log").read_text().split() == ["0", "1", "2"]
    assert [answer["square"] for answer in run_all(square, grid(number=range(5)), 0, "squares")] == [0, 1, 4]
    assert runs.left_out() == 2
    runs.forget()  # forgets nothing that is not in a whole page yet
    assert runs.left_out() == 0
    Path("broken").unlink()
    found = run_all(square, grid(number=range(5)), 2, "squares")
    assert [answer["number"] for answer in found] == [0, 1, 2, 3, 4]
    assert [answer["square"] for answer in found] == [0, 1, 4, 9, 16]
    assert len({answer["pid"] for answer in found}) == 5  # a process each
    assert sorted(Path("log").read_text().split()) == ["0", "1", "2", "3", "4"]
    assert runs.kept() == 3
    (torn, *_) = Path(runs.STORE).iterdir()
    assert torn.suffix == ".json"
    runs.forget()
    assert list(Path(runs.STORE).iterdir()) == []
    assert runs.kept() == 0


def test_other_code_is_run_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for version in "ab":
        monkeypatch.setattr(runs, "_version", lambda _, version=version: version)
        run_all(square, [{"number": 7}], 1, "squares")
    assert Path("log").read_text().split() == ["7", "7"]
    runs.forget()


def test_runs_are_selected_by_what_they_have() -> None:
    rows = [{"m": "a", "n": 1, "last": {"x": 3}}, {"m": "b", "n": 1, "last": {"x": 4}}, {"m": "a", "n": 2, "x": None}]
    table = Runs(rows)
    assert table(m="a")["n"] == [1, 2]
    assert table(n=1)["last.x"] == [3, 4]
    assert table(m="a", n=2).one["x"] is None
    assert len(table(m="c")) == 0
    assert [row["n"] for row in table(m="a")] == [1, 2]


# --- statistics -----------------------------------------------------------------------------------------------------------


def test_intervals() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [0.5, 1.5, 2.5, 3.5]
    half = 3.182446 * np.std(a, ddof=1) / 2.0
    assert mean_interval(a) == pytest.approx((2.5, 2.5 - half, 2.5 + half, 4))
    assert mean_interval([2.0]).text() == mean_interval([2.0, 2.0]).text() == "2.00"
    difference = paired_difference(a, b)
    assert difference == pytest.approx((0.5, 0.5, 0.5, 4))  # of the same games: no spread
    assert difference.above_0
    assert not difference.below_0
    assert paired_ratio(a, b).estimate == pytest.approx(1.25)
    assert paired_ratio([1.0], [2.0]) == (0.5, None, None, 1)
    assert stratified_interval([[1.0, 1.0], [3.0, 3.0]]) == (2.0, None, None, 2)
    assert wins(a, [2.0, 1.0, 3.0, 0.0]) == 2


def test_intervals_are_student_s_below_twenty_runs_and_the_bootstrap_s_from_there_on() -> None:
    # the audit's figures: three runs of nested search, and three of SAC
    three = [0.04, 1.50, 1.31]
    assert interval(three).text(2) == "0.95 [-1.02, 2.92]"
    values = np.random.default_rng(0).exponential(size=20)
    short, long = interval(values[:19]), interval(values)
    assert np.mean(short.ends[1:]) == pytest.approx(short.estimate)  # t is symmetric
    assert abs(np.mean(long.ends[1:]) - long.estimate) > 1e-3
    assert (short.n, long.n) == (19, 20)
    mean, low, high = band(np.stack([values[:4], values[4:8]], axis=-1))
    assert [mean[0], low[0], high[0]] == pytest.approx(interval(values[:4])[:3])


def test_intervals_of_few_runs_cover() -> None:
    """95% of the time, for means, differences and ratios of five runs; the bootstrap's covered 83%."""
    rng = np.random.default_rng(0)
    a, b = 2.0 + 0.3 * rng.normal(size=(2000, 5)), 1.0 + 0.1 * rng.normal(size=(2000, 5))
    pairs = list(zip(a, b, strict=True))
    held = {
        2.0: [mean_interval(one) for one, _ in pairs] + [paired_ratio(*pair) for pair in pairs],
        1.0: [paired_difference(*pair) for pair in pairs],
    }
    for truth, found in held.items():
        covered = np.mean([i.ends[1] <= truth <= i.ends[2] for i in found])
        assert 0.93 < covered < 0.97


def test_an_interval_of_tasks_and_seeds_is_welch_s() -> None:
    tasks = np.array([[1.0, 2.0, 4.0], [10.0, 10.5, 10.7]])
    found = stratified_interval(tasks)
    parts = tasks.var(1, ddof=1) / 3 / 4
    degrees = parts.sum() ** 2 / np.sum(parts**2 / 2)
    assert found.estimate == tasks.mean()
    assert found.ends[2] - found.estimate == pytest.approx(stats.t.ppf(0.975, degrees) * np.sqrt(parts.sum()))


# --- one rule for targets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "target", "below", "word"),
    [
        (Interval(1.0, 0.9, 1.1, 5), 0.9, False, "met"),
        (Interval(1.0, 0.9, 1.1, 5), 0.95, False, "unknown"),
        (Interval(1.0, 0.9, 1.1, 5), 1.2, False, "**missed**"),
        (Interval(1.0, 0.9, 1.1, 5), 1.2, True, "met"),
        (Interval(1.0, 0.9, 1.1, 5), 1.0, True, "unknown"),
        (Interval(1.0, 0.9, 1.1, 5), 0.5, True, "**missed**"),
        (Interval(1.0, None, None, 1), 0.0, False, "unknown"),  # one run
        (Interval(1.0, None, None, 3), 0.0, False, "met"),  # three alike
        (1.0, 1.0, False, "met"),
        (0.9, 1.0, False, "**missed**"),
        (np.bool_(False), 0.0, False, "**missed**"),
        (True, 0.0, False, "met"),
    ],
)
def test_a_target_is_met_missed_or_unknown(found: object, target: float, below: bool, word: str) -> None:
    assert pages.verdict(found, target, below) == word


def test_targets_that_are_asked_together() -> None:
    assert pages.all_of("met", "met") == "met"
    assert pages.all_of("met", "unknown") == "unknown"
    assert pages.all_of("unknown", "**missed**", "met") == "**missed**"


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_of_standing_have_a_verdict(name: str) -> None:
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert all(len(row) == 4 and row[3] in pages.WORDS for row in pages.standing(record))


def test_no_share_of_a_page_is_above_1() -> None:
    for name, method_shares in SHARES.items():
        data = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["data"]
        shares = np.array(list(method_shares(data)))
        assert len(shares) > 0
        assert shares.max() <= 1.0 + 1e-12, name


# --- references -----------------------------------------------------------------------------------------------------------


def test_a_reference_is_the_best_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "_known", lambda: {("lq", 0): {"start": -3.0, "best": -2.0}})
    assert references.reference("lq", 0) == -2.0
    assert references.reference("lq", 0, -2.5) == -2.0
    assert references.reference("lq", 0, -1.5, -2.5) == -1.5  # a page's own method is better
    assert references.reference("lq", 1, -2.5) == -2.5
    with pytest.raises(ValueError, match="no reference of lq, seed 1: run"):
        references.reference("lq", 1)
    assert "1 of 2 instances" in references.coverage("lq", [0, 1])


def test_staged_ascent_finds_the_optimum_of_a_linear_quadratic_game() -> None:
    row = references.run_one("lq", 0, quick=True)
    assert row["best"] == pytest.approx(-1.9568019380817, abs=1e-9)
    assert row["start"] < row["returns"]["quenched"] < row["best"]


def test_the_worst_over_ties() -> None:
    """Against every deterministic policy at epsilon 0 and a vast epsilon; in between, it falls with epsilon."""
    problem = random_stackelberg(3, 2, 2, seed=1)
    x = torch.full((problem.leader_dim,), 0.3, dtype=torch.float64)
    mdp = problem.follower_mdp(x)
    policies = [torch.eye(2, dtype=torch.float64)[list(actions)] for actions in itertools.product(range(2), repeat=3)]
    paid = [float(policy_return(mdp, pi)) for pi in policies]
    earned = [float(problem.leader_return(x, pi)) for pi in policies]
    assert worst_over_ties(problem, x, 0.0) == pytest.approx(earned[int(np.argmax(paid))], abs=1e-8)
    assert worst_over_ties(problem, x, 100.0) == pytest.approx(min(earned), abs=1e-8)
    worst = [worst_over_ties(problem, x, epsilon) for epsilon in (0.0, 0.05, 0.1, 1.0)]
    assert worst == sorted(worst, reverse=True)
    assert worst[1] < worst[0]
    # A vertex of the programme mixes at most two deterministic policies, one within the bound and one beyond it.
    bound, both = max(paid) - 0.1, list(zip(paid, earned, strict=True))
    mixed = [value for pay, value in both if pay >= bound]
    for (pay_a, a), (pay_b, b) in itertools.product(both, repeat=2):
        if pay_a >= bound > pay_b:
            share = (bound - pay_b) / (pay_a - pay_b)
            mixed.append(share * a + (1.0 - share) * b)
    assert worst[2] == pytest.approx(min(mixed), abs=1e-8)


# --- the command line -----------------------------------------------------------------------------------------------------


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_cell_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(["four_rooms", "--cell", CELLS[0], "--cell", "0.002,1"], capsys)
    assert "unknown cell 0.002,1 of four_rooms: expected" in message
    assert all(cell in message for cell in CELLS)


def test_a_benchmark_without_cells_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown cell 0.001,1 of speed: expected none" in refusal(
        ["four_rooms", "speed", "--cell", CELLS[0]], capsys
    )


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown benchmark five_rooms: expected" in refusal(["five_rooms"], capsys)


def test_results_of_a_part_do_not_replace_those_of_the_whole() -> None:
    options = parse(["four_rooms", "--cell", CELLS[4]])
    assert options.cells == [CELLS[4]]
    assert options.out == QUICK
