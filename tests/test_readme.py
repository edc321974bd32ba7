"""The README: its commands and its code run unchanged, except for fewer steps; its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import pettingzoo
import pytest

from bilevel_gym.agents import Rollouts
from bilevel_gym.agents.plan import Plan
from bilevel_gym.cli.app import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WHOLE = os.environ.get("README_WHOLE") == "1"
"""Whether to take as many steps as the README does, which takes minutes."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shortened(text: str) -> str:
    """With a hundredth of the steps where these are tens of thousands, and few of a follower's between two of the leader's."""
    if WHOLE:
        return text
    return re.sub(r"follower_steps=\d+", "follower_steps=64", re.sub(r"\b([\d_]+)0_000\b", r"\g<1>00", text))


def shortened_command(words: list[str]) -> list[str]:
    """With few steps or iterations, whether the command says how many or leaves that to the tuned settings."""
    words = [shortened(word) for word in words]
    if WHOLE or words[0] not in ("train", "sweep") or {"--n-timesteps", "--help"} & set(words):
        return words
    if "--n-iterations" in words:
        words[words.index("--n-iterations") + 1] = "10"
        return words
    return [*words, "--n-iterations", "10"]


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def test_its_commands_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Plan, "require_iteration", lambda plan: None)  # the budgets are cut
    verbs = []
    for program, *words in commands():
        assert program == "bilevel-gym"
        with pytest.raises(SystemExit) as ended:
            main(shortened_command(words))
        assert ended.value.code == 0, (words, capsys.readouterr().err)
        verbs.append(words[0])
    assert verbs == ["list", "train", "record", "train", "evaluate", "plot", "train", "sweep", "train"]
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert {"curves.png", "runs/Hypergradient/FourRooms-v0_1/follower.gif", "runs/sweep/summary.json"} <= left


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_its_code_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Plan, "require_iteration", lambda plan: None)  # the budgets are cut
    if not WHOLE:
        monkeypatch.setattr(Rollouts.__init__, "__defaults__", (8, *(Rollouts.__init__.__defaults__ or ())[1:]))
    held: dict[str, Any] = {}
    exec(shortened(blocks("python")[number]), held)
    assert len(held) > 3


@pytest.mark.long
def test_the_first_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """On another processor the last digits differ: the start is exact, the end to what walking around costs."""

    def read(text: str) -> list[float]:
        return [float(number) for number in re.findall(r"-?\d+\.\d*", text)]

    exec(blocks("python")[0], {})
    (x, before, learned, after), told = read(capsys.readouterr().out), read(blocks("text")[0])
    assert (x, before) == pytest.approx(told[:2], rel=1e-6)
    assert after == pytest.approx(told[3], rel=1e-6)
    assert learned < -0.05


@pytest.mark.skipif(WHOLE, reason="nothing is shortened")
def test_what_is_shortened_is_the_steps() -> None:
    assert shortened("n=200_000 1_200_000 n_states:20 100") == "n=2000 1_2000 n_states:20 100"
    assert shortened("n_envs=8, follower_steps=1024") == "n_envs=8, follower_steps=64"


def test_what_it_makes_and_installs_is_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^    |`)make (\w+)", README, re.MULTILINE)) <= targets
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in re.findall(r"pip install \"?\.\[(\w+)\]|extra `(\w+)`", README):
        assert re.search(rf"^{''.join(name)} = \[", extras, re.MULTILINE), name


def test_its_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_its_table_has_every_environment() -> None:
    ids = [name for name in (*gym.registry, *pettingzoo.parallel_registry) if name.startswith("bilevel_gym/")]
    there = {name.removeprefix("bilevel_gym/").replace("_v0", "-v0") for name in ids} - {"UnderLeader-v0"}
    assert {name.replace("_v0", "-v0") for name in re.findall(r"`(?:bilevel_gym/)?(\w+[-_]v0)`", README)} == there
