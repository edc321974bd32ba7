"""A stranger's leader file: it runs no code, takes little memory, and what is wrong with it is said with its name."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import PBRL, Hypergradient, PBRLConfig, Rollouts, TabularPBRL
from tests.fuzz.hostile import nested, npy, packed, parts, tiny_dqn

TWO, GAME, UNDER = "bilevel_gym/TwoState-v0", "bilevel_gym/StackelbergGame-v0", "bilevel_gym/UnderLeader-v0"
MIB = 2**20
SMALL = PBRLConfig(n_envs=2, follower_steps=8, warmup_steps=8, estimator=Rollouts(n_envs=2), eval_every=2)


@pytest.fixture(scope="module")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The entries of a good file."""
    path = TabularPBRL(TWO).learn(3).save(tmp_path_factory.mktemp("tabular") / "leader.zip")
    return parts(path.read_bytes())


def with_header(
    entries: dict[str, bytes], change: Callable[[Any], object] = lambda header: None, **parts: Any
) -> dict[str, bytes]:
    """The same with a header that was changed, or has other parts."""
    header = json.loads(entries["leader.json"])
    change(header)
    return entries | {"leader.json": json.dumps(header | parts).encode()}


# --- no code runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which modules are imported, with some that leave a mark when they are."""
    for name in ("helpers", "my-helpers", "hélpers", "json_helpers"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    (tmp_path / "package").mkdir()
    for name in ("__init__", "helpers"):
        (tmp_path / "package" / f"{name}.py").write_text(
            "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.ran"))


IDS = [
    "helpers:TwoState-v0",
    "helpers:TwoState",
    "helpers: whatever follows",
    "helpers:",
    "my-helpers:TwoState-v0",
    "hélpers:TwoState-v0",
    "package.helpers:TwoState-v0",
]


@pytest.mark.parametrize("text", IDS)
def test_an_id_in_a_file_imports_no_module(text: str, tabular: dict[str, bytes], beside: Path) -> None:
    """As the environment, among its arguments, and deeper, whatever the arguments are called."""
    world = beside / "world.json"
    world.write_text(json.dumps({"env_id": text, "env_kwargs": {}, "x": None, "observe_commitment": False}))
    sources: list[dict[str, Any]] = [
        {"env_id": text, "env_kwargs": {"dict": {}}},
        {"env_id": UNDER, "env_kwargs": {"dict": {"env_id": text}}},
        {"env_id": UNDER, "env_kwargs": {"dict": {"env_id": UNDER, "env_kwargs": {"dict": {"env_id": text}}}}},
        {"env_id": UNDER, "env_kwargs": {"dict": {"x": [0.0, [text]]}}},
        {"env_id": UNDER, "env_kwargs": {"dict": {text: 1}}},
        {"env_id": UNDER, "env_kwargs": {"dict": {"world": str(world)}}},
        {"env_id": UNDER, "env_kwargs": {"dict": {"env_id": UNDER, "env_kwargs": {"dict": {"world": str(world)}}}}},
    ]
    path = beside / "leader.zip"
    for source in sources:
        path.write_bytes(packed(with_header(tabular, source=source)))
        with pytest.raises(ValueError, match=r"to be imported first: a file never imports a module.*leader\.zip"):
            TabularPBRL.load(path)
    assert marks(beside) == []


@pytest.mark.parametrize("text", IDS)
def test_a_worlds_file_imports_no_module(text: str, beside: Path) -> None:
    world: dict[str, Any] = {"env_id": text, "env_kwargs": {}, "x": None, "observe_commitment": False}
    for found in (world, {**world, "env_id": UNDER, "env_kwargs": {"env_id": text}}):
        (beside / "world.json").write_text(json.dumps(found))
        with pytest.raises(
            ValueError, match=r"^world: expected .* to be imported first: a file never imports a module"
        ):
            gym.make(UNDER, world=str(beside / "world.json"))
    assert marks(beside) == []


