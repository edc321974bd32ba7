"""Leader files: learning on from one is learning on; a bad one is an error that names itself."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import (
    BellmanPenalty,
    Geometric,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    Linear,
    MirrorDescent,
    PolicyGradient,
    SoBiRL,
    SoBiRLConfig,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
)
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.agents.followers import OracleAnswer, SoftPolicyIteration
from bilevel_gym.agents.held_policies import Direct, Softmax, Solved
from bilevel_gym.agents.schedules import Quench
from bilevel_gym.envs.mdp import TabularMDP, random_stackelberg
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import PROBLEMS

SGD: dict[str, Any] = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9, "nesterov": True}}
BETAS: dict[str, Any] = {"optimizer_kwargs": {"betas": (0.8, 0.99)}}

LEADERS: dict[str, Callable[[Any], ExactLeader]] = {
    "default": TabularPBRL,
    "solved": lambda p: TabularPBRL(
        p,
        penalty=ValuePenalty(Linear(1.0, 9.0)),
        config=TabularPBRLConfig(follower=Solved(), learning_rate=0.01, **SGD),
    ),
    "softmax": lambda p: TabularPBRL(
        p,
        penalty=ValuePenalty(4.0),
        oracle=MirrorDescent(5.0, 4),
        config=TabularPBRLConfig(follower=Softmax(0.2), **BETAS),
    ),
    "direct": lambda p: TabularPBRL(
        p,
        penalty=BellmanPenalty(4.0),
        oracle=PolicyGradient(2.0, 3),
        config=TabularPBRLConfig(follower=Direct(), tau=0.1, high=1.5),
    ),
    "hypergradient": lambda p: Hypergradient(
        p, config=HypergradientConfig(learning_rate=Geometric(0.2, 0.01), eval_every=3)
    ),
    "tracked hypergradient": lambda p: SoBiRL(
        p, config=SoBiRLConfig(learning_rate=0.05, sweeps=3, tau=Linear(0.3, 0.1))
    ),
    "quenched": lambda p: Hypergradient(p, config=HypergradientConfig(tau=Quench(0.5, 0.1, 0.6), eval_every=3)),
    "independent": lambda p: IndependentPolicyGradient(p, config=IndependentPolicyGradientConfig(tau=0.1, budget=0.75)),
}


@pytest.mark.parametrize("problem", ["terminal, masked", "Stackelberg", "contexts"])
@pytest.mark.parametrize("name", LEADERS)
def test_learning_on_from_a_file_is_learning_on(name: str, problem: str, tmp_path: Path) -> None:
    """Bit for bit as an unbroken twin that made the same calls of learn."""
    made = PROBLEMS[problem](0)
    twin, broken = LEADERS[name](made), LEADERS[name](made)
    twin.learn(7)
    path = broken.learn(7).save(tmp_path / "leader")
    assert path == tmp_path / "leader.zip"
    loaded = type(broken).load(path, made)
    assert loaded.evaluate() == broken.evaluate()
    assert (loaded.tau, loaded.num_timesteps, loaded.iteration) == (broken.tau, 7, 7)
    if isinstance(broken, TabularPBRL):
        assert isinstance(loaded, TabularPBRL)
        assert loaded.lam == broken.lam
    for leader in (twin, loaded):
        leader.learn(8, reset_num_timesteps=False)
    np.testing.assert_array_equal(loaded.last_x, twin.last_x)
    np.testing.assert_array_equal(loaded.x, twin.x)
    assert loaded.evaluate() == twin.evaluate()
    assert (loaded.tau, loaded.num_timesteps, loaded.iteration) == (twin.tau, 15, 15)
    again = type(broken).load(loaded.save(tmp_path / "again.zip"), made)
    np.testing.assert_array_equal(again.last_x, twin.last_x)


def test_an_id_is_made_again(tmp_path: Path) -> None:
    leader = TabularPBRL("bilevel_gym/StackelbergGame-v0", env_kwargs={"n_states": 4, "seed": 3}).learn(3)
    path = leader.save(tmp_path / "leader.zip")
    loaded = TabularPBRL.load(path)
    assert loaded.problem.follower_mdp(loaded.problem.start_x()).n_states == 4
    np.testing.assert_array_equal(loaded.x, leader.x)
    np.testing.assert_array_equal(TabularPBRL.load(tmp_path / "leader").x, leader.x)


def test_an_untrained_leader_has_a_file_too(tmp_path: Path) -> None:
    problem = TwoStateProblem()
    for name, make in LEADERS.items():
        loaded = type(make(problem)).load(make(problem).save(tmp_path / name), problem)
        assert loaded.x.tolist() == [0.0]
        np.testing.assert_array_equal(loaded.learn(3).last_x, make(problem).learn(3).last_x)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TabularPBRL(TwoStateProblem()).learn(3).save(tmp_path_factory.mktemp("leader") / "leader.zip")


BROKEN = r"^path: expected a whole leader file, got .*, which is truncated or not one"


def test_a_truncated_file_is_an_error_at_every_length(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for length in [*range(0, 64), *range(64, len(whole), 37), *range(len(whole) - 64, len(whole))]:
        (tmp_path / "cut.zip").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=BROKEN):
            TabularPBRL.load(tmp_path / "cut.zip", TwoStateProblem())


def test_a_flipped_byte_is_an_error_or_harmless(saved: Path, tmp_path: Path) -> None:
    whole, expected = saved.read_bytes(), TabularPBRL.load(saved, TwoStateProblem())
    rng, errors = np.random.default_rng(0), 0
    for position in rng.integers(len(whole), size=150):
        flipped = bytearray(whole)
        flipped[position] ^= int(rng.integers(1, 256))
        (tmp_path / "flipped.zip").write_bytes(flipped)
        try:
            loaded = TabularPBRL.load(tmp_path / "flipped.zip", TwoStateProblem())
        except ValueError:
            errors += 1
        else:  # a date in the zip's own tables, say
            assert loaded.x.tobytes() == expected.x.tobytes()
    assert errors > 100


@pytest.mark.parametrize("size", [0, 1, 100, 10_000])
def test_noise_is_no_leader(size: int, tmp_path: Path) -> None:
    (tmp_path / "noise.zip").write_bytes(np.random.default_rng(size).bytes(size))
    with pytest.raises(ValueError, match=BROKEN):
        TabularPBRL.load(tmp_path / "noise.zip", TwoStateProblem())


def rewritten(saved: Path, path: Path, **changes: Any) -> Path:
    """The same file with other entries in its header."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, json.dumps(json.loads(data) | changes) if name == "leader.json" else data)
    return path


