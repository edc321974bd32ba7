"""The benchmarks' command line: what it refuses, before any work is lost."""

import pytest

from benchmarks.__main__ import QUICK, parse
from benchmarks.four_rooms import CELLS


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
