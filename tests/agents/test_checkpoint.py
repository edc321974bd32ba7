"""Checkpoints: killed processes, signals, disks that are full, folders that are read-only."""

from __future__ import annotations

import os
import resource
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bilevel_gym  # noqa: F401  registers the environments
from benchmarks.survival import contents, differences, survive
from bilevel_gym.agents import Checkpoint, TabularPBRL
from bilevel_gym.agents.files import clear_parts, write_whole

TWO = "bilevel_gym/TwoState-v0"


def sent(number: int, at: int) -> Any:
    """A callback that sends a signal to this process after an iteration."""
    return lambda leader: os.kill(os.getpid(), number) if leader.iteration == at else None


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """SIGINT raises, as at a prompt: a shell's background jobs start with it ignored."""
    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, held)


# --- intervals and the end --------------------------------------------------------------------------------------------


def test_checkpoints_come_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    path, seen = tmp_path / "leader.zip", []
    checkpoint = Checkpoint(tmp_path / "leader", every=4)
    TabularPBRL(TWO).learn(10, [checkpoint, lambda _: seen.append(checkpoint.saved)])
    assert seen == [None] * 3 + [4] * 4 + [8] * 3
    assert checkpoint.saved == 10
    loaded = TabularPBRL.load(path)
    assert (loaded.iteration, loaded.remaining_timesteps) == (10, 0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["leader.zip"]


def test_an_error_leaves_the_last_checkpoint_of_a_whole_iteration(tmp_path: Path) -> None:
    def fail(leader: Any) -> None:
        if leader.iteration == 6:
            raise ZeroDivisionError

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        TabularPBRL(TWO).learn(10, [Checkpoint(tmp_path / "leader", every=4), fail])
    assert signal.getsignal(signal.SIGINT) is handler
    assert TabularPBRL.load(tmp_path / "leader").iteration == 4


@pytest.mark.parametrize("callback", [3, [Checkpoint, 3], "leader.zip"])
def test_what_is_no_callback_is_named(callback: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^callback: expected a callable that takes the leader, one of SB3's, or several"
    ):
        TabularPBRL(TWO).learn(3, callback)


# --- signals ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_saves_and_interrupts_and_the_run_goes_on_to_the_bit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, handler = tmp_path / "leader.zip", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        TabularPBRL(TWO).learn(20, [sent(signal.SIGINT, 7), Checkpoint(path, every=100)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert "SIGINT: saving" in capfd.readouterr().err
    loaded = TabularPBRL.load(path)
    assert loaded.iteration == 7
    unbroken = TabularPBRL(TWO).learn(20)
    found = [contents(leader.save(tmp_path / name)) for leader, name in ((loaded.resume(), "a"), (unbroken, "b"))]
    assert differences(found[0], found[1]) == []


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    path = tmp_path / "leader.zip"

    def twice(leader: Any) -> None:
        if leader.iteration == 7:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        TabularPBRL(TWO).learn(20, [twice, Checkpoint(path, every=5)])
    assert TabularPBRL.load(path).iteration == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_handler_that_lets_the_signal_pass_ends_learning(number: int, tmp_path: Path) -> None:
    caught: list[int] = []
    held = signal.signal(number, lambda number, _: caught.append(number))
    try:
        leader = TabularPBRL(TWO).learn(20, [sent(number, 7), Checkpoint(tmp_path / "leader", every=5)])
    finally:
        signal.signal(number, held)
    assert caught == [number]
    assert leader.iteration == 7 == TabularPBRL.load(tmp_path / "leader").iteration


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_so(number: int, tmp_path: Path) -> None:
    """As under ``nohup``, and for the jobs that a shell runs in the background."""
    held = signal.signal(number, signal.SIG_IGN)
    try:
        leader = TabularPBRL(TWO).learn(10, [sent(number, 7), Checkpoint(tmp_path / "leader", every=5)])
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, held)
    assert leader.iteration == 10


