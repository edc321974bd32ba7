"""Sweep and Optuna: the points that they try, what they find and believe, the steps that count, files, bad settings."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import OptunaSearch, Sweep
from bilevel_gym.agents.baselines.optuna_search import OptunaSearchConfig
from bilevel_gym.agents.baselines.sweep import SweepConfig
from bilevel_gym.agents.baselines.trials import Trial
from bilevel_gym.agents.followers.sb3 import SB3Follower
from bilevel_gym.agents.followers.spec import AlgorithmSpec
from bilevel_gym.agents.learned.answers import SETTLING
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
from tests.problems import F64

optuna = pytest.importorskip("optuna")
pytest.importorskip("cmaes")

TWO = "bilevel_gym/TwoState-v0"
SMALL: dict[str, Any] = {"follower_steps": 128, "n_envs": 8, "rollout_envs": 4}
EACH = 128 + 4
"""Steps of a trial in the valley, whose episodes are of one step."""
SEARCHES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sweep": (Sweep, {}),
    "gp": (OptunaSearch, {}),
    "cmaes": (OptunaSearch, {"sampler": "cmaes"}),
}


def valley(best: tuple[float, ...] = (0.6, -1.0), budget: float = math.inf) -> ArrayProblem:
    """One state: the follower takes the paid action, and the leader then keeps ``3 - |x - best|^2``, else 5 less.

    X is ``[-1, 1] x [-3, 3] x ...``, within the budget.
    """
    goal = torch.tensor(best, dtype=F64)
    base = TabularMDP(P=torch.ones((1, 2, 1)), r=torch.tensor([[0.0, 1.0]]), rho=torch.ones(1), gamma=0.0)
    high = torch.tensor([1.0, *[3.0] * (len(best) - 1)], dtype=F64)

    def kept(x: Tensor) -> Tensor:
        value = 3.0 - ((x - goal) ** 2).sum()
        return torch.stack([value - 5.0, value])[None]

    return ArrayProblem(base, LeaderSet(-high, high, budget), lambda x: base.r, kept)


def small(name: str, problem: Any = None, follower: Any = A2C, **changes: Any) -> Any:
    cls, own = SEARCHES[name]
    return cls(valley() if problem is None else problem, follower, **(SMALL | own | changes))


def tried(leader: Any) -> Tensor:
    return torch.stack([trial.x for trial in leader.tried])


# --- the points ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_a_sweep_s_points_are_stratified(seed: int) -> None:
    """After the initial x, each eighth of every coordinate's width holds one of the next eight points."""
    leader = small("sweep", seed=seed, x0=[0.3, 0.1]).learn(9 * EACH)
    points = tried(leader)
    np.testing.assert_array_equal(points[0].numpy(), [0.3, 0.1])
    unit = (points[1:] - leader.leader_set.low) / (leader.leader_set.high - leader.leader_set.low)
    for column in unit.T:
        assert sorted((8 * column).int().tolist()) == list(range(8))
    assert not any(torch.equal(points, tried(small("sweep", seed=s).learn(9 * EACH))) for s in (1, 2))


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_every_point_is_in_x_where_x_has_a_budget(name: str, budget: float) -> None:
    leader = small(name, valley(budget=budget)).learn(8 * EACH)
    assert all(leader.leader_set.contains(x) for x in tried(leader))
    assert (tried(leader).abs().sum(1) > budget - 1e-9).any()  # some proposals lay outside
    narrow = small(name, low=[0.0, -1.0], budget=1.0).learn(4 * EACH)
    assert all(x[0] >= 0.0 and x.abs().sum() <= 1.0 + 1e-9 for x in tried(narrow))


def test_a_coordinate_without_width_stays() -> None:
    for name in SEARCHES:
        leader = small(name, low=[-1.0, 0.25], high=[1.0, 0.25], x0=[0.0, 0.25]).learn(5 * EACH)
        assert (tried(leader)[:, 1] == 0.25).all()
        assert len(tried(leader)[:, 0].unique()) == 5


@contextmanager
def silent() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def test_the_points_are_optuna_s_own() -> None:
    """A study of plain Optuna that is told the same returns asks for the same points."""
    for name in ("gp", "cmaes"):
        leader = small(name, population=4, startup_trials=3, seed=5).learn(11 * EACH)
        X, seed = leader.leader_set, leader.method._seed
        unit = {f"x{i}": optuna.distributions.FloatDistribution(0.0, 1.0) for i in range(2)}
        with silent():
            study = optuna.create_study(direction="maximize")
            if name == "cmaes":
                study.sampler = optuna.samplers.CmaEsSampler(seed=seed(leader.state, 0), popsize=4)
            for i, trial in enumerate(leader.tried):
                told = (trial.x - X.low) / (X.high - X.low)
                if i == 0:
                    study.enqueue_trial({key: float(u) for key, u in zip(unit, told, strict=True)})
                elif name == "gp":
                    study.sampler = optuna.samplers.GPSampler(seed=seed(leader.state, i), n_startup_trials=3)
                asked = study.ask(unit)
                np.testing.assert_allclose(list(asked.params.values()), told.numpy(), atol=1e-6)
                study.tell(asked, trial.leader_return)


