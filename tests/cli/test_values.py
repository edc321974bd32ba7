"""Values of the command line and of YAML."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bilevel_gym.agents import BellmanPenalty, Geometric, KnownModel, Linear, Rollouts, ValuePenalty
from bilevel_gym.cli.values import pairs, parts, value


@pytest.mark.parametrize(
    ("raw", "meant"),
    [
        ("8", 8),
        ("3e-4", 3e-4),
        ("-1.5", -1.5),
        ("true", True),
        ("None", None),
        ("-inf", -math.inf),
        ("[64, 64]", [64, 64]),
        ("dict(net_arch=[64], pi=dict(a=1))", {"net_arch": [64], "pi": {"a": 1}}),
        ("{'a': 1}", {"a": 1}),
        ("lin_3e-4", Linear(3e-4, 0.0)),
        ("Geometric(2, 8)", Geometric(2, 8)),
        ("ValuePenalty(lam=Geometric(2, 8))", ValuePenalty(lam=Geometric(2, 8))),
        ("BellmanPenalty", BellmanPenalty()),
        ("Rollouts(n_envs=16)", Rollouts(n_envs=16)),
        ("KnownModel", KnownModel()),
        ("SGD", torch.optim.SGD),
        ("nn.Tanh", torch.nn.Tanh),
        ("native", "native"),
        ("MlpPolicy", "MlpPolicy"),
        ("os.path", "os.path"),
        ("a b c", "a b c"),
        (["1", {"a": "Constant(2)"}], [1, {"a": Geometric}]),
        (7, 7),
    ],
)
def test_what_a_text_means(raw: Any, meant: Any) -> None:
    found = value(raw, "--leader-kwargs k")
    if isinstance(raw, list):
        assert found[0] == 1
        assert found[1]["a"](0.5) == 2
    else:
        assert type(found) is type(meant)
        assert repr(found) == repr(meant)


@pytest.mark.parametrize(
    "text", ["open('x', 'w')", "__import__('os').system('true')", "PBRL()", "print(1)", "Geometric(open('y', 'w'), 1)"]
)
def test_nothing_but_parts_is_called(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected a call of dict or one of ActiveFragmenter, "):
        value(text, "k")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["Geometric(1)", "Geometric(1, 2, 3)", "ValuePenalty(lamb=2)"])
def test_arguments_that_do_not_fit_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^k: expected (Geometric\(start, end\)|ValuePenalty\(lam)"):
        value(text, "k")


def test_parts_are_neither_leaders_nor_errors() -> None:
    names = set(parts())
    assert {"Linear", "ValuePenalty", "KnownModel", "SoftPolicyIteration", "Solved", "RandomFragmenter"} <= names
    assert not {"PBRL", "DRLHF", "RewardExplodedError", "robustness"} & names


def test_pairs() -> None:
    assert pairs(["a:1", "b:x:y", "c:[1, 2]", "d:"], "--k") == {"a": 1, "b": "x:y", "c": [1, 2], "d": ""}
    with pytest.raises(ValueError, match="--k: expected key:value with a key that is a name, got 'a=1'"):
        pairs(["a=1"], "--k")
    with pytest.raises(ValueError, match="--k: expected each key once, got 'a' twice"):
        pairs(["a:1", "a:2"], "--k")