def test_a_signal_in_the_first_evaluation_is_heeded_after_the_first_iteration(tmp_path: Path) -> None:
    leader = TabularPBRL(TWO)
    evaluate = leader.method.evaluate

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments)

    leader.method.evaluate = interrupted
    with pytest.raises(KeyboardInterrupt):
        leader.learn(20, Checkpoint(tmp_path / "leader", every=100))
    assert TabularPBRL.load(tmp_path / "leader").iteration == 1


def test_in_another_thread_signals_are_left_alone(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: TabularPBRL(TWO).learn(5, Checkpoint(tmp_path / "leader", every=2)))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert TabularPBRL.load(tmp_path / "leader").iteration == 5


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk() -> Any:
    """No file may grow beyond 2 kB: what a full disk does to a write."""
    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, held[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, held)


def test_a_full_disk_is_an_error_and_what_was_there_stays(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "leader.zip"
    leader = TabularPBRL(TWO).learn(3)
    before = leader.save(path).read_bytes()
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match=r"File too large; the old file is untouched: .*leader.zip"):
        leader.learn(5).save(path)
    with pytest.raises(OSError, match=r"File too large; no file was left there: .*other.zip"):
        leader.save(tmp_path / "other.zip")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["leader.zip"]


def test_learning_goes_on_over_a_full_disk(tmp_path: Path) -> None:
    path, held = tmp_path / "leader.zip", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_and_empty(leader: Any) -> None:
        full = 6 <= leader.iteration < 12
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048 if full else held[0], held[1]))

    with pytest.warns(RuntimeWarning, match=r"^checkpoint: .* at iteration 8, .* last checkpoint: iteration 4"):
        leader = TabularPBRL(TWO).learn(10, [fill_and_empty, Checkpoint(path, every=4)])
    resource.setrlimit(resource.RLIMIT_FSIZE, held)
    assert leader.iteration == 10
    assert TabularPBRL.load(path).iteration == 4
    leader.resume(Checkpoint(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="x cannot cross X")
        leader.learn(4, [fill_and_empty, Checkpoint(path, every=4)])
    assert TabularPBRL.load(path).iteration == 4


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_to_is_named_before_any_work() -> None:
    with pytest.raises(
        ValueError, match=r"^path: expected a file in a folder that can be written to, got '/proc/leader"
    ):
        Checkpoint("/proc/leader.zip")
    with pytest.raises(OSError, match="no file was left there"):
        TabularPBRL(TWO).save("/proc/leader.zip")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "leader.zip").mkdir()
    with pytest.raises(ValueError, match=r"^path: expected a file, got .*, which is a folder"):
        Checkpoint(tmp_path / "leader.zip")
    with pytest.raises(IsADirectoryError):
        TabularPBRL(TWO).save(tmp_path / "leader.zip")


def test_what_killed_writers_left_is_cleared(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "leader.zip", lambda file: None)
    for name in ("leader.zip.0123abcd.part", "leader.zip.part", "other.zip.0123abcd.part"):
        (tmp_path / name).touch()
    clear_parts(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"leader.zip", "leader.zip.part", "other.zip.0123abcd.part"}


def test_a_file_has_the_rights_that_others_have(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = TabularPBRL(TWO).save(tmp_path / "leader.zip")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "leader.zip"
    link.symlink_to(tmp_path / "disk" / "leader.zip")
    TabularPBRL(TWO).save(link)
    assert link.is_symlink()
    assert (tmp_path / "disk" / "leader.zip").is_file()


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kills"), [("TabularPBRL", 2), ("PBRL, DQN", 1)])
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(name: str, kills: int) -> None:
    """``python -m benchmarks survival`` kills more runs, and each twenty times."""
    found = survive(name, kills)
    assert found["kills"] >= 1
    assert found["exit_code"] == 0
    assert found["differences"] == {"leader.zip": [], "final.zip": [], "log": []}
    assert found["left"] == ["final.zip", "leader.zip", "log"]
