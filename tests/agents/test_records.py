"""Records: whose name a class goes by in a file, and what a state takes back by its annotations."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import Linear, TabularPBRL, TabularPBRLConfig
from bilevel_gym.agents.followers import OracleAnswer, SoftPolicyIteration
from bilevel_gym.agents.records import decode, encode, restore, snapshot, storable
from bilevel_gym.envs.mdp import TabularMDP
from bilevel_gym.envs.two_state import TwoStateProblem

Numbers = np.ndarray[Any, np.dtype[Any]]

# --- names ------------------------------------------------------------------------------------------------------------------


def in_module(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's that was imported."""
    made = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(source, name, "exec"), vars(made))
    return made


USERS = """
from dataclasses import dataclass
from bilevel_gym.agents.records import storable

@storable
@dataclass(frozen=True)
class {name}:
    start: float = 0.5
    end: float = 0.5

    def solve(self, mdp, tau, warm=None):
        from bilevel_gym.agents import SoftPolicyIteration
        return SoftPolicyIteration().solve(mdp, tau)
"""


def test_a_users_class_does_not_replace_the_librarys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in files that hold the library's, written before or after, nor in its own."""
    problem, config = TwoStateProblem(), TabularPBRLConfig(learning_rate=Linear(0.1, 0.01))
    before = TabularPBRL(problem, config=config).learn(2).save(tmp_path / "before.zip")
    users = in_module("helpers", USERS.format(name="Linear"), monkeypatch)
    after = TabularPBRL(problem, config=config).learn(2).save(tmp_path / "after.zip")
    for path in (before, after):
        assert TabularPBRL.load(path, problem).config.learning_rate == Linear(0.1, 0.01)
    own = TabularPBRL(problem, oracle=users.Linear(0.25)).learn(2).save(tmp_path / "own.zip")
    assert TabularPBRL.load(own, problem).oracle == users.Linear(0.25)


def test_two_users_classes_of_one_name_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (in_module(name, USERS.format(name="Mine"), monkeypatch) for name in ("helpers", "others"))
    held = encode([one.Mine(1.0), two.Mine(2.0)])
    assert [type(part) for part in decode(held)] == [one.Mine, two.Mine]


def test_no_class_may_claim_to_be_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^storable: expected a class with another name than those of the library"):
        in_module("bilevel_gym.helpers", USERS.format(name="Linear"), monkeypatch)
    assert decode(encode(Linear(1.0, 2.0))) == Linear(1.0, 2.0)


def test_what_only_bears_a_known_name_is_no_setting() -> None:
    """A subclass, an optimiser called Adam, a class that was never told of: none is written as its namesake."""
    sub: Any = dataclass(frozen=True)(type("Linear", (Linear,), {"__module__": "bilevel_gym.agents.schedules"}))
    adam = type("Adam", (torch.optim.Adam,), {})
    untold: Any = dataclass(frozen=True)(type("SoftPolicyIteration", (), {"__module__": "bilevel_gym.helpers"}))
    for value in (sub(0.1, 0.2), adam, untold()):
        with pytest.raises(TypeError, match=r"^a leader file cannot hold"):
            encode(value)


def test_fields_that_a_file_does_not_hold_are_refused_in_it() -> None:
    @storable
    @dataclass(frozen=True)
    class Kept:
        held: int = 1
        path: str | None = field(default=None, metadata={"kept": False})

    tree = encode(Kept(2, "here"))
    assert tree["fields"] == {"held": 2}
    tree["fields"]["path"] = "there"
    with pytest.raises(ValueError, match=r"^path: expected a Kept with fields \['held'\]"):
        decode(tree)


# --- states -----------------------------------------------------------------------------------------------------------------


class Counter:
    """An object with a state of its own."""

    def __init__(self) -> None:
        self.table = torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"table": self.table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table = state["table"]


@dataclass(frozen=True)
class Part:
    """A record within a state."""

    values: Tensor
    share: float | None


@dataclass
class Full:
    """Every kind of field that a state has."""

    x: Tensor
    count: int = 0
    rate: float = 0.5
    begun: bool = False
    name: str = "a"
    either: list[bool | int | float | str] = field(default_factory=list)
    known: Numbers = field(default_factory=lambda: np.zeros(3, np.int64))
    later: Tensor | None = None
    part: Part | None = None
    parts: list[Part] = field(default_factory=list)
    pair: tuple[int, str] | None = None
    several: tuple[Tensor, ...] = ()
    by_name: dict[str, Part] = field(default_factory=dict)
    counter: Counter = field(default_factory=Counter)
    optional: Counter | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    optimizer: Any = None
    skipped: int = field(default=3, metadata={"kept": False})


def part(share: float | None = None) -> Part:
    return Part(torch.ones(2, dtype=torch.float64), share)


def fresh() -> Full:
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    state = Full(x, by_name={"a": part(), "b": part()}, several=(torch.zeros(1), torch.zeros(2)))
    state.optimizer = torch.optim.Adam([{"params": [x]}], lr=0.1)
    return state


def used() -> Full:
    state = fresh()
    state.x.sum().backward()
    state.optimizer.step()
    state.optimizer.param_groups[0]["lr"] = 0.05
    state.count, state.rate, state.begun, state.name, state.either = 7, 2.0, True, "b", [True, 3, 0.5, "x"]
    state.known, state.later = np.arange(3), torch.arange(4).double()
    state.part, state.parts, state.pair = part(0.5), [part(), part(1.0)], (1, "x")
    state.by_name, state.several = {"a": part(3.0), "b": part()}, (torch.ones(1), torch.ones(2))
    state.counter.table = torch.ones(2)
    state.generator.manual_seed(5)
    state.rng.standard_normal(9)
    return state


