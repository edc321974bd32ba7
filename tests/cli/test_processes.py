"""Runs in processes of their own: what comes of them, and what signals and deaths do, to real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bilevel_gym.cli.processes import WorkerError, run_all

from .conftest import Call

TWO = ("--env", "TwoState-v0", "--leader", "TabularPBRL")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")


def work(what: str) -> Any:
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fail":
        raise ValueError("nothing to be done")
    return os.getpid(), torch.get_num_threads(), os.getpgid(0)


def test_each_run_has_a_process_and_a_death_of_its_own() -> None:
    found: dict[int, Any] = {}
    run_all(work, [("live",), ("die",), ("fail",), ("live",)], 2, found.__setitem__)
    assert sorted(found) == [0, 1, 2, 3]
    (first, threads, group), (last, *_) = found[0], found[3]
    assert (threads, group) == (1, first)
    assert len({first, last, os.getpid()}) == 3
    assert isinstance(found[1], WorkerError)
    assert str(found[1]) == "its process died (exit code -9)"
    assert str(found[2]).startswith("ValueError: nothing to be done\nTraceback")


# --- whole commands -------------------------------------------------------------------------------------------------------

INTERRUPTED = [
    "interrupted: each run in hand is saved after its iteration; once more ends them at once",
    "bilevel-gym: interrupted",
]
Begun = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Begun]:
    """Begins a command in an empty folder, in a session of its own; whatever of it is left in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bilevel_gym", *words]
        process = subprocess.Popen(
            command, cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        for pid in of_session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def of_session(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, its = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if int(its) == session and state != "Z":
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


def without_signals_ignored() -> None:
    for number in SIGNALS:  # a shell's background jobs start with SIGINT ignored
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    held = {number: signal.getsignal(number) for number in SIGNALS}
    without_signals_ignored()
    yield
    for number, handler in held.items():
        signal.signal(number, handler)


def test_a_signal_to_the_group_of_a_sweep_saves_its_runs(begun: Begun, tmp_path: Path) -> None:
    process = begun("sweep", *TWO, "-n", "1000000", "--n-seeds", "3", "--jobs", "2", "-f", "s")
    wait_for(lambda: sum(lines(path) >= 2 for path in (tmp_path / "s").glob("*/progress.json")) == 2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert [line for line in err.splitlines() if line] == INTERRUPTED
    wait_for(lambda: of_session(process.pid) == [], 5.0)
    assert len(list((tmp_path / "s").glob("*/leader.zip"))) == 2
    assert list((tmp_path / "s").glob("*/result.json")) == []


def test_workers_end_with_their_parent(begun: Begun, tmp_path: Path) -> None:
    process = begun("sweep", *TWO, "-n", "1000000", "--n-seeds", "2", "--jobs", "2", "-f", "s")
    wait_for(lambda: sum(lines(path) >= 1 for path in (tmp_path / "s").glob("*/progress.json")) == 2)
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: of_session(process.pid) == [], 5.0)


@pytest.mark.long
def test_an_interrupted_sweep_goes_on_to_the_same_numbers(begun: Begun, tmp_path: Path, call: Call) -> None:
    words = ("sweep", *TWO, "-n", "300", "--n-seeds", "2", "--jobs", "2", "--json")
    process = begun(*words, "-f", "broken")
    wait_for(lambda: any(lines(path) >= 2 for path in (tmp_path / "broken").glob("*/progress.json")))
    os.killpg(process.pid, signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if line and "done: " not in line] == INTERRUPTED
    assert list((tmp_path / "broken").glob("*/leader.zip"))
    again, whole = (call(*words, "-f", str(tmp_path / name), "--backend", "serial") for name in ("broken", "whole"))
    assert (again.code, whole.code) == (0, 0), again.err
    assert json.loads(again.out) == json.loads(whole.out)


def test_a_signal_to_the_group_of_train_saves(begun: Begun, tmp_path: Path) -> None:
    process = begun("train", *TWO, "-n", "1000000", "-f", "t")
    folder = tmp_path / "t" / "TabularPBRL" / "TwoState-v0_1"
    wait_for(lambda: lines(folder / "progress.json") >= 1)
    os.killpg(process.pid, signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err.endswith("bilevel-gym: interrupted\n")
    assert (folder / "leader.zip").is_file()
    assert not (folder / "result.json").exists()


def test_a_run_that_a_signal_ended_which_nobody_heeds_is_not_finished(begun: Begun, tmp_path: Path) -> None:
    """As a job in the background of a script is: it starts with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = begun("train", *TWO, "-n", "1000000", "-f", "t")
    folder = tmp_path / "t" / "TabularPBRL" / "TwoState-v0_1"
    wait_for(lambda: lines(folder / "progress.json") >= 2)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not (folder / "result.json").exists()
