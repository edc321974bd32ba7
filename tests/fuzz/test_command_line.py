"""The command line and the files that it reads: whatever stands there, exit codes as promised and an error in one line."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bilevel_gym.cli.app import main
from bilevel_gym.cli.settings import build, read, settings_of
from bilevel_gym.cli.values import value
from bilevel_gym.envs.mdp.tntp import read_tntp
from tests.fuzz.hostile import DELETED, changed, damaged, fuzz, json_values, little_memory, paths

TRAIN = ("train", "--env", "TwoState-v0", "--leader", "TabularPBRL", "-n", "4")


def said(*words: str) -> tuple[int, str]:
    """A command's exit code and its last line on stderr, in which no crash is."""
    err = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
    line = (err.getvalue().splitlines() or [""])[-1]
    assert code in (0, 1, 2), line
    if code == 1:  # a run that broke off by what it was given, or several of a sweep
        clear = (
            "ValueError: ",
            "FloatingPointError: ",
            "OSError: ",
            "MemoryError: ",
            "runs failed; the others are done",
        )
        assert any(text in line for text in clear), line
    elif code == 2:
        assert line.startswith("bilevel-gym: error: ")
        assert len(line) > len("bilevel-gym: error: ")
    failed = [text for text in err.getvalue().splitlines() if " failed: " in text]
    assert not [text for text in failed if re.search(r": \w*(Type|Attribute|Key|Index|Assertion)Error", text)], failed
    return code, line


def told(error: ValueError) -> None:
    if not str(error):
        raise AssertionError("an error that says nothing") from error


# --- words --------------------------------------------------------------------------------------------------------------

WORDS = [
    "8", "-1", "1e400", "true", "nan", "None", "SGD", "nn.Tanh", "nn.Module", "os.system", "Rollouts", "Geometric", "Linear",
    "BellmanPenalty", "Softmax", "SoftPolicyIteration", "__import__", "x", "lr", "'a'", "b'a'", "...", "1j", "(1, 2)", "",
]  # fmt: skip


def values() -> st.SearchStrategy[str]:
    """Texts that are nearly what a value may be."""

    def within(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        two = st.tuples(inner, inner, st.sampled_from(WORDS))
        return st.one_of(
            two.map(lambda p: f"{p[2]}({p[0]}, {p[1]})"),
            two.map(lambda p: f"{p[2]}(start={p[0]}, end={p[1]})"),
            two.map(lambda p: f"dict(a={p[0]}, net_arch={p[1]})"),
            two.map(lambda p: f"[{p[0]}, {p[1]}]"),
            two.map(lambda p: f"{{{p[0]}: {p[1]}, **{p[2]}}}"),
            two.map(lambda p: f"{{{p[0]}: {p[1]}}}"),
            two.map(lambda p: f"{p[0]}.{p[2]}"),
            two.map(lambda p: f"-{p[0]} + {p[1]}"),
            inner.map(lambda text: f"lin_{text}"),
            inner.map(lambda text: f"lambda: {text}"),
            inner.map(lambda text: f"({text}"),
        )

    return st.recursive(st.one_of(st.sampled_from(WORDS), st.text(max_size=12)), within, max_leaves=6)


@fuzz(150)
@given(values())
def test_a_value(text: str) -> None:
    try:
        value(text, "--leader-kwargs x")
    except ValueError as error:
        told(error)


KEYS = [
    "learning_rate",
    "penalty",
    "oracle",
    "x0",
    "follower",
    "tau",
    "optimizer_class",
    "estimator",
    "max_grad_norm",
    "seed",
]
FORMS = ["{0}:{1}", "{0}={1}", "{1}", ":{1}", "{0}:"]


@fuzz(25)
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), values(), st.sampled_from(FORMS)), max_size=3), st.sampled_from([2, 3, 5])
)
def test_arguments_of_a_run(kwargs: list[tuple[str, str, str]], place: int) -> None:
    given = [form.format(key, text) for key, text, form in kwargs]
    kind = ("--leader-kwargs", "--env-kwargs", "--grid")[(2, 3, 5).index(place)]
    words = [word for word in given if "\x00" not in word]
    with tempfile.TemporaryDirectory() as folder, little_memory():
        if kind == "--grid":
            words = [f"leader.{word}" for word in words]
            said("sweep", *TRAIN[1:], "-f", folder, "--backend", "serial", *([kind, *words] if words else []))
        else:
            said(*TRAIN, "-f", folder, *([kind, *words] if words else []))


# --- files --------------------------------------------------------------------------------------------------------------


@cache
def run_folder() -> Path:
    """A run that was made."""
    root = Path(tempfile.mkdtemp(prefix="fuzz"))
    assert said(*TRAIN, "-f", str(root))[0] == 0
    (folder,) = root.glob("*/*")
    return folder


