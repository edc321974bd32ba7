"""A run that was cut off and resumed is, to the bit, the run that was not."""

from __future__ import annotations

import csv
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sb3_contrib import ARS, QRDQN, TQC, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize

import bilevel_gym  # noqa: F401  registers the environments
from benchmarks.survival import contents, differences
from bilevel_gym.agents import (
    CMAES,
    DRLHF,
    HPGD,
    PBRL,
    BellmanPenalty,
    Checkpoint,
    CMAESConfig,
    HPGDConfig,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    KnownModel,
    Linear,
    MetaGradient,
    MonteCarlo,
    NikaidoIsodaPenalty,
    OptunaSearch,
    PBRLConfig,
    PreferenceConfig,
    PreferencePBRL,
    Rollouts,
    SingleLoop,
    SingleLoopConfig,
    SoBiRL,
    Sweep,
    TabularCMAES,
    TabularPBRL,
    TabularPBRLConfig,
    TrueReturnLabeller,
    TrueReward,
    ZeroOrder,
)
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.agents.leaders.single_loop import FiniteDifferences, FiniteDifferencesConfig
from bilevel_gym.agents.preferences.fragmenters import ActiveFragmenter
from bilevel_gym.agents.schedules import Quench
from tests.agents.users import forgetful

TWO, GAME, LQ = "bilevel_gym/TwoState-v0", "bilevel_gym/StackelbergGame-v0", "bilevel_gym/LQStackelberg-v0"
INCENTIVE = "bilevel_gym/incentive_design_v0"


def resumed(make: Callable[[], Any], load: Callable[[Path], Any], total: int, at: int, folder: Path) -> Any:
    """Learn on from a file of iteration ``at``; the leader, which has to be that of the run that went on by itself."""
    path, unbroken = folder / "checkpoint.zip", make()

    def keep(leader: Any) -> None:
        if leader.iteration == at:
            leader.save(path, replay=True)

    unbroken.learn(total, keep)
    loaded = load(path)
    assert loaded.iteration == at < unbroken.iteration
    assert loaded.remaining_timesteps > 0
    assert loaded.resume() is loaded
    assert loaded.remaining_timesteps == 0
    found = [contents(leader.save(folder / name, replay=True)) for leader, name in ((unbroken, "a"), (loaded, "b"))]
    assert differences(found[0], found[1]) == []
    return loaded


EXACT: dict[str, tuple[Callable[[], Any], int, int]] = {
    "PBRL": (lambda: TabularPBRL(GAME, env_kwargs={"n_states": 4}), 25, 13),
    "PBRL, Monte Carlo": (
        lambda: TabularPBRL(TWO, config=TabularPBRLConfig(estimator=MonteCarlo(), follower=Softmax(0.2))),
        25,
        13,
    ),
    "PBRL over a game": (lambda: TabularPBRL(INCENTIVE, penalty=NikaidoIsodaPenalty(lam=Linear(1.0, 5.0))), 12, 7),
    "hypergradient": (lambda: Hypergradient(TWO, config=HypergradientConfig(tau=Quench(0.5, 0.1, 0.6))), 25, 17),
    "hypergradient, LQ": (lambda: Hypergradient(LQ), 12, 5),
    "tracked": (lambda: SoBiRL(GAME, env_kwargs={"n_states": 4}), 25, 13),
    "independent": (lambda: IndependentPolicyGradient(TWO), 25, 13),
    "meta-gradient": (lambda: MetaGradient(INCENTIVE), 12, 5),
    "HPGD": (lambda: HPGD(TWO, config=HPGDConfig(learning_rate=0.1), seed=None), 12, 5),
    "zero order": (lambda: ZeroOrder(TWO), 12, 5),
    "CMA-ES": (lambda: TabularCMAES(GAME, env_kwargs={"n_states": 3}), 12, 5),
    "single loop": (lambda: SingleLoop(TWO, config=SingleLoopConfig(tau=0.3), env_kwargs={"tau": 0.3}), 2000, 7),
    "finite differences": (
        lambda: FiniteDifferences(
            TWO, config=FiniteDifferencesConfig(block=50, burn_in=10, tau=0.3), env_kwargs={"tau": 0.3}
        ),
        2000,
        7,
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_leaders_go_on_to_the_bit(name: str, tmp_path: Path) -> None:
    make, total, at = EXACT[name]
    resumed(make, type(make()).load, total, at, tmp_path)


SMALL = PBRLConfig(n_envs=4, follower_steps=64, warmup_steps=64, estimator=Rollouts(n_envs=4), eval_every=2)
NET: dict[str, Any] = {"net_arch": [8]}
OFF: dict[str, Any] = {"learning_starts": 32, "batch_size": 16, "buffer_size": 400, "policy_kwargs": NET}


def built(algorithm: Any, name: str = "MlpPolicy", gamma: float = 0.9, **settings: Any) -> Callable[[Any], Any]:
    """A callable with small settings."""
    discount = {} if algorithm is ARS else {"gamma": gamma}
    return lambda venv: algorithm(name, venv, device="cpu", seed=3, **discount, **deepcopy(settings))


def noisy(algorithm: Any) -> Callable[[Any], Any]:
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1))
    return lambda venv: algorithm(
        "MlpPolicy", venv, device="cpu", gamma=0.95, action_noise=noise, policy_delay=3, **deepcopy(OFF)
    )