def test_a_state_comes_back_whole() -> None:
    tree, state = snapshot(used()), fresh()
    x, counter = state.x, state.counter
    assert restore(state, tree) is state
    assert state.x is x  # which the optimiser moves
    assert state.counter is counter
    again = snapshot(state)
    for name in tree:
        np.testing.assert_equal(again[name], tree[name], err_msg=name)
    assert "skipped" not in tree
    assert isinstance(state.several, tuple)
    assert isinstance(state.pair, tuple)
    one = used()
    assert torch.rand(1, generator=state.generator) == torch.rand(1, generator=one.generator)
    for held in (one, state):
        held.optimizer.zero_grad()
        held.x.sum().backward()
        held.optimizer.step()
    assert torch.equal(one.x, state.x)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", np.zeros(3), r"x: expected shape \(2,\), got \(3,\)"),
        ("x", np.zeros(2, np.float32), "x: expected an array of float64"),
        ("x", np.array([0.0, math.nan]), "x: expected finite numbers"),
        ("x", [0.0, 0.0], "x: expected an array of float64"),
        ("x", None, "x: expected an array"),
        ("count", -1, "count: expected a count, got -1"),
        ("count", 2**63, "count: expected a count"),
        ("count", True, "count: expected a count, got True"),
        ("count", 1.0, "count: expected a count, got 1.0"),
        ("rate", "1", "rate: expected float"),
        ("begun", 1, "begun: expected bool"),
        ("name", 3, "name: expected str"),
        ("either", [None], r"either\[0\]: expected bool"),
        ("either", [[1]], r"either\[0\]: expected bool"),
        ("either", {"a": 1}, "either: expected a list"),
        ("known", np.zeros(3), "known: expected an array of int64"),
        ("known", np.zeros(4, np.int64), "known: expected shape"),
        ("later", np.array([math.inf]), "later: expected finite"),
        ("later", 3, "later: expected an array"),
        ("part", {"values": np.zeros(2)}, "part: expected a record of"),
        ("part", {"values": np.zeros(2), "share": "x"}, "share: expected float"),
        ("part", {"values": np.zeros(2), "share": 0.5, "more": 1}, "part: expected a record of"),
        ("parts", [None], r"parts\[0\]: expected a record of"),
        ("pair", [1], "pair: expected 2 parts, got 1"),
        ("pair", [-1, "x"], r"pair\[0\]: expected a count"),
        ("several", [np.zeros(1, np.float32)], "several: expected 2 parts, got 1"),
        ("by_name", {"a": None}, "by_name: expected a part for each of"),
        ("counter", {"table": np.array([math.nan], np.float32)}, "counter.table: expected finite"),
        ("optional", {"table": np.zeros(2)}, "optional: expected None"),
        ("generator", np.zeros(5056, np.uint8)[:-1], "generator: expected shape"),
        ("optimizer", {"state": {}, "param_groups": []}, "zip"),
    ],
)
def test_what_is_not_of_its_kind_is_named(name: str, value: Any, message: str) -> None:
    tree = snapshot(used())
    with pytest.raises(ValueError, match=message):
        restore(fresh(), tree | {name: value})


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Full) if f.name not in ("skipped",)])
def test_nothing_may_be_missing(name: str) -> None:
    tree = snapshot(used())
    del tree[name]
    with pytest.raises(ValueError, match=r"^state: expected a record of"):
        restore(fresh(), tree)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["param_groups"][0].update(lr=math.nan),
        lambda t: t["param_groups"][0].update(lr=[[[]]]),
        lambda t: t["param_groups"][0].update(lr=1),
        lambda t: t["param_groups"][0].pop("eps"),
        lambda t: t["state"]["0"].update(exp_avg=np.zeros(3)),
        lambda t: t["state"]["0"].update(exp_avg_sq=np.full(2, -1.0)),
        lambda t: t["state"]["0"].update(step=np.float32(-1.0) * np.ones((), np.float32)),
        lambda t: t["state"].update({"1": {}}),
        lambda t: t.pop("state"),
    ],
)
def test_the_state_of_another_optimiser_is_refused(change: Any) -> None:
    tree = snapshot(used())
    change(tree["optimizer"])
    with pytest.raises((ValueError, TypeError, KeyError)):
        restore(fresh(), tree)


def test_an_optimisers_settings_are_its_own() -> None:
    """But for the rate, which schedules move: a file names none."""
    tree, state = snapshot(used()), fresh()
    tree["optimizer"]["param_groups"][0].update(betas=[0.1, 0.2], weight_decay=3)
    restore(state, tree)
    group = state.optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.05, (0.9, 0.999), 0)


def test_the_answer_of_an_oracle_is_a_record() -> None:
    mdp = TabularMDP(torch.full((2, 2, 2), 0.5), torch.eye(2), torch.full((2,), 0.5), 0.9)
    answer = SoftPolicyIteration().solve(mdp, 0.1)
    back = restore([], [snapshot(answer)], "answers", list[OracleAnswer])[0]
    assert torch.equal(back.pi, answer.pi)
    assert (back.residual, back.iterations) == (answer.residual, answer.iterations)