def test_foreign_files_are_named(saved: Path, tmp_path: Path) -> None:
    problem = TwoStateProblem()
    with pytest.raises(FileNotFoundError, match=r"^path: expected a leader file, got .*nothing"):
        TabularPBRL.load(tmp_path / "nothing", problem)
    with pytest.raises(ValueError, match=r"^path: expected the file of a Hypergradient, got that of a TabularPBRL"):
        Hypergradient.load(saved, problem)
    with pytest.raises(ValueError, match=r"^path: expected a leader file of format 3, got format 99 in"):
        TabularPBRL.load(rewritten(saved, tmp_path / "later.zip", format=99), problem)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data", "something else")
    with pytest.raises(ValueError, match=BROKEN):
        TabularPBRL.load(tmp_path / "other.zip", problem)
    assert TabularPBRL.load(rewritten(saved, tmp_path / "same.zip"), problem).iteration == 3


def test_no_code_runs(saved: Path, tmp_path: Path) -> None:
    """A header may name nothing but the table's classes and torch's optimisers."""
    arguments = json.loads(zipfile.ZipFile(saved).read("leader.json"))["arguments"]
    for bad in ({"class": "Popen", "fields": {}}, {"optimizer": "Tensor"}, {"optimizer": "lr_scheduler"}):
        arguments["config"]["fields"]["optimizer_class"] = bad
        with pytest.raises(ValueError, match=r"^path: "):
            TabularPBRL.load(rewritten(saved, tmp_path / "bad.zip", arguments=arguments), TwoStateProblem())


@pytest.mark.parametrize(
    "other",
    [
        TwoStateProblem(gamma=0.8),
        TwoStateProblem(benefit=1.6),
        TwoStateProblem(cost=0.999),
        TwoStateProblem(tau=0.2),
        random_stackelberg(2, 1, 2),
        random_stackelberg(1, 1, 2),
        "bilevel_gym/StackelbergGame-v0",
    ],
    ids=["gamma", "benefit", "cost", "tau", "another game", "another size", "id"],
)
def test_another_problem_is_named(saved: Path, other: Any) -> None:
    with pytest.raises(ValueError, match=r"^problem: expected the problem of .*, got another one"):
        TabularPBRL.load(saved, other)


def test_a_problem_given_as_an_object_must_be_given_again(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"^problem: expected the problem that this leader was trained on"):
        TabularPBRL.load(saved)


class Stubborn:
    """A user's own oracle."""

    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        return SoftPolicyIteration().solve(mdp, tau)


def test_what_no_file_can_hold_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    leader = TabularPBRL(TwoStateProblem(), oracle=Stubborn()).learn(2)
    with pytest.raises(TypeError, match=r"^a leader file cannot hold .*Stubborn"):
        leader.save(tmp_path / "leader.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "leader.zip"
    first = TabularPBRL(TwoStateProblem()).learn(1)
    first.save(path)
    first.learn(5).save(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["leader.zip"]
    assert TabularPBRL.load(path, TwoStateProblem()).iteration == 5
