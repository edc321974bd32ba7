"""The benchmarks: pages as their data gives them, runs that are kept, and what the command line refuses before work is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "pandas"
)  # with Jinja, of the extra dev: the benchmarks' pages need them, no part of the library does
pytest.importorskip("jinja2")

from benchmarks import pages, runs
from benchmarks.__main__ import BENCHMARKS, QUICK, parse
from benchmarks.four_rooms import CELLS
from benchmarks.runs import Runs, grid, run_all
from benchmarks.statistics import mean_interval, paired_difference, paired_ratio, stratified_interval, wins
from bilevel_gym.cli.processes import WorkerError
from bilevel_gym.cli.statistics import student

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


# --- pages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_page_is_what_its_data_gives(name: str) -> None:
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert pages.page(record) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_the_lists_are_what_the_data_gives(tmp_path: Path) -> None:
    for name in BENCHMARKS:
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


def square(number: int) -> dict[str, float]:
    if Path("broken").exists() and number > 2:
        raise ValueError("not today")
    with Path("log").open("a") as log:
        log.write(f"{number} ")
    return {"square": number**2, "pid": os.getpid()}


def test_runs_that_ended_are_kept_until_they_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").touch()
    with pytest.raises(WorkerError, match="ValueError: not today"):
        run_all(square, grid(number=range(5)), 1, "squares")
    assert Path("log").read_text().split() == ["0", "1", "2"]
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
    assert mean_interval(a).text(1) == "2.5 [1.5, 3.5]"
    assert mean_interval([2.0]).text() == mean_interval([2.0, 2.0]).text() == "2.00"
    difference = paired_difference(a, b)
    assert difference.text(3) == "0.500 [0.500, 0.500]"  # of the same games: no spread
    assert difference.above_0
    assert not difference.below_0
    assert paired_ratio(a, b).estimate == pytest.approx(1.25)
    assert paired_ratio([1.0], [2.0]) == (0.5, None, None)
    assert stratified_interval([[1.0, 1.0], [3.0, 3.0]]) == (2.0, None, None)
    assert wins(a, [2.0, 1.0, 3.0, 0.0]) == 2
    assert student(a) == pytest.approx([2.5, *(2.5 + sign * 3.182446 * np.std(a, ddof=1) / 2 for sign in (-1, 1))])
    assert student([1.0]) == (1.0, None, None)


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
