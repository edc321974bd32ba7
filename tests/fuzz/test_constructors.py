"""Every public constructor, given what it does not expect: a ``ValueError``, or an object that works."""

from __future__ import annotations

import dataclasses
import inspect
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import A2C, DQN

from bilevel_gym.agents import (
    CMAES,
    DRLHF,
    HPGD,
    PBRL,
    Checkpoint,
    Hypergradient,
    IndependentPolicyGradient,
    MetaGradient,
    OptunaSearch,
    PBRLConfig,
    PreferenceConfig,
    PreferencePBRL,
    SingleLoop,
    SoBiRL,
    Sweep,
    TabularCMAES,
    TabularPBRL,
    TabularPBRLConfig,
    TrueReturnLabeller,
    ZeroOrder,
)
from bilevel_gym.agents.leaders.single_loop import FiniteDifferences
from bilevel_gym.agents.records import storables
from bilevel_gym.cli.values import parts
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.fuzz.hostile import arguments, fuzz, little_memory

TWO, GRID, GAME = "bilevel_gym/TwoState-v0", "bilevel_gym/RewardGrid-v0", "bilevel_gym/incentive_design_v0"
SECONDS = 60


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    with little_memory():
        yield


def _too_long(*_: Any) -> None:
    raise AssertionError(f"more than {SECONDS} s")


