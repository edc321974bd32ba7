"""Learning curves and moving pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bilevel_gym.cli.pictures import _on_one_grid, curves, run_folders

from .conftest import Call

ONE = ("--env", "TwoState-v0", "--leader", "TabularPBRL", "-n", "20")
SMALL = ("warmup_steps:64", "follower_steps:64", "n_envs:4")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_curves_of_runs_by_environment_and_leader(call: Call) -> None:
    words = ("--env", "TwoState-v0", "--leader", "TabularPBRL", "Hypergradient", "-n", "20", "--n-seeds", "2")
    assert call("sweep", *words, "--backend", "serial").code == 0
    folders = run_folders([Path("runs")])
    assert len(folders) == 4
    found = curves(folders, "num_timesteps", "leader_return")
    assert {env: {name: len(runs) for name, runs in lines.items()} for env, lines in found.items()} == {
        "TwoState-v0": {"TabularPBRL": 2, "Hypergradient": 2}
    }
    xs, ys = found["TwoState-v0"]["TabularPBRL"][0]
    result = json.loads(next(Path("runs/sweep").glob("*TabularPBRL*/result.json")).read_text())
    assert xs == [0, 10, 20]
    assert max(ys) == result["evaluation"]["leader_return"]
    answer = call("plot", "runs", "-o", "curves.png")
    assert (answer.code, answer.out) == (0, "curves.png\n")
    assert Image.open("curves.png").size[0] > 500
    assert call("plot", *map(str, folders), "-y", "follower_regret", "-x", "iteration", "-o", "gap.svg").code == 0
    wrong = call("plot", "runs", "-y", "speed")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert wrong.err.startswith(
        "bilevel-gym: error: --y: expected a record of these runs: evaluation_followers, evaluation_steps, follower_regret,"
    )
    assert call("plot", "runs", "-o", "curves.xyz").err.startswith(
        "bilevel-gym: error: --output: expected a file name that ends in"
    )
    assert call("plot", "nowhere").err.startswith(
        "bilevel-gym: error: RUN: expected folders of runs, with settings.yml and"
    )


def test_runs_of_different_lengths_are_drawn_where_all_have_been() -> None:
    grid, values = _on_one_grid([([0, 10, 20], [0, 1, 2]), ([0, 5, 15], [0, 5, 5])])
    np.testing.assert_array_equal(grid, [0, 5, 10, 15])
    np.testing.assert_allclose(values, [[0.0, 0.5, 1.0, 1.5], [0.0, 5.0, 5.0, 5.0]])


RUNS = {
    "exact": ONE,
    "linear-quadratic": ("--env", "LQStackelberg-v0", "--leader", "Hypergradient", "-n", "1"),
    "game": ("--env", "incentive_design_v0", "--leader", "TabularPBRL", "-n", "1"),
    "sampled": ("--env", "TwoState-v0", "--follower", "A2C", "-n", "4000", "--leader-kwargs", *SMALL),
    "search": (
        *("--env", "TwoState-v0", "--leader", "CMAES", "--follower", "A2C", "-n", "2000", "--leader-kwargs"),
        *("follower_steps:64", "n_envs:4", "rollout_envs:4", "evaluation_steps:64", "population:4"),
    ),
    "preferences": (
        *("--env", "RewardGrid-v0", "--leader", "DRLHF", "--follower", "A2C", "-n", "200", "--leader-kwargs"),
        *("labels:4", "first_labels:2", "length:5", "first_steps:64", "follower_steps:64", "n_envs:4"),
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_the_follower_under_a_trained_leader(call: Call, kind: str) -> None:
    if kind == "search":
        pytest.importorskip("cma")
    run = json.loads(call("train", *RUNS[kind], "--json").out)["run"]
    answer = call("record", run, "-n", "3")
    assert answer.code == 0, answer.err
    assert answer.out == f"{run}/follower.gif\n"
    frames = _frames(Path(answer.out.strip()))
    assert len(frames) >= 2  # PIL joins frames that are alike
    assert all(frame.shape[0] > 100 for frame in frames)
    assert any(not np.array_equal(frames[0], frame) for frame in frames[1:])


def _frames(path: Path) -> list[np.ndarray]:
    picture = Image.open(path)
    found = []
    for number in range(getattr(picture, "n_frames", 1)):
        picture.seek(number)
        found.append(np.asarray(picture.convert("RGB")))
    return found


def test_the_leader_before_training_is_another(call: Call) -> None:
    run = json.loads(call("train", *ONE, "--json").out)["run"]
    for words in (("-o", "after.gif"), ("-o", "before.gif", "--untrained")):
        assert call("record", run, "-n", "2", "--fps", "5", *words).code == 0
    before, after = (_frames(Path(name))[0] for name in ("before.gif", "after.gif"))
    assert not np.array_equal(before, after)  # the picture shows x
    assert Image.open("after.gif").info["duration"] == 200


def test_what_cannot_be_recorded(call: Call) -> None:
    run = json.loads(call("train", *ONE, "--json").out)["run"]
    answer = call("record", run, "-o", "follower.avi")
    assert (answer.code, answer.err) == (
        2,
        "bilevel-gym: error: --output: expected a file name that ends in .gif or .mp4, got follower.avi\n",
    )
    assert call("record", "nowhere").code == 2


def test_mp4(call: Call) -> None:
    pytest.importorskip("imageio_ffmpeg")
    run = json.loads(call("train", *ONE, "--json").out)["run"]
    assert call("record", run, "-n", "3", "-o", "follower.mp4").code == 0
    assert Path("follower.mp4").stat().st_size > 1000