def test_what_the_user_imported_is_made_again(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an id with its module, in a leader's file and in a world's; paths and addresses are no ids."""
    (beside / "my_two_states.py").write_text(
        "import gymnasium as gym\nfrom bilevel_gym.envs.two_state import TwoStateEnv\n"
        "gym.register('MyTwoState-v0', entry_point=TwoStateEnv)\n"
    )
    path = Hypergradient("my_two_states:MyTwoState-v0").learn(2).save(beside / "leader.zip")
    assert Hypergradient.load(path).iteration == 2
    world: dict[str, Any] = {
        "env_id": "my_two_states:MyTwoState-v0",
        "env_kwargs": {},
        "x": None,
        "observe_commitment": False,
    }
    (beside / "world.json").write_text(json.dumps(world))
    assert gym.make(UNDER, world=str(beside / "world.json")).reset(seed=0)
    monkeypatch.delitem(sys.modules, "my_two_states")
    with pytest.raises(ValueError, match="problem: expected the problem again, or my_two_states to be imported"):
        Hypergradient.load(path)
    assert Hypergradient.load(path, gym.make("my_two_states:MyTwoState-v0")).iteration == 2


def test_a_file_names_no_class_to_make(tabular: dict[str, bytes], beside: Path) -> None:
    """Neither as a setting, nor as an optimiser, nor as a follower."""
    path = beside / "leader.zip"
    for bad in (
        {"class": "json_helpers:Anything", "fields": {}},
        {"class": "subprocess:Popen", "fields": {"args": ["touch", "popen.ran"]}},
        {"class": "Linear", "fields": {"start": 1.0, "end": 1.0, "__class__": 3}},
        {"optimizer": "Tensor"},
        {"optimizer": "lr_scheduler"},
    ):
        arguments = json.loads(tabular["leader.json"])["arguments"]
        arguments["config"]["fields"]["optimizer_class"] = bad
        path.write_bytes(packed(with_header(tabular, arguments=arguments)))
        with pytest.raises(ValueError, match=r"leader\.zip"):
            TabularPBRL.load(path)
    saved = PBRL(TWO, A2C, config=SMALL).save(beside / "sampled.zip")
    for name in ("json_helpers:A2C", "os:system", "stable_baselines3.common.utils:set_random_seed", "sb3_contrib:ars"):
        path.write_bytes(packed(with_header(parts(saved.read_bytes()), follower=name)))
        with pytest.raises(ValueError, match=r"follower: expected.*leader\.zip"):
            PBRL.load(path)
    assert marks(beside) == []


# --- little memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """A file that would take much: how it is made of a good one, and what is said."""

    make: Callable[[dict[str, bytes]], dict[str, Any]]
    says: str
    method: int = zipfile.ZIP_STORED
    """How the last entry is compressed."""


def extra(text: str) -> Callable[[dict[str, bytes]], dict[str, Any]]:
    """JSON beside what is asked for."""
    return lambda entries: entries | {"leader.json": entries["leader.json"][:-1] + f', "extra": {text}}}'.encode()}


def as_values(tree: Any, data: bytes = b"") -> Callable[[dict[str, bytes]], dict[str, Any]]:
    """Something else as the warm start, and an array 99."""

    def make(entries: dict[str, bytes]) -> dict[str, Any]:
        found = with_header(entries, lambda header: header["state"]["state"].update(evaluation_V=tree))
        return found | ({"arrays/99.npy": data} if data else {})

    return make


def said(shape: tuple[int, ...], data: bytes) -> bytes:
    """An array that is said to be of a shape."""
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': %s, }" % str(shape).encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data


def rate(value: Any) -> Callable[[dict[str, bytes]], dict[str, Any]]:
    return lambda entries: with_header(
        entries, lambda header: header["state"]["state"]["optimizer"]["param_groups"][0].update(lr=value)
    )


def of_replay(change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], dict[str, Any]]:
    """The last entry of a replay buffer, changed."""

    def make(entries: dict[str, bytes]) -> dict[str, Any]:
        name = [name for name in entries if name.startswith("replay/")][-1]
        held = dict(entries)
        return held | {name: change(held.pop(name))}

    return make


ATTACKS = {
    "lists in lists as a rate": Attack(rate(nested(900)), "leader file"),
    "long lists as a rate": Attack(rate([[0.1] * 500] * 500), "optimizer: expected"),
    "lists": Attack(extra("[" + "[]," * (4 * MIB) + "0]"), "JSON of at most"),
    "few lists, again and again": Attack(extra("[" + "[[[[[[[[]]]]]]]]," * (MIB // 2) + "0]"), "JSON of at most"),
    "dicts": Attack(extra("[" + '{"a":1},' * (3 * MIB // 2) + "0]"), "JSON of at most"),
    "numbers": Attack(extra("[" + "0.5," * (8 * MIB) + "0]"), "JSON of at most"),
    "texts": Attack(extra("[" + '"ab",' * (5 * MIB) + "0]"), "JSON of at most"),
    "blanks": Attack(extra(" " * 60 * MIB + "0"), "leader.json: expected at most"),
    "depth": Attack(extra("[" * 10**6 + "]" * 10**6), "leader file"),
    "letters of four bytes": Attack(extra('"' + "\U0001f600" * (8 * MIB) + '"'), "leader file"),
    "records": Attack(
        lambda entries: with_header(
            entries,
            lambda header: header["state"]["run"].update(history=header["state"]["run"]["history"][:1] * 50_000),
        ),
        "JSON of at most",
    ),
    "one array many times": Attack(as_values([{"array": 99}] * 3000, npy(np.zeros(MIB // 8))), "a state of at most"),
    "an array that is large": Attack(as_values({"array": 99}, npy(np.zeros(11 * MIB))), "a state of at most"),
    "an array that is none of the problem's": Attack(
        as_values({"array": 99}, npy(np.zeros(9 * MIB))), "evaluation_V: expected a shape"
    ),
    "an array that is said to be large": Attack(as_values({"array": 99}, said((2**40,), bytes(80))), "is said to be"),
    "an array that is said to be small": Attack(
        as_values({"array": 99}, said((1,), bytes(80))), "longer than its header says"
    ),
    "an array of less than nothing": Attack(as_values({"array": 99}, said((-1, -8), bytes(64))), "numbers in C order"),
    "an array that unfolds": Attack(
        as_values({"array": 99}, npy(np.zeros(40 * MIB))), "is compressed", zipfile.ZIP_DEFLATED
    ),
    "a header that unfolds": Attack(
        lambda entries: {name: entries[name] for name in reversed(entries)}, "is compressed", zipfile.ZIP_DEFLATED
    ),
    "entries": Attack(lambda entries: entries | {f"{i:040d}": b"" for i in range(30_000)}, "too many entries"),
    "replay that unfolds": Attack(
        of_replay(lambda data: data + bytes(300 * MIB)), "longer than its header says", zipfile.ZIP_DEFLATED
    ),
    "replay that unfolds without bound": Attack(
        of_replay(lambda data: data + bytes(300 * MIB)), "another method", zipfile.ZIP_BZIP2
    ),
    "replay of large draws": Attack(
        lambda entries: with_header(
            entries,
            lambda header: header["state"]["state"]["followers"]["penalised"]["replay"].update(draws=["<f8", [10**7]]),
        ),
        "draws: expected at most",
    ),
}


def test_a_small_file_takes_little_memory(tabular: dict[str, bytes], tmp_path: Path) -> None:
    """Less than 256 MiB beyond what the leader itself needs, used or not; each is refused with its name."""
    sampled = PBRL(GAME, tiny_dqn, config=SMALL, env_kwargs={"n_states": 2}).learn(300)
    replayed = parts(sampled.save(tmp_path / "sampled.zip", replay=True).read_bytes())
    files = {"good": ("TabularPBRL", packed(tabular)), "good replay": ("PBRL", packed(replayed))}
    for name, attack in ATTACKS.items():
        kind, good = ("PBRL", replayed) if "replay" in name else ("TabularPBRL", tabular)
        entries = attack.make(good)
        files[name] = (kind, packed(entries, {list(entries)[-1]: attack.method}))
    paths = [tmp_path / f"attack-{i}.zip" for i in range(len(files))]
    for path, (_, data) in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    lines = "\n".join(f"{kind} {path}" for path, (kind, _) in zip(paths, files.values(), strict=True))
    call = [sys.executable, "-m", "tests.fuzz.reading", str(256 * MIB)]
    root = Path(__file__).parents[2]
    found = subprocess.run(call, input=lines, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split("\t")[1] for line in found[:2]] == ["read", "read"]
    for (name, attack), path, line in zip(ATTACKS.items(), paths[2:], found[2:], strict=True):
        taken, ended = line.split("\t")
        assert int(taken) < 256 * MIB, name
        assert ended.startswith("ValueError: "), (name, ended)
        assert str(path) in ended, (name, ended)
        assert attack.says in ended, (name, ended)
        assert "MemoryError" not in ended, (name, ended)


def test_what_cannot_be_read_again_is_not_written(tmp_path: Path) -> None:
    leader = TabularPBRL(TWO).learn(2)
    path = leader.save(tmp_path / "leader.zip")
    leader.history.extend(leader.history * 30_000)
    with pytest.raises(OSError, match="expected fewer records and logged numbers"):
        leader.save(path)
    assert TabularPBRL.load(path).iteration == 2


# --- files of other versions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "leader"), [("tabular_pbrl_0.1.zip", TabularPBRL), ("pbrl_0.1.zip", PBRL)])
def test_files_of_the_first_version_are_refused_by_its_name(name: str, leader: Any) -> None:
    path = Path(__file__).parents[1] / "data" / name
    message = rf"^path: expected a leader file of format 3, got format 2 in {path}, which bilevel-gym 0\.1 wrote"
    with pytest.raises(ValueError, match=message):
        leader.load(path)


@pytest.mark.parametrize("version", [4, 0, None, "3", [3], {}, 3.5])
def test_files_of_no_known_version_are_refused(version: Any, tabular: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "leader.zip"
    path.write_bytes(packed(with_header(tabular, format=version)))
    with pytest.raises(ValueError, match=r"leader file.*leader\.zip"):
        TabularPBRL.load(path)