def accepted(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether a call was accepted, and what it gave; anything but a clear error is none of the two."""
    held = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return True, call()
    except (ValueError, FloatingPointError, MemoryError, FileNotFoundError) as error:
        if not str(error) and not isinstance(error, MemoryError):
            raise AssertionError("an error that says nothing") from error
        return False, None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return False, None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, held)


def attempted(
    data: Any, build: Callable[..., Any], base: dict[str, Any], names: list[str], use: Callable[[Any], Any]
) -> None:
    """Build with one to three wrong arguments and, where that is accepted, use what was built."""
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    wrong = {name: data.draw(arguments(), label=name) for name in chosen}
    good, built = accepted(lambda: build(**(base | wrong)))
    if good:
        accepted(lambda: use(built))


# --- configs and other records ------------------------------------------------------------------------------------------


def sampled(config: PBRLConfig) -> None:
    tiny: dict[str, Any] = {"n_envs": 2, "follower_steps": 8, "warmup_steps": 8, "evaluation_steps": 8}
    small = {name: value for name, value in tiny.items() if getattr(config, name) > 100}
    leader = PBRL(TWO, A2C, config=dataclasses.replace(config, **small))
    leader.learn(10)
    leader.close()


def preferred(config: PreferenceConfig) -> None:
    tiny: dict[str, Any] = {
        "labels": 4, "first_labels": 2, "first_steps": 40, "follower_steps": 20, "length": 4, "n_envs": 2, "epochs": 1,
        "first_epochs": 1, "ensemble": 2, "evaluation_steps": 8, "evaluation_episodes": 2, "patience": 1.0,
    }  # fmt: skip
    small = {name: value for name, value in tiny.items() if getattr(config, name) > 50}
    learner = DRLHF(GRID, A2C, config=dataclasses.replace(config, **small))
    learner.learn(60).evaluate()


def tabular(leader: Any) -> Callable[[Any], Any]:
    def use(config: Any) -> None:
        if getattr(config, "sweeps", 0) < 1e6:  # what is asked for may take as long as it takes
            leader(TwoStateProblem(), config=config).learn(2)

    return use


def tracked(config: Any) -> None:
    if max(config.sweeps, config.adjoint_steps) < 1e6:  # more is work that was asked for, not a fault
        tabular(SoBiRL)(config)


def penalised(penalty: Any) -> None:
    over_game = type(penalty).__name__.startswith("Nikaido")
    TabularPBRL(GAME if over_game else TwoStateProblem(), penalty=penalty).learn(2)


def scheduled(schedule: Any) -> None:
    TabularPBRL(TwoStateProblem(), config=TabularPBRLConfig(learning_rate=schedule, tau=schedule)).learn(2)


def estimated(estimator: Any) -> None:
    if type(estimator).__name__ == "MonteCarlo":
        if estimator.length * estimator.batch < 10_000:
            TabularPBRL(TwoStateProblem(), config=TabularPBRLConfig(estimator=estimator)).learn(2)
    elif (getattr(estimator, "n_envs", 0) or 0) < 100:
        sampled(PBRLConfig(estimator=estimator, n_envs=2))


def held(follower: Any) -> None:
    TabularPBRL(TwoStateProblem(), config=TabularPBRLConfig(follower=follower)).learn(2)


def solved(oracle: Any) -> None:
    if all(getattr(oracle, name, 0) < 1e6 for name in ("max_iterations", "steps", "iterations")):
        TabularPBRL(TwoStateProblem(), oracle=oracle).learn(2)


TINY: dict[str, Any] = {"follower_steps": 8, "n_envs": 2, "rollout_envs": 2}
RECORDS: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "TabularPBRLConfig": ({}, tabular(TabularPBRL)),
    "HypergradientConfig": ({}, tabular(Hypergradient)),
    "HPGDConfig": ({"episodes": 2}, tabular(HPGD)),
    "ZeroOrderConfig": ({}, tabular(ZeroOrder)),
    "SoBiRLConfig": ({}, tracked),
    "MetaGradientConfig": ({}, tabular(MetaGradient)),
    "IndependentPolicyGradientConfig": ({}, tabular(IndependentPolicyGradient)),
    "SingleLoopConfig": ({"tau": 0.3}, tabular(SingleLoop)),
    "FiniteDifferencesConfig": ({"tau": 0.3, "block": 20, "burn_in": 10}, tabular(FiniteDifferences)),
    "TabularCMAESConfig": ({}, tabular(TabularCMAES)),
    "CMAESConfig": (
        {"follower_steps": 8, "n_envs": 2, "rollout_envs": 2, "population": 2},
        lambda config: CMAES(TWO, A2C, config=config).learn(10),
    ),
    "SweepConfig": (TINY, lambda config: Sweep(TWO, A2C, config=config).learn(200)),
    "OptunaSearchConfig": (
        TINY | {"startup_trials": 2},
        lambda config: OptunaSearch(TWO, A2C, config=config).learn(200),
    ),
    "PBRLConfig": ({"n_envs": 2, "follower_steps": 8, "warmup_steps": 8}, sampled),
    "PreferenceConfig": ({"labels": 4, "first_labels": 2, "length": 4}, preferred),
    "FitConfig": ({}, lambda fit: preferred(PreferenceConfig(fit=fit))),
    "RandomFragmenter": ({}, lambda one: preferred(PreferenceConfig(fragmenter=one))),
    "ActiveFragmenter": ({}, lambda one: preferred(PreferenceConfig(fragmenter=one))),
    "MonteCarlo": ({}, estimated),
    "Rollouts": ({"n_envs": 2}, estimated),
    "KnownModel": ({}, estimated),
    "ValuePenalty": ({}, penalised),
    "BellmanPenalty": ({}, penalised),
    "NikaidoIsodaPenalty": ({}, penalised),
    "Softmax": ({}, held),
    "Direct": ({}, held),
    "SoftPolicyIteration": ({}, solved),
    "MirrorDescent": ({}, solved),
    "PolicyGradient": ({}, solved),
    "Constant": ({"value": 0.1}, scheduled),
    "Linear": ({"start": 0.1, "end": 0.01}, scheduled),
    "Geometric": ({"start": 0.1, "end": 0.01}, scheduled),
    "Power": ({"start": 0.1, "end": 0.01, "exponent": 0.5}, scheduled),
    "Quench": ({"start": 0.1, "end": 0.01}, scheduled),
    "TrueReturnLabeller": ({}, lambda labeller: DRLHF(GRID, A2C, config=PreferenceConfig(), labeller=labeller)),
}


def parameters(of: Any) -> list[str]:
    return [name for name in inspect.signature(of).parameters if name not in ("self", "args", "kwargs", "render_mode")]


CLASSES: dict[str, Any] = {**storables(), **parts()}


@pytest.mark.parametrize("name", [name for name in RECORDS if parameters(CLASSES[name])])
def test_a_record(name: str) -> None:
    build, (base, use) = CLASSES[name], RECORDS[name]

    @fuzz(8)
    @given(st.data())
    def attempt(data: Any) -> None:
        attempted(data, build, base, parameters(build), use)

    attempt()


# --- leaders --------------------------------------------------------------------------------------------------------------

SMALL = PBRLConfig(n_envs=2, follower_steps=8, warmup_steps=8)
LEADERS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        leader.__name__: (leader, {"problem": TWO})
        for leader in (TabularPBRL, Hypergradient, HPGD, ZeroOrder, SoBiRL, MetaGradient, TabularCMAES)
    },
    "PBRL": (PBRL, {"env": TWO, "follower": A2C, "config": SMALL}),
    "Sweep": (Sweep, {"env": TWO, "follower": A2C}),
    "OptunaSearch": (OptunaSearch, {"env": TWO, "follower": A2C}),
    "CMAES": (CMAES, {"env": TWO, "follower": DQN}),
    "PreferencePBRL": (PreferencePBRL, {"env": GRID, "follower": A2C}),
}


@pytest.mark.parametrize("name", LEADERS)
def test_a_leader(name: str) -> None:
    build, base = LEADERS[name]
    names = [n for n in inspect.signature(build.__init__).parameters if n != "self"]

    @fuzz(8)
    @given(st.data())
    def attempt(data: Any) -> None:
        attempted(data, build, base, names, lambda leader: leader.evaluate() if base.get("problem") else None)

    attempt()


@fuzz(15)
@given(st.data())
def test_learning(data: Any) -> None:
    leader = TabularPBRL(TwoStateProblem())
    names = [n for n in ("callback", "progress_bar", "reset_num_timesteps") if data.draw(st.booleans())]
    wrong = {n: data.draw(arguments(), label=n) for n in names}
    total = data.draw(arguments().filter(lambda value: not isinstance(value, int) or value < 2**40), label="iterations")
    if not isinstance(wrong.get("callback"), type):  # which can be called, and are
        accepted(lambda: leader.learn(total, **wrong))


@fuzz(15)
@given(st.data())
def test_a_checkpoint(data: Any) -> None:
    good = Path(tempfile.mkdtemp()) / "leader.zip"
    path = data.draw(st.one_of(arguments(), st.just(good)), label="path")
    if not isinstance(path, str) or not path.strip("./x"):  # a name would be tried in the folder that is worked in
        path = path if not isinstance(path, str) else good
    accepted(lambda: Checkpoint(path, data.draw(arguments(), label="every")))


# --- environments -----------------------------------------------------------------------------------------------------------

ENVS = sorted(i for i in gym.registry if i.startswith("bilevel_gym/") and "Hopper" not in i)


def played(env: Any) -> None:
    for seed in (0, None):
        env.reset(seed=seed)
        for _ in range(3):
            env.step(env.action_space.sample())
    env.close()


@pytest.mark.parametrize("name", ENVS)
def test_an_environment(name: str) -> None:
    entry = gym.spec(name).entry_point
    assert isinstance(entry, str)
    module, _, cls = entry.partition(":")
    names = parameters(getattr(__import__(module, fromlist=[cls]), cls))

    @fuzz(8)
    @given(st.data())
    def attempt(data: Any) -> None:
        attempted(data, lambda **kwargs: gym.make(name, **kwargs), {}, names, played)

    attempt()


@fuzz(10)
@given(st.data())
def test_a_game(data: Any) -> None:
    from bilevel_gym.envs import incentive_design_v0

    names = parameters(incentive_design_v0.parallel_env)
    attempted(data, incentive_design_v0.parallel_env, {}, names, lambda game: game.reset(seed=0))


def test_labellers_are_told_apart() -> None:
    assert accepted(TrueReturnLabeller)[0]
    assert not accepted(lambda: TrueReturnLabeller(noise=0.7))[0]