@fuzz(40)
@given(st.data())
def test_a_run_whose_files_are_damaged(data: Any) -> None:
    with tempfile.TemporaryDirectory() as root, little_memory():
        folder = Path(root) / "run"
        shutil.copytree(run_folder(), folder)
        file = data.draw(st.sampled_from(sorted(folder.iterdir())))
        if file.suffix in (".yml", ".json") and data.draw(st.booleans()):
            tree = yaml.safe_load(
                file.read_text().splitlines()[0] if file.name == "progress.json" else file.read_text()
            )
            part = st.one_of(json_values(), st.just(DELETED))
            tree = changed(tree, data.draw(st.sampled_from(paths(tree))), data.draw(part))
            file.write_text(json.dumps(tree) + "\n")
        else:
            file.write_bytes(data.draw(damaged(file.read_bytes())))
        command = data.draw(st.sampled_from(["evaluate", "plot", "train", "card"]))
        more = {"train": ["--resume"], "plot": ["-o", f"{root}/curves.png"]}.get(command, [])
        if command == "train" and too_long(folder):
            return
        said(command, *more, str(folder))


def too_long(folder: Path) -> bool:
    """Whether the settings, read as they are, ask for more than a test may take."""
    try:
        return float(read(folder / "settings.yml")["n_iterations"]) > 1000
    except (ValueError, KeyError, TypeError, OverflowError):
        return False


@fuzz(30)
@given(st.data())
def test_a_file_of_settings(data: Any) -> None:
    file = Path(tempfile.mkdtemp(prefix="fuzz")) / "settings.yml"
    good = (run_folder() / "settings.yml").read_text()
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged(good.encode())))
    else:
        tree: Any = {"bilevel_gym/TwoState-v0": {"TabularPBRL": {"exact": yaml.safe_load(good)}}}
        tree = data.draw(st.sampled_from([tree, yaml.safe_load(good)]))
        tree = changed(tree, data.draw(st.sampled_from(paths(tree))), data.draw(json_values()))
        file.write_text(json.dumps(tree))
    with little_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            build(settings_of({"env": "TwoState-v0", "leader": "TabularPBRL"}, read(file)))
        except ValueError as error:
            told(error)


@fuzz(20)
@given(st.data())
def test_a_world_under_a_leader(data: Any) -> None:
    world: Any = {
        "env_id": "bilevel_gym/TwoState-v0",
        "env_kwargs": {"gamma": 0.8},
        "x": [0.5],
        "observe_commitment": True,
    }
    file = Path(tempfile.mkdtemp(prefix="fuzz")) / "world.json"
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged(json.dumps(world).encode())))
    else:
        file.write_text(json.dumps(changed(world, data.draw(st.sampled_from(paths(world))), data.draw(json_values()))))
    try:
        gym.make("bilevel_gym/UnderLeader-v0", world=str(file)).reset(seed=0)
    except ValueError as error:
        told(error)


NET = """<NUMBER OF ZONES> 2
<NUMBER OF NODES> 3
<FIRST THRU NODE> 1
<NUMBER OF LINKS> 4
<END OF METADATA>
~ init term capacity length free_flow_time b power speed toll type ;
1 3 100 1 1.0 0.15 4 0 0 1 ;
3 1 100 1 1.0 0.15 4 0 0 1 ;
3 2 100 1 2.0 0.15 4 0 0 1 ;
2 3 100 1 2.0 0.15 4 0 0 1 ;
"""
TRIPS = """<NUMBER OF ZONES> 2
<TOTAL OD FLOW> 15.0
<END OF METADATA>
Origin 1
 1 : 0.0; 2 : 10.0;
Origin 2
 1 : 5.0; 2 : 0.0;
"""


@fuzz(40)
@given(st.data())
def test_a_road_network(data: Any) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    net, trips = folder / "a_net.tntp", folder / "a_trips.tntp"
    net.write_text(NET)
    trips.write_text(TRIPS)
    read_tntp(net)
    file = data.draw(st.sampled_from([net, trips]))
    lines = file.read_text().split()
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    else:
        odd = st.sampled_from(
            ["", "x", "-1", "0", "nan", "1e308", str(2**70), "<END OF METADATA>", ";", "~", "Origin 9"]
        )
        old = data.draw(st.sampled_from(lines))
        file.write_text(file.read_text().replace(old, data.draw(odd), 1))
    with little_memory():
        try:
            read_tntp(net)
        except ValueError as error:
            if str(folder) not in str(error):
                raise AssertionError("an error that does not name the file") from error


def test_what_is_no_call_stays_text() -> None:
    for text in ("__import__('os').system('true')", "(lambda: 1)()", "os.system", "x if y else z"):
        with contextlib.suppress(ValueError):
            assert value(text, "x") == text
    with pytest.raises(ValueError, match="x: expected a call of dict or one of"):
        value("exit(3)", "x")