@pytest.mark.parametrize("name", SEARCHES)
def test_global_generators_and_optuna_s_log_are_left_alone(name: str) -> None:
    def following() -> tuple[float, float, int]:
        return float(np.random.random()), float(torch.rand(())), optuna.logging.get_verbosity()

    np.random.seed(0)
    torch.manual_seed(0)
    expected = following()
    np.random.seed(0)
    torch.manual_seed(0)
    leader = small(name, **({"startup_trials": 2} if name == "gp" else {})).learn(4 * EACH)
    assert following() == expected
    assert leader.trials == 4


# --- what they find -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "trials", "apart"), [("sweep", 32, 0.6), ("gp", 14, 0.1), ("cmaes", 36, 0.5)])
def test_the_best_x_of_a_valley_is_found(name: str, trials: int, apart: float) -> None:
    leader = small(name, seed=1).learn(trials * EACH)
    np.testing.assert_allclose(leader.x, [0.6, -1.0], atol=apart)
    assert leader.best_trial.leader_return == pytest.approx(leader.evaluate().leader_return, abs=1e-6)


@pytest.mark.parametrize("name", SEARCHES)
def test_x_is_the_best_trial_by_its_measured_return(name: str) -> None:
    leader, seen = small(name), []

    def watched(one: Any) -> None:
        seen.append((one.x, one.best_trial.leader_return, one.num_timesteps))

    start = leader.x
    assert leader.best_trial is None
    leader.learn(6 * EACH, watched)
    returns = [trial.leader_return for trial in leader.tried]
    for n, (x, belief, steps) in enumerate(seen, 1):
        best = int(np.argmax(returns[:n]))
        assert belief == returns[best]
        np.testing.assert_array_equal(x, leader.tried[best].x.numpy())
        assert steps == sum(trial.steps for trial in leader.tried[:n])
    np.testing.assert_array_equal(leader.tried[0].x.numpy(), start)
    assert returns == pytest.approx([3.0 - float(((x - torch.tensor([0.6, -1.0])) ** 2).sum()) for x in tried(leader)])