def scaled(venv: Any) -> Any:
    return A2C("MlpPolicy", VecNormalize(venv, gamma=0.9), gamma=0.9, device="cpu", policy_kwargs=dict(NET))


SAMPLED: dict[str, tuple[str, Any, dict[str, Any], Any, int]] = {
    "A2C": (GAME, A2C, {}, None, 1600),
    "PPO, dummy": (GAME, PPO, {"vec_env": "dummy", "averaging": 0.0}, None, 1600),
    "known model": (GAME, A2C, {"estimator": KnownModel()}, None, 800),
    "DQN": (GAME, built(DQN, target_update_interval=70, **OFF), {}, None, 1600),
    "DQN, x unseen": (GAME, built(DQN, **OFF), {"observe_commitment": False}, None, 1600),
    "Bellman": (GAME, built(QRDQN, **{**OFF, "policy_kwargs": {**NET, "n_quantiles": 5}}), {}, BellmanPenalty(), 1600),
    "VecNormalize": (GAME, scaled, {}, None, 1600),
    "TRPO": (GAME, built(TRPO, n_steps=16, batch_size=16, policy_kwargs=NET), {}, None, 1600),
    "recurrent": (
        GAME,
        built(
            RecurrentPPO,
            "MlpLstmPolicy",
            n_steps=16,
            batch_size=64,
            n_epochs=1,
            policy_kwargs={**NET, "lstm_hidden_size": 4},
        ),
        {},
        None,
        2600,
    ),
    "random search": (GAME, built(ARS, "LinearPolicy", n_delta=1, n_eval_episodes=4), {}, None, 4000),
    "SAC": (LQ, built(SAC, gamma=0.95, **OFF), {"vec_env": "dummy"}, None, 4800),
    "SAC, gSDE": (LQ, built(SAC, gamma=0.95, use_sde=True, **OFF), {"averaging": 0.0}, None, 4800),
    "PPO, gSDE": (
        LQ,
        built(PPO, gamma=0.95, use_sde=True, n_steps=16, batch_size=32, policy_kwargs=NET),
        {},
        None,
        4500,
    ),
    "A2C, batches that grow": (LQ, built(A2C, gamma=0.95), {"estimator": Rollouts(n_envs=4, batches=3)}, None, 4800),
    "TD3": (LQ, noisy(TD3), {}, None, 4800),
    "TQC": (LQ, built(TQC, gamma=0.95, **OFF), {}, None, 4800),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_leaders_go_on_to_the_bit(name: str, tmp_path: Path) -> None:
    env, follower, changes, penalty, total = SAMPLED[name]
    config = replace(SMALL, **changes)
    kwargs = {"n_states": 4, "max_episode_steps": 20} if env == GAME else {"gamma": 0.95}
    again = None if isinstance(follower, type) else follower

    def make() -> PBRL:
        return PBRL(env, follower, penalty=penalty, config=config, seed=1, env_kwargs=kwargs)

    resumed(make, lambda path: PBRL.load(path, again), total, 3, tmp_path)


def test_four_followers_over_a_game_go_on_to_the_bit(tmp_path: Path) -> None:
    config = PBRLConfig.for_a_game(n_envs=4, follower_steps=32, warmup_steps=32, estimator=Rollouts(8), eval_every=2)
    resumed(lambda: PBRL(INCENTIVE, A2C, config=config), PBRL.load, 4000, 2, tmp_path)


@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_worlds_that_keep_their_state_to_themselves(vec_env: Any, tmp_path: Path) -> None:
    """Episodes begin anew in every iteration, with seeds of their own: nothing of a world has to be kept."""
    config = replace(SMALL, n_envs=2, estimator=Rollouts(2), vec_env=vec_env, evaluation_steps=64, eval_every=3)
    gamma = forgetful().get_wrapper_attr("gamma")
    follower = built(A2C, gamma=gamma, policy_kwargs=NET)
    made: list[PBRL] = []

    def make() -> PBRL:
        made.append(PBRL(forgetful, follower, config=config))
        return made[-1]

    made.append(resumed(make, lambda path: PBRL.load(path, follower, forgetful), 1500, 2, tmp_path))
    for leader in made:
        leader.close()


def test_a_black_box_over_sampled_followers_goes_on_to_the_bit(tmp_path: Path) -> None:
    config = CMAESConfig(follower_steps=64, n_envs=4, rollout_envs=4, population=3, eval_every=2)
    resumed(lambda: CMAES(TWO, A2C, config=config), CMAES.load, 3000, 2, tmp_path)


@pytest.mark.parametrize(
    ("search", "settings"),
    [
        (Sweep, {}),
        (Sweep, {"warm_start": True}),
        (OptunaSearch, {"startup_trials": 2}),
        (OptunaSearch, {"sampler": "cmaes", "warm_start": True}),
    ],
    ids=str,
)
def test_trials_one_after_another_go_on_to_the_bit(search: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"follower_steps": 64, "n_envs": 4, "rollout_envs": 2}
    follower = built(DQN, **OFF)

    def make() -> Any:
        return search(GAME, follower, **sizes, **settings, env_kwargs={"n_states": 3})

    resumed(make, lambda path: search.load(path, follower), 900, 3, tmp_path)


ASKED = PreferenceConfig(
    labels=24,
    first_labels=6,
    length=5,
    first_steps=64,
    follower_steps=64,
    n_envs=4,
    epochs=2,
    first_epochs=5,
    ensemble=2,
)
PREFERENCES: dict[str, Callable[[], Any]] = {
    "PBRL": lambda: PreferencePBRL("bilevel_gym/RewardGrid-v0", A2C, config=ASKED),
    "PBRL, DQN, noisy answers": lambda: PreferencePBRL(
        "bilevel_gym/RewardGrid-v0",
        built(DQN, **OFF),
        penalty=None,
        config=ASKED,
        labeller=TrueReturnLabeller(noise=0.2),
    ),
    "DRLHF, by disagreement": lambda: DRLHF(
        "bilevel_gym/RewardGrid-v0", A2C, config=replace(ASKED, fragmenter=ActiveFragmenter(3), memory=40)
    ),
    "DRLHF, recurrent, scaled": lambda: DRLHF("bilevel_gym/RewardGrid-v0", remembering, config=ASKED),
    "true reward, DQN": lambda: TrueReward("bilevel_gym/RewardGrid-v0", built(DQN, **OFF), config=ASKED),
}


def remembering(venv: Any) -> Any:
    return RecurrentPPO(
        "MlpLstmPolicy",
        VecNormalize(venv, norm_obs=False, gamma=0.9),
        gamma=0.9,
        n_steps=16,
        batch_size=64,
        n_epochs=1,
        policy_kwargs={**NET, "lstm_hidden_size": 4},
        device="cpu",
    )


@pytest.mark.parametrize("name", PREFERENCES)
def test_learning_from_preferences_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    make = PREFERENCES[name]

    def load(path: Path) -> Any:
        spec = make().follower_spec
        labeller = TrueReturnLabeller(noise=0.2) if "noisy" in name else None
        return type(make()).load(path, None if isinstance(spec, type) else spec, labeller=labeller)

    resumed(make, load, 1300, 4, tmp_path)


def test_a_world_that_keeps_its_state_to_itself_begins_new_episodes_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "learner.zip"
    config = replace(ASKED, vec_env="dummy")
    DRLHF("CartPole-v1", A2C, config=config).learn(700, [Checkpoint(path, every=2), lambda one: one.iteration < 4])
    with pytest.warns(UserWarning, match="the environment's state cannot be restored"):
        learner = DRLHF.load(path)
    assert learner.resume().remaining_timesteps == 0


def test_a_finished_run_has_nothing_left(tmp_path: Path) -> None:
    leader = TabularPBRL(TWO).learn(5)
    loaded = TabularPBRL.load(leader.save(tmp_path / "done"))
    before = contents(leader.save(tmp_path / "before"))
    assert loaded.remaining_timesteps == 0
    assert differences(contents(loaded.resume().save(tmp_path / "after")), before) == []


def test_a_finished_run_that_took_more_steps_than_asked_has_nothing_left(tmp_path: Path) -> None:
    """Found by a kill between the last checkpoint and the end: a sampled leader finishes its last iteration."""
    leader = PBRL(GAME, A2C, config=SMALL, env_kwargs={"n_states": 4}).learn(1500)
    assert leader.num_timesteps > 1500
    before = contents(leader.save(tmp_path / "before", replay=True))
    again = PBRL.load(tmp_path / "before").resume()
    assert differences(contents(again.save(tmp_path / "after", replay=True)), before) == []


def test_the_last_record_is_made_where_the_last_iteration_was_saved(tmp_path: Path) -> None:
    """The run ended between the last iteration and its honest evaluation."""
    path = tmp_path / "leader.zip"
    whole = TabularPBRL(TWO).learn(7, lambda leader: leader.iteration < 7 or leader.save(path) is not None)
    loaded = TabularPBRL.load(path).resume()
    assert [record.iteration for record in loaded.history] == [0, 7]
    assert differences(contents(loaded.save(tmp_path / "a")), contents(whole.save(tmp_path / "b"))) == []


def test_without_replay_a_file_is_small_and_learning_on_begins_an_empty_buffer(tmp_path: Path) -> None:
    leader = PBRL(GAME, built(DQN, **OFF), config=SMALL, env_kwargs={"n_states": 4}).learn(1500)
    small, large = leader.save(tmp_path / "small"), leader.save(tmp_path / "large", replay=True)
    assert not any(name.startswith("replay/") for name in contents(small))
    held = contents(large)["replay/penalised/observations.npy"]
    buffer: Any = leader.penalised.model.replay_buffer
    np.testing.assert_array_equal(held, buffer.observations[: len(held)])
    for path, size in ((small, 0), (large, len(held))):
        again: Any = PBRL.load(path, built(DQN, **OFF)).penalised.model
        assert again.replay_buffer.size() == size


def test_logs_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path: Path) -> None:
    def logged(folder: str) -> Any:
        return configure(str(tmp_path / folder), ["csv", "json", "log"])

    def told(leader: Any) -> None:
        leader.logger.record("mine/iteration", leader.iteration, exclude="json")

    path = tmp_path / "leader.zip"
    unbroken = TabularPBRL(TWO)
    unbroken.set_logger(logged("unbroken"))
    unbroken.learn(35, told)
    broken = TabularPBRL(TWO)
    broken.set_logger(logged("broken"))
    broken.learn(35, [told, lambda leader: leader.save(path) and leader.iteration < 20])
    loaded = TabularPBRL.load(path)
    loaded.set_logger(logged("broken"))
    loaded.resume(told)
    for name in ("progress.csv", "progress.json"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "unbroken" / name).read_text()
    with (tmp_path / "broken" / "progress.csv").open() as file:
        assert [int(float(row["leader/iteration"])) for row in csv.DictReader(file)] == [0, 10, 20, 30, 35]
