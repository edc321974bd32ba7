"""The commands and the code of the page on the command line are such as there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bilevel_gym.cli.app import cli
from bilevel_gym.cli.settings import settings_of
from bilevel_gym.cli.sweep import grid, space

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("command", blocks("bash"))
def test_every_command_parses(command: str) -> None:
    program, name, *words = shlex.split(command.replace("\\\n", " "))
    assert program == "bilevel-gym"
    given: dict[str, Any] = cli.commands[name].make_context(name, words).params
    if name == "train" and given["resume"] is None:
        kwargs = {key: item for key, item in given.items() if key.endswith("_kwargs")}
        chosen = {key: given[key] for key in ("env", "leader", "follower", "n_timesteps", "n_iterations")}
        assert settings_of({**chosen, **kwargs}).budget > 0
    assert grid(given.get("grid") or ())
    space(given.get("space") or ())


def test_every_command_is_on_the_page() -> None:
    assert all(f"bilevel-gym {name} " in PAGE or f"bilevel-gym {name}\n" in PAGE for name in cli.commands)


def test_its_table_is_read() -> None:
    (table,) = (yaml.safe_load(block) for block in blocks("yaml"))
    found = settings_of({"env": "StackelbergGame-v0", "follower": "A2C"}, table)
    assert found.leader_kwargs["penalty"] == "ValuePenalty(lam=5)"


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, held)
    assert held["leader"].iteration < 300
    assert held["enough"].best_mean_reward >= 5.9
