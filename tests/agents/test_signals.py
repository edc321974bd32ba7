"""Signals to the whole process group, as a terminal or a scheduler sends them: workers leave them to the leader's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bilevel_gym.agents import PBRL

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see a process group")

SCRIPT = """
if __name__ == "__main__":
    import signal, sys
    import torch
    from stable_baselines3 import A2C
    from bilevel_gym.agents import PBRL, Checkpoint, PBRLConfig, Rollouts

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and this one under nohup
    small = {"n_envs": 2, "follower_steps": 64, "warmup_steps": 64, "estimator": Rollouts(2)}
    how = {"subproc": {"vec_env": "subproc"}, "side_by_side": {"side_by_side": True}}[sys.argv[1]]
    config = PBRLConfig(**small, **how)
    leader = PBRL("bilevel_gym/StackelbergGame-v0", A2C, config=config, env_kwargs={"n_states": 4})
    evaluate = leader.method.evaluate

    def evaluate_and_tell(*arguments):  # within the checkpoint's reach, before the first iteration
        print("evaluates at", leader.iteration, flush=True)
        return evaluate(*arguments)

    leader.method.evaluate = evaluate_and_tell
    tell = lambda leader: print("iteration", leader.iteration, flush=True)
    leader.learn(1_000_000, [Checkpoint(sys.argv[2], every=1000), tell])
"""


def group(number: int) -> list[str]:
    """The command lines of all processes of a group that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, leader = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(leader) == number and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended meanwhile
            continue
    return found


@contextmanager
def learning(how: str, folder: Path, until: str) -> Iterator[subprocess.Popen[str]]:
    """A leader that learns in a process group of its own, once it has printed this line."""
    (folder / "run.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(folder / "run.py"), how, str(folder / "leader.zip")]
    with (folder / "err").open("w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert any(line.strip() == until for line in process.stdout), (folder / "err").read_text()
        yield process
    finally:
        if group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def left_of(number: int) -> list[str]:
    """What of a group is alive when it has had a minute to end."""
    end = time.monotonic() + 60.0
    while group(number) and time.monotonic() < end:
        time.sleep(0.05)
    return group(number)


@pytest.mark.parametrize(
    ("how", "name", "until"),
    [
        ("subproc", "SIGINT", "iteration 2"),
        pytest.param("subproc", "SIGTERM", "evaluates at 0", marks=pytest.mark.long),
        pytest.param("side_by_side", "SIGINT", "evaluates at 0", marks=pytest.mark.long),
        ("side_by_side", "SIGTERM", "iteration 2"),
        ("side_by_side", "SIGHUP", "evaluates at 0"),
    ],
)
def test_the_iteration_is_finished_and_saved_and_the_signal_does_its_work(
    how: str, name: str, until: str, tmp_path: Path
) -> None:
    number = getattr(signal, name)
    with learning(how, tmp_path, until) as process:
        while len(group(process.pid)) < 3:  # with the fork server, which takes seconds to begin
            time.sleep(0.01)
        os.killpg(process.pid, number)
        assert process.wait(timeout=300) == -number
        assert left_of(process.pid) == []
    told = (tmp_path / "err").read_text()
    assert f"{name}: saving" in told
    assert "died" not in told
    leader = PBRL.load(tmp_path / "leader.zip")
    assert leader.iteration == (1 if until == "evaluates at 0" else 3)
    leader.close()


def test_a_followers_worker_ends_with_its_parent(tmp_path: Path) -> None:
    with learning("side_by_side", tmp_path, "iteration 2") as process:
        assert len(group(process.pid)) >= 3
        process.kill()
        process.wait()
        assert left_of(process.pid) == []
