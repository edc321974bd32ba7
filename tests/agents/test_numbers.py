"""NumPy's and torch's scalars are numbers everywhere a number is: leaders made with them learn, are saved and go on alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN

from benchmarks.survival import contents, differences
from bilevel_gym.agents import (
    CMAES,
    DRLHF,
    PBRL,
    CMAESConfig,
    Geometric,
    Linear,
    MirrorDescent,
    PBRLConfig,
    PreferenceConfig,
    Rollouts,
    TabularPBRL,
    TabularPBRLConfig,
    TrueReturnLabeller,
    ValuePenalty,
    robustness,
)
from bilevel_gym.agents.followers.sb3 import SB3Follower
from bilevel_gym.agents.followers.spec import AlgorithmSpec, Answering
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.mdp.checks import check_count, check_gamma, check_number, check_seed, check_size, plain

TWO, GAME = "bilevel_gym/TwoState-v0", "bilevel_gym/StackelbergGame-v0"
Kind = Callable[[Any], Any]
KINDS: dict[str, Kind] = {
    "NumPy scalars": lambda value: np.int64(value) if isinstance(value, int) else np.float32(value),
    "0-dimensional arrays": lambda value: np.array(value),
    "0-dimensional tensors": lambda value: torch.tensor(value),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@kinds
@pytest.mark.parametrize("check", [check_seed, check_size, check_count, check_number])
def test_checks_return_pythons_numbers(kind: Kind, check: Any) -> None:
    found = check(kind(3), "n")
    assert found == 3
    assert type(found) is (float if check is check_number else int)
    assert type(check_gamma(kind(0.5))) is float
    assert type(plain(kind(3))) is int
    assert type(plain(kind(0.5))) is float


@pytest.mark.parametrize(
    "seed", [np.float64(3.0), np.int64(-1), np.True_, True, 1.5, np.array([3]), "3", np.array(2.0)]
)
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^seed: expected None or a whole number >= 0, got "):
        TabularPBRL(TWO, seed=seed)


def exact(kind: Kind) -> TabularPBRL:
    oracle = MirrorDescent(eta=kind(8.0), iterations=kind(4))
    config = TabularPBRLConfig(learning_rate=kind(0.125), eval_every=kind(2), low=kind(-0.5))
    return TabularPBRL(TWO, penalty=ValuePenalty(lam=kind(5.0)), oracle=oracle, config=config, seed=kind(3))


def sampled(kind: Kind) -> PBRL:
    config = PBRLConfig(
        learning_rate=Linear(kind(0.0625), kind(0.03125)),
        n_envs=kind(4),
        follower_steps=kind(64),
        warmup_steps=kind(64),
        estimator=Rollouts(n_envs=kind(4), tail=kind(0.25)),
        x_noise=kind(0.5),
        averaging=kind(0.5),
        eval_every=kind(2),
    )
    return PBRL(
        GAME,
        A2C,
        penalty=ValuePenalty(lam=Geometric(kind(2.0), kind(8.0))),
        config=config,
        seed=kind(7),
        env_kwargs={"n_states": kind(4)},
    )


def searching(kind: Kind) -> CMAES:
    config = CMAESConfig(
        sigma=kind(0.5), population=kind(4), follower_steps=kind(64), n_envs=kind(4), rollout_envs=kind(4)
    )
    return CMAES(TWO, A2C, config=config, seed=kind(5))


def asking(kind: Kind) -> DRLHF:
    sizes = {"labels": 4, "first_labels": 2, "length": 5, "first_steps": 64, "follower_steps": 64, "first_epochs": 2}
    config = PreferenceConfig(**{name: kind(value) for name, value in sizes.items()}, n_envs=kind(4))
    labeller = TrueReturnLabeller(noise=kind(0.25), budget=kind(20), seed=kind(1))
    return DRLHF("bilevel_gym/RewardGrid-v0", A2C, config=config, labeller=labeller, seed=kind(2))


@cache
def made_with_numbers(make: Callable[[Kind], Any], total: int) -> tuple[Any, int, Any]:
    """What the leader's file holds, and its steps and x when it has learned as long again."""
    reference = make(lambda value: value).learn(total)
    with TemporaryDirectory() as folder:
        held = contents(reference.save(Path(folder) / "leader.zip", replay=True))
    reference.learn(total, reset_num_timesteps=False)
    return held, reference.num_timesteps, reference.x


@pytest.mark.parametrize(
    ("make", "total", "name"),
    [
        *((exact, 6, name) for name in KINDS),
        (sampled, 900, "NumPy scalars"),
        (searching, 1500, "0-dimensional arrays"),
        (asking, 200, "0-dimensional tensors"),
    ],
)
def test_a_leader_made_with_scalars_is_the_leader_made_with_numbers(
    make: Callable[[Kind], Any], total: int, name: str, tmp_path: Path
) -> None:
    """Its file too, to the bit, and the leader that goes on from it."""
    held, steps, x = made_with_numbers(make, total)
    kind = KINDS[name]
    leader = make(kind).learn(kind(total))
    assert differences(contents(leader.save(tmp_path / "leader", replay=True)), held) == []
    again = type(leader).load(tmp_path / "leader.zip").learn(kind(total), reset_num_timesteps=False)
    assert again.num_timesteps == steps
    np.testing.assert_array_equal(again.x, x)


@kinds
def test_followers_and_their_settings(kind: Kind) -> None:
    """SB3 counts in the settings' own types: such a counter must not drop out of the follower's state."""
    worlds = Worlds(GAME, {"n_states": 4}, observe_commitment=True)

    def follower(kind: Kind) -> SB3Follower:
        settings = {"gradient_steps": kind(2), "learning_starts": kind(16), "batch_size": kind(16)}
        spec = AlgorithmSpec(DQN, {**settings, "learning_rate": kind(0.125)})
        return SB3Follower(spec, worlds.make(4), 0.9, kind(3), True, Answering(averaging=kind(0.5)))

    first, reference = follower(kind), follower(lambda value: value)
    for one in (first, reference):
        one.train(64, 128)
    assert differences(first.state_dict(), reference.state_dict()) == []
    second = follower(lambda value: value)
    second.load_state_dict(first.state_dict())
    assert differences(second.state_dict(), first.state_dict()) == []


def test_a_counter_of_a_users_model_is_kept_whatever_its_type() -> None:
    def build(venv: Any) -> DQN:
        return DQN("MlpPolicy", venv, gamma=0.9, learning_starts=8, gradient_steps=np.int64(2), device="cpu")  # type: ignore[arg-type]

    venv = Worlds(GAME, {"n_states": 4}, observe_commitment=True).make(4)
    follower = SB3Follower(build, venv, 0.9, 3, True, Answering())
    follower.train(64, 128)
    assert isinstance(follower.model._n_updates, np.integer)
    counters = follower.state_dict()["counters"]
    assert counters["_n_updates"] == follower.model._n_updates
    assert {type(value) for value in counters.values()} <= {bool, int, float}
    follower.load_state_dict(follower.state_dict())


def test_robustness_with_scalars() -> None:
    x, seeds = [0.5], np.arange(2)
    found = robustness(TWO, x, {"A2C": A2C}, np.int64(64), seeds, n_envs=np.int32(4))  # type: ignore[arg-type]
    assert found == robustness(TWO, x, {"A2C": A2C}, 64, [0, 1], n_envs=4)
    assert {type(part.seed) for part in found} == {int}
    with pytest.raises(ValueError, match=r"^seeds: expected a whole number >= 0, got 1.5"):
        robustness(TWO, x, {"A2C": A2C}, 64, [1.5])  # type: ignore[list-item]
