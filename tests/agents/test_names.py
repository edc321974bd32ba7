"""How leaders are called: what is positional, what goes by name, and what is said of a name that is not known."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO

from bilevel_gym import agents
from bilevel_gym.agents import (
    CMAES,
    DRLHF,
    HPGD,
    PBRL,
    Hypergradient,
    OptunaSearch,
    PreferencePBRL,
    SingleLoop,
    Sweep,
    TabularPBRL,
    leader_for,
)
from bilevel_gym.agents.config import LeaderConfig
from bilevel_gym.agents.leaders.pbrl import PBRLConfig
from bilevel_gym.cli.catalogue import leaders
from bilevel_gym.envs import incentive_design_v0
from bilevel_gym.envs.lq_stackelberg import LQStackelbergEnv
from bilevel_gym.envs.mdp.linear_quadratic import steering_game
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.envs.two_state import TwoStateProblem
from bilevel_gym.wrappers import EventPayments, ShapedReward

TWO = "bilevel_gym/TwoState-v0"
SMALL: dict[str, Any] = {"n_envs": 4, "follower_steps": 64, "warmup_steps": 0}


@pytest.mark.parametrize("cls", leaders().values(), ids=leaders())
def test_only_the_world_and_the_follower_are_positional(cls: type) -> None:
    parameters = inspect.signature(cls).parameters.values()
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional in (["problem"], ["env", "follower"])
    named = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {"config", "seed", "env_kwargs"} <= named


@pytest.mark.parametrize(
    "make",
    [
        lambda: PBRL(TWO, PPO, None, PBRLConfig()),  # type: ignore[call-arg]
        lambda: Hypergradient(TWO, None),  # type: ignore[call-arg]
        lambda: DRLHF(TWO, PPO, None),  # type: ignore[call-arg]
        lambda: LeaderConfig(0.1),  # type: ignore[call-arg]
        lambda: PBRLConfig(0.1),  # type: ignore[call-arg]
        lambda: leader_for(TWO, None, {}),  # type: ignore[call-arg]
    ],
)
def test_what_follows_is_by_name(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        make()


@pytest.mark.parametrize(
    ("cls", "given", "name", "value"),
    [
        (PBRL, (TWO, PPO), "learning_rate", 0.1),
        (TabularPBRL, (TWO,), "learning_rate", 0.1),
        (Hypergradient, (TWO,), "tau", 0.2),
        (HPGD, (TWO,), "episodes", 3),
        (SingleLoop, (TWO,), "block", 7),
        (CMAES, (TWO, A2C), "population", 3),
        (Sweep, (TWO, A2C), "warm_start", True),
        (OptunaSearch, (TWO, A2C), "sampler", "cmaes"),
        (DRLHF, ("bilevel_gym/RewardGrid-v0", A2C), "labels", 33),
        (PreferencePBRL, ("bilevel_gym/RewardGrid-v0", A2C), "labels", 33),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_fields_of_the_config_are_keywords(cls: Any, given: tuple[Any, ...], name: str, value: Any) -> None:
    kwargs = {"env_kwargs": {"tau": 0.3}} if cls is SingleLoop else {}
    leader = cls(*given, **{name: value}, **kwargs)
    assert getattr(leader.config, name) == value
    with pytest.raises(ValueError, match=f"^config: expected None with {name}"):
        cls(*given, config=leader.config, **{name: value}, **kwargs)


def test_fields_of_the_config_keep_what_suits_a_game() -> None:
    leader = PBRL("bilevel_gym/incentive_design_v0", A2C, averaging=0.5, n_envs=4)
    assert vars(leader.config) | {"estimator": None, "learning_rate": None} == vars(
        PBRLConfig.for_a_game(averaging=0.5, n_envs=4)
    ) | {"estimator": None, "learning_rate": None}


@pytest.mark.parametrize(
    ("cls", "given", "wrong"),
    [
        (PBRL, (TWO, PPO), "learning_rates"),
        (PBRL, (TWO, PPO), "lam"),
        (Hypergradient, (TWO,), "follower_steps"),
        (TabularPBRL, (TWO,), "n_envs"),
        (CMAES, (TWO, PPO), "penalty"),
        (Sweep, (TWO, PPO), "population"),
        (OptunaSearch, (TWO, PPO), "n_trials"),
        (DRLHF, ("bilevel_gym/RewardGrid-v0", PPO), "x0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_an_unknown_name_is_refused_with_the_known_ones(
    cls: Any, given: tuple[Any, ...], wrong: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=f"^{cls.__name__}: expected arguments named ") as caught:
        cls(*given, **{wrong: 1})
    known, got = str(caught.value).removeprefix(f"{cls.__name__}: expected arguments named ").split(", got ")
    assert got == repr(wrong)
    assert {"config", "seed", "env_kwargs"} < set(known.split(", "))
    assert not {"_", "__", "args", "kwargs", "settings", wrong} & set(known.split(", "))


# --- what a leader is given as its world ------------------------------------------------------------------------------

WORLDS: dict[str, Callable[[], Any]] = {
    "an id": lambda: TWO,
    "an environment": lambda: gym.make(TWO),
    "a callable": lambda: lambda: gym.make(TWO),
    "a problem": TwoStateProblem,
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda world: Hypergradient(world),
        lambda world: TabularPBRL(world),
        lambda world: HPGD(world),
        lambda world: PBRL(world, A2C, **SMALL),
        lambda world: CMAES(world, A2C, n_envs=4),
        lambda world: Sweep(world, A2C, n_envs=4),
        lambda world: DRLHF(world, A2C, n_envs=4),
        lambda world: leader_for(world),
        lambda world: leader_for(world, A2C, n_envs=4),
    ],
    ids=[
        "Hypergradient",
        "TabularPBRL",
        "HPGD",
        "PBRL",
        "CMAES",
        "Sweep",
        "DRLHF",
        "leader_for, exact",
        "leader_for, sampled",
    ],
)
def test_every_leader_takes_every_kind_of_world(world: str, make: Callable[[Any], Any]) -> None:
    leader = make(WORLDS[world]())
    assert leader.method.source.env_id == (TWO if world == "an id" else None)
    if not isinstance(leader, DRLHF):
        np.testing.assert_array_equal(leader.x, TwoStateProblem().start_x().numpy())


def test_a_problem_is_the_environment_that_it_makes(tmp_path: Any) -> None:
    of_problem, of_env = (
        PBRL(world, A2C, **SMALL, eval_every=2).learn(20_000)
        for world in (TwoStateProblem(), TabularEnv(TwoStateProblem()))
    )
    np.testing.assert_array_equal(of_problem.last_x, of_env.last_x)
    assert of_problem.last_x != of_problem.history[0]
    loaded = PBRL.load(of_problem.save(tmp_path / "leader.zip"), env=TwoStateProblem())
    np.testing.assert_array_equal(loaded.x, of_problem.x)


def test_a_linear_quadratic_problem_and_a_game_are_worlds_too() -> None:
    linear = PBRL(steering_game(), PPO, **SMALL)
    assert linear.x.shape == PBRL(LQStackelbergEnv(), PPO, **SMALL).x.shape
    made: Any = incentive_design_v0.parallel_env()
    for game in (made.unwrapped.problem, made, incentive_design_v0.parallel_env):
        assert sorted(PBRL(game, A2C, n_envs=4).penalised) == ["player_1", "player_2"]


@pytest.mark.parametrize(
    "make", [lambda w: PBRL(w, PPO), lambda w: CMAES(w, PPO), Hypergradient, lambda w: DRLHF(w, PPO)]
)
@pytest.mark.parametrize("world", [3, None, torch.zeros(2)], ids=repr)
def test_what_is_no_world_is_told_what_is(make: Callable[[Any], Any], world: Any) -> None:
    with pytest.raises(ValueError, match=r"^(env|problem): expected .*(an environment|problem).*, got "):
        make(world)


def test_every_leader_is_exported() -> None:
    assert {"PBRL", "Hypergradient", "CMAES", "Sweep", "OptunaSearch", "DRLHF"} <= set(leaders()) <= set(agents.__all__)


# --- what learn counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "word", "other"),
    [
        (lambda: Hypergradient(TWO), "num_iterations", "total_timesteps"),
        (lambda: TabularPBRL(TWO), "num_iterations", "total_timesteps"),
        (lambda: SingleLoop(TWO, env_kwargs={"tau": 0.3}, block=2), "total_timesteps", "num_iterations"),
        (lambda: CMAES(TWO, A2C, n_envs=4), "total_timesteps", "num_iterations"),
        (lambda: PBRL(TWO, A2C, **SMALL), "total_timesteps", "num_iterations"),
        (lambda: DRLHF("bilevel_gym/RewardGrid-v0", A2C), "total_timesteps", "num_iterations"),
    ],
    ids=["Hypergradient", "TabularPBRL", "SingleLoop", "CMAES", "PBRL", "DRLHF"],
)
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_neither_word_means_the_other(make: Callable[[], Any], word: str, other: str, kind: type[Exception]) -> None:
    leader = make()
    with pytest.raises(
        kind, match=f"^{other}: expected {word}, which is what {type(leader).__name__} counts, got {other}"
    ):
        leader.learn(**{other: 100})
    with pytest.raises(kind, match=f"^{word}: expected one number, got none"):
        leader.learn()
    with pytest.raises(kind, match=rf"^{word}: expected one number, got \[100, 100\]"):
        leader.learn(100, **{word: 100})
    with pytest.raises(ValueError, match=f"^{word}: expected a whole number >= 1, got 0"):
        leader.learn(**{word: 0})
    assert leader.num_timesteps == 0


@pytest.mark.parametrize("word", ["num_iterations", None])
def test_a_budget_is_given_first_or_by_name(word: str | None) -> None:
    leader = Hypergradient(TWO)
    assert leader.learn(3) if word is None else leader.learn(num_iterations=3)
    assert (leader.num_timesteps, leader.iteration) == (3, 3)


def test_the_problem_inside_a_wrapper_with_a_leader_of_its_own_is_not_that_leader_s() -> None:
    """It would be solved for another x, without a word."""
    inside = gym.make("bilevel_gym/TwoState-v0")
    paid = ShapedReward(inside, EventPayments([lambda obs, action, next_obs: bool(action == 1)]))
    with pytest.raises(ValueError, match=r"^problem: expected a TabularProblem"):
        Hypergradient(paid)
    assert Hypergradient(inside).problem is inside.get_wrapper_attr("problem")
