"""Files of settings that others wrote: they name no code without a flag, and are no larger than settings are."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from bilevel_gym.cli.settings import DEEPEST, LARGEST, Settings, read, settings_of

from .conftest import Call

ONE = ("--env", "TwoState-v0", "--leader", "TabularPBRL", "-n", "2")
MODULE = "from pathlib import Path\nPath('owned').write_text('')\nimport gymnasium as gym, bilevel_gym\n"
MINE = MODULE + "def world(**_):\n    return gym.make('bilevel_gym/TwoState-v0')\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


FORGED: dict[str, dict[str, Any]] = {
    "a command as environment": {"env": "subprocess:Popen", "env_kwargs": {"args": ["touch", "owned"]}},
    "a module as environment": {"env": "theirs:world"},
    "a module as leader": {"leader": "theirs:Path"},
    "a module as follower": {"follower": "theirs:world", "follower_kwargs": {"x": 1}},
    "a module in an environment's id": {
        "env": "bilevel_gym/UnderLeader-v0",
        "env_kwargs": {"env_id": "theirs:TwoState-v0"},
    },
    "the same within a text": {"env_kwargs": {"a": "dict(b=['thei' 'rs\\x3aTwoState-v0'])"}},
    "a file that a part writes": {"env_kwargs": {"a": "FileLabeller('owned')"}},
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_runs_folder_runs_nothing_unasked(call: Call, kind: str) -> None:
    run = Path(json.loads(call("train", *ONE, "--json").out)["run"])
    Path("theirs.py").write_text(MINE)
    settings = yaml.safe_load((run / "settings.yml").read_text()) | FORGED[kind]
    (run / "settings.yml").write_text(yaml.safe_dump(settings))
    commands = [("evaluate", str(run)), ("record", str(run)), ("card", str(run)), ("train", "--resume", str(run))]
    for words in [*commands, ("train", "--conf-file", str(run / "settings.yml"))]:
        answer = call(*words)
        assert (answer.code, answer.out) == (2, ""), words
        assert answer.err.count("\n") == 1
        assert "got " in answer.err
        assert "--trust-code" in answer.err or "expected a call of dict or one of" in answer.err
        assert not Path("owned").exists(), words


def test_what_is_trusted_is_run(call: Call) -> None:
    Path("mine.py").write_text(MINE)
    answer = call("train", "--env", "mine:world", "--leader", "TabularPBRL", "-n", "2", "--json")
    assert answer.code == 0, answer.err  # what the command line names itself needs no flag
    run = json.loads(answer.out)["run"]
    for words in (("evaluate", run), ("train", "--resume", run), ("train", "--conf-file", f"{run}/settings.yml")):
        assert call(*words).code == 2
        assert call(*words, "--trust-code").code == 0


def test_a_file_may_not_name_code_for_one_setting_in_a_table() -> None:
    env = "bilevel_gym/TwoState-v0"
    table = {env: {"PBRL": {"PPO": {"n_timesteps": 5, "env_kwargs": {"x": "os:path"}}}}}
    with pytest.raises(ValueError, match="--conf-file: expected settings that name no code, or --trust-code"):
        settings_of({"env": env}, table)
    assert settings_of({"env": env}, table, trust_code=True).env_kwargs == {"x": "os:path"}


def billions(levels: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels))])


BOMBS = {
    "aliases": (billions(), "an alias is not read"),
    "aliases in settings": ("env: &e TwoState-v0\nleader: *e", "an alias is not read"),
    "an alias of itself": ("env: &e [*e]", "an alias is not read"),
    "deep": ("env: " + "[" * 100_000, f"deeper than {DEEPEST} levels"),
    "deep blocks": ("".join("  " * i + "a:\n" for i in range(100)), f"deeper than {DEEPEST} levels"),
    "large": ("env: " + "a" * LARGEST, f"expected a file of at most {LARGEST:,} bytes"),
    "a number without end": ("n_timesteps: " + "9" * 100_000, "expected YAML, got conf.yml"),
    "a date that is none": ("env: 2001-99-99", "expected YAML, got conf.yml"),
    "a type's own words": ("env: !!timestamp x", "expected YAML, got conf.yml"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_stay_small(call: Call, kind: str) -> None:
    text, message = BOMBS[kind]
    Path("conf.yml").write_text(text)
    start = time.process_time()
    answer = call("train", *ONE, "--conf-file", "conf.yml")
    assert time.process_time() - start < 5.0
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert message in answer.err
    assert answer.err.startswith("bilevel-gym: error: --conf-file: expected ")
    run = Path(json.loads(call("train", *ONE, "--json").out)["run"])
    (run / "settings.yml").write_text(text)
    assert message.replace("conf.yml", str(run / "settings.yml")) in call("evaluate", str(run)).err


def test_settings_of_the_usual_size_are_read() -> None:
    settings = Settings("bilevel_gym/TwoState-v0", "PBRL", "PPO", 5, leader_kwargs={"x0": [0.125] * 5_000})
    Path("settings.yml").write_text(settings.as_yaml())
    assert settings_of({}, read("settings.yml")) == settings


def test_records_that_are_none_are_not_drawn(call: Call) -> None:
    pytest.importorskip("matplotlib")
    run = Path(json.loads(call("train", *ONE, "--json").out)["run"])
    records = (run / "progress.json").read_text()
    odd = [
        "[" * 100_000,
        '{"num_timesteps": "9", "leader/leader_return": [1]}',
        '{"num_timesteps": 1' + "0" * 9000 + "}",
    ]
    (run / "progress.json").write_text("\n".join([records, *odd]))
    assert call("plot", str(run)).code == 0