def test_the_model_and_the_records_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where measured and true returns differ, x follows what was measured."""
    leader = small("sweep")
    monkeypatch.setattr("bilevel_gym.agents.baselines.trials.leader_return_at_best_response", _refuse)
    monkeypatch.setattr("bilevel_gym.agents.baselines.trials.judge", _refuse)
    leader.learn(4 * EACH)
    assert leader.history == []
    with pytest.raises(AssertionError, match="asked"):
        leader.evaluate()


def _refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a reference was asked")


# --- followers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHES)
def test_a_warm_start_is_from_the_best_trial_s_follower(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    take = SB3Follower.take_policy

    def spied(self: SB3Follower, weights: dict[str, Any]) -> None:
        taken.append(weights)
        take(self, weights)

    monkeypatch.setattr(SB3Follower, "take_policy", spied)
    small(name).learn(3 * EACH)
    assert taken == []
    leader, kept = small(name, warm_start=True), []
    leader.learn(5 * EACH, lambda one: kept.append(one.policy))
    assert [any(one is policy for one in kept) for policy in taken] == [True] * 4
    for n, policy in enumerate(taken, 1):  # the weights before trial n are those after trial n - 1, of the best so far
        assert policy is kept[n - 1]
    best = [int(np.argmax([trial.leader_return for trial in leader.tried[:n]])) for n in range(1, 6)]
    for n in range(1, 5):
        assert (kept[n] is kept[n - 1]) == (best[n] == best[n - 1])


def test_a_class_is_trained_for_a_fixed_x_and_a_callable_is_taken_as_it_is() -> None:
    by_class = small("sweep", follower=PPO).method.new_follower(0)
    by_class.train_alone(1280)
    assert SETTLING.entropy is not None
    assert by_class.model.ent_coef == pytest.approx(SETTLING.entropy(0.1))  # in the last of ten parts

    def build(venv: VecEnv) -> PPO:
        return PPO("MlpPolicy", venv, gamma=0.0, n_steps=4, batch_size=32, ent_coef=0.0, learning_rate=1e-3, seed=3)

    given = small("sweep", follower=build).method.new_follower(0)
    given.train_alone(64)
    assert (given.model.ent_coef, given.model.learning_rate, given.model.n_steps) == (0.0, 1e-3, 4)
    own = AlgorithmSpec(PPO, {"policy": "MlpPolicy", "n_steps": 4, "batch_size": 32, "ent_coef": 0.0})
    assert small("sweep", follower=own).method.new_follower(0).model.ent_coef == 0.0


@pytest.mark.parametrize("follower", [SAC, PPO])
def test_continuous_actions_are_the_policy_s_mean(follower: Any) -> None:
    leader = Sweep("bilevel_gym/LQStackelberg-v0", follower, follower_steps=64, n_envs=4, rollout_envs=6)
    shown: list[bool] = []
    player = SB3Follower.player

    def spied(self: SB3Follower, venv: VecEnv, greedily: bool = False) -> Callable[[Any], Any]:
        shown.append(greedily)
        return player(self, venv, greedily)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SB3Follower, "player", spied)
        leader.learn(leader.plan(1).least)
    assert shown == [True]


def test_one_seed_gives_one_result() -> None:
    for name in SEARCHES:
        one, same, other = (small(name, TWO, follower=DQN, seed=s, rollout_envs=2).learn(600) for s in (1, 1, 2))
        assert torch.equal(tried(one), tried(same))
        assert [t.leader_return for t in one.tried] == [t.leader_return for t in same.tried]
        assert not torch.equal(tried(one), tried(other))


def test_parallel_environments_as_asked() -> None:
    native, dummy = (small("sweep", TWO, vec_env=vec_env) for vec_env in (None, "dummy"))
    assert [type(leader.training.venv).__name__ for leader in (native, dummy)] == ["VectorEnvAdapter", "DummyVecEnv"]
    dummy.learn(dummy.plan(1).least)
    assert dummy.trials == 1
    dummy.close()


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHES)
def test_a_loaded_leader_proposes_what_the_saved_one_does(name: str, tmp_path: Path) -> None:
    leader = small(name, TWO, warm_start=True).learn(1500)
    loaded = type(leader).load(leader.save(tmp_path / name))
    assert (loaded.trials, loaded.num_timesteps) == (leader.trials, leader.num_timesteps)
    assert loaded.best_trial.leader_return == leader.best_trial.leader_return
    np.testing.assert_array_equal(loaded.x, leader.x)
    assert torch.equal(loaded.method.propose(loaded.state), leader.method.propose(leader.state))
    assert torch.equal(leader.method.propose(leader.state), leader.method.propose(leader.state))  # and again
    for one in (leader, loaded):
        one.learn(500, reset_num_timesteps=False)
    assert torch.equal(tried(loaded), tried(leader))
    with pytest.raises(ValueError, match=r"^follower: expected .*A2C"):
        type(leader).load(tmp_path / f"{name}.zip", DQN)


def test_trials_of_another_search_are_refused(tmp_path: Path) -> None:
    leader = small("sweep", TWO).learn(1000)
    first = leader.tried[0]
    wrong: dict[str, Trial] = {
        "tried[0].x": replace(first, x=first.x + 10.0),
        "tried[0].leader_return": replace(first, leader_return=math.nan),
        "x": replace(first, leader_return=1e6, x=first.x + 0.5),
    }
    for name, trial in wrong.items():
        leader.state.tried[0] = trial
        with pytest.raises(ValueError, match=f"^{re.escape(name)}: expected "):
            Sweep.load(leader.save(tmp_path / "wrong"))
    leader.state.tried[0] = first
    leader.state.trials += 1
    with pytest.raises(ValueError, match=r"^trials: expected "):
        Sweep.load(leader.save(tmp_path / "wrong"))


# --- bad arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SweepConfig, OptunaSearchConfig])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"follower_steps": 0}, {"n_envs": -1}, {"rollout_envs": 0.5}, {"rollout_tail": 1.0}, {"warm_start": 1},
        {"vec_env": "threads"}, {"learning_rate": 0.5}, {"eval_every": 3}, {"keep_best": False}, {"budget": -1.0},
        {"optimizer_kwargs": {"amsgrad": True}}, {"optimizer_class": torch.optim.SGD},
    ],
)  # fmt: skip
def test_bad_settings_are_named(config: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(kwargs))}: expected "):
        config(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [{"sampler": "tpe"}, {"sampler": None}, {"startup_trials": 0}, {"population": 3}, {"population": 2**40}],
)
def test_bad_settings_of_the_sampler_are_named(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(kwargs))}: expected "):
        OptunaSearchConfig(**kwargs)


def test_bad_arguments_are_named() -> None:
    for name in SEARCHES:
        with pytest.raises(ValueError, match=r"^follower: expected an algorithm for"):
            small(name, follower=SAC)
        with pytest.raises(ValueError, match=r"^config: "):
            small(name, config=SweepConfig())
        with pytest.raises(ValueError, match=r"^x0: expected "):
            small(name, x0=[0.0, 4.0])
        with pytest.raises(ValueError, match=rf"^total_timesteps: expected at least {EACH} "):
            small(name).learn(EACH - 1)
    with pytest.raises(ValueError, match=r"^env: expected an x of at most 21201 coordinates, got 21202"):
        small("sweep", valley((0.5,) * 21202))


@pytest.mark.parametrize(("missing", "samplers"), [("optuna", ["gp", "cmaes"]), ("cmaes", ["cmaes"])])
def test_without_optuna_the_error_names_the_extra(
    missing: str, samplers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    for sampler in samplers:
        with pytest.raises(ImportError, match=r"bilevel-gym\[optuna\]"):
            small(sampler)
