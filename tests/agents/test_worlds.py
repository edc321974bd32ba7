"""Native, in turn, or in processes: x reaches every copy, one seed gives one result to the bit, a dead worker has a name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import PBRL, Checkpoint, NikaidoIsodaPenalty, PBRLConfig, Rollouts
from bilevel_gym.agents.estimators.rollouts import collect, episode_returns
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.mdp import LeaderSet
from bilevel_gym.wrappers import RewardMixing, VectorEnvAdapter, WorkerVecEnv, set_leader
from tests.agents.followers.test_family import CONTINUOUS, DISCRETE, ENVS, tiny

GAME = "bilevel_gym/StackelbergGame-v0"
KINDS = {"native": VectorEnvAdapter, "dummy": DummyVecEnv, "subproc": WorkerVecEnv}
FAMILY = [(algorithm, "discrete") for algorithm in DISCRETE] + [
    (algorithm, "continuous") for algorithm in CONTINUOUS if algorithm not in DISCRETE
]


@pytest.mark.parametrize("vec_env", list(KINDS))
def test_x_reaches_every_copy_before_the_next_step(vec_env: Any) -> None:
    """In state 1 of the two-state problem, action 1 pays x - 1 + 0.5; the leader's model tells what it pays the leader."""
    worlds = Worlds("bilevel_gym/TwoState-v0", None, observe_commitment=True, vec_env=vec_env)
    venv = RewardMixing(worlds.make(3), 0.0)
    try:
        assert type(venv.unwrapped) is KINDS[vec_env]
        venv.reset()
        ones = np.ones(3, dtype=np.int64)
        set_leader(venv, [2.0])
        venv.step(ones)
        assert venv.step(ones)[1].tolist() == [1.5] * 3
        for points in ([0.5, 1.5, 3.0], [3.0, 0.5, 1.5], [0.0, 0.0, 1.0]):
            set_leader(venv, np.array(points)[:, None])
            obs, rewards, _, _ = venv.step(ones)
            assert rewards.tolist() == [x - 0.5 for x in points]
            assert isinstance(obs, np.ndarray)
            np.testing.assert_array_equal(obs[:, 3], np.float32(points))  # what each sees of its x in state 1
    finally:
        venv.close()


def learned(algorithm: Any, actions: str, vec_env: Any, seed: int = 0) -> list[torch.Tensor]:
    """x and all weights after a few iterations."""
    env_id, kwargs = ENVS[actions]
    config = PBRLConfig(
        n_envs=2, follower_steps=16, warmup_steps=16, estimator=Rollouts(2), eval_every=100, vec_env=vec_env
    )
    leader = PBRL(env_id, tiny(algorithm), config=config, seed=seed, env_kwargs=kwargs)
    leader.learn(250)
    leader.close()
    assert leader.iteration >= 1
    followers = (leader.best_response, leader.penalised)
    return [torch.from_numpy(leader.last_x), *(p.detach() for f in followers for p in f.model.policy.parameters())]


def equal(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.filterwarnings("ignore:the best response was certified", "ignore:follower. expected rollouts")
@pytest.mark.parametrize(
    ("algorithm", "actions"),
    [
        pytest.param(algorithm, actions, marks=[] if algorithm in (A2C, DQN, SAC) else [pytest.mark.long])
        for algorithm, actions in FAMILY
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_one_seed_is_one_result_to_the_bit(algorithm: type[BaseAlgorithm], actions: str) -> None:
    """Twice natively; in turn and in processes, which also tells that each of these repeats itself."""
    native = learned(algorithm, actions, "native")
    assert equal(native, learned(algorithm, actions, "native"))
    dummy = learned(algorithm, actions, "dummy")
    assert equal(dummy, learned(algorithm, actions, "subproc"))
    assert not equal(native, dummy)  # other random numbers
    assert not equal(native, learned(algorithm, actions, "native", seed=1))


def test_the_native_simulator_is_the_same_in_distribution() -> None:
    returns = []
    for vec_env, n in (("native", 2000), ("dummy", 1000)):
        worlds = Worlds(GAME, {"n_states": 4, "max_episode_steps": 10}, observe_commitment=False, vec_env=vec_env)  # type: ignore[arg-type]
        venv, rng = worlds.make(n), np.random.default_rng(3)
        played = collect(venv, lambda obs, rng=rng: (obs + rng.integers(2, size=len(obs))) % 3, 10, seed=8)  # type: ignore[misc]
        returns.append(np.stack(episode_returns(played, worlds.base_space, worlds.gamma)))
    means = [values.mean(1) for values in returns]
    stderr = np.sqrt(sum(values.var(1) / values.shape[1] for values in returns))
    assert np.all(np.abs(means[0] - means[1]) < 4 * stderr)
    assert np.all(stderr < 0.05)


# --- a worker that dies -------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_named() -> None:
    worlds = Worlds(GAME, {"n_states": 4}, observe_commitment=True, vec_env="subproc")
    venv = worlds.make(2).unwrapped
    assert isinstance(venv, WorkerVecEnv)
    venv.reset()
    venv.step_async(np.zeros(2, dtype=np.int64))
    os.kill(venv.processes[1].pid, signal.SIGKILL)
    venv.processes[1].join()
    message = rf"worker 1 \(process {venv.processes[1].pid}\), which holds copy 1 .* died: SIGKILL"

    def step_on() -> None:
        for _ in range(3):  # it may have answered before it died
            venv.step_wait()
            venv.step_async(np.zeros(2, dtype=np.int64))

    with pytest.raises(RuntimeError, match=message):
        step_on()
    with pytest.raises(RuntimeError, match=message):
        set_leader(venv, np.zeros(20))
    venv.close()
    assert not any(process.is_alive() for process in venv.processes)
    venv.close()


class Fragile(gym.Wrapper[Any, Any, Any, Any]):
    """It breaks in the middle."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps > 120:
            raise ZeroDivisionError("a bug of the user's")
        return self.env.step(action)


def fragile() -> gym.Env[Any, Any]:
    return Fragile(gym.make(GAME, n_states=4, max_episode_steps=10))


def test_learning_stops_at_a_dead_worker_and_x_is_still_there(tmp_path: Path) -> None:
    config = PBRLConfig(
        n_envs=2, follower_steps=16, warmup_steps=16, estimator=Rollouts(2), vec_env="subproc", evaluation_steps=16
    )
    leader = PBRL(fragile, tiny(A2C), config=config)
    start = leader.last_x
    with pytest.raises(RuntimeError, match=r"worker [01] .*, which holds copy [01] .* died: exit code 1"):
        leader.learn(10_000, Checkpoint(tmp_path / "checkpoint.zip", every=1))
    assert leader.iteration >= 2
    checkpoint = PBRL.load(tmp_path / "checkpoint.zip", follower=tiny(A2C), env=fragile)
    np.testing.assert_array_equal(checkpoint.last_x, leader.last_x)
    checkpoint.close()
    assert not np.array_equal(leader.last_x, start)
    assert leader.kept is not None
    leader.close()
    back = PBRL.load(leader.save(tmp_path / "leader.zip"), follower=tiny(A2C), env=fragile)
    np.testing.assert_array_equal(back.last_x, leader.last_x)
    assert back.iteration == leader.iteration
    back.close()


def test_a_worker_that_cannot_start_is_named() -> None:
    def broken() -> gym.Env[Any, Any]:
        raise ZeroDivisionError

    with pytest.raises(RuntimeError, match=r"worker 0 .* died: exit code 1"):
        WorkerVecEnv([broken])


def test_a_vectorisation_that_is_none_is_refused() -> None:
    with pytest.raises(
        ValueError, match="vec_env: expected None, 'dummy' or 'subproc' for an environment inside a wrapper"
    ):
        PBRL(fragile, tiny(A2C), config=PBRLConfig(vec_env="native"))
    with pytest.raises(ValueError, match="vec_env: expected None or one of"):
        PBRLConfig(vec_env="threads")  # type: ignore[arg-type]


def test_games_are_simulated_natively() -> None:
    game, asked = "bilevel_gym/incentive_design_v0", PBRLConfig.for_a_game
    for config, name in ((asked(vec_env="dummy"), "vec_env"), (asked(relabel=True), "relabel")):
        with pytest.raises(ValueError, match=f"{name}: expected None or .* for a game"):
            PBRL(game, A2C, penalty=NikaidoIsodaPenalty(), config=config)


def test_a_checkpoint_needs_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path: expected a file in a folder that exists"):
        Checkpoint(tmp_path / "nowhere" / "leader.zip")
    with pytest.raises(ValueError, match="every: expected"):
        Checkpoint(tmp_path / "leader.zip", every=0)


class Budgeted(gym.Wrapper):
    """A game whose X is less than its box: sum |x_i| <= 2."""

    def __init__(self, env: Any, leader_set: Any = None) -> None:
        super().__init__(env)
        space = env.unwrapped.leader_space
        self.leader_set = leader_set or LeaderSet(torch.as_tensor(space.low), torch.as_tensor(space.high), 2.0)

    def set_leader(self, x: Any) -> None:
        """Refuse what is outside X."""
        self.get_wrapper_attr("leader_set").check(x)
        self.env.unwrapped.set_leader(x)  # type: ignore[attr-defined]


def test_a_leader_set_that_the_environment_states_is_kept_to() -> None:
    """x and the points around it at which followers train lie in X, though the box is wider."""

    def make(leader_set: Any = None) -> Any:
        return Budgeted(gym.make(GAME, n_states=3, n_leader_actions=2), leader_set)

    worlds = Worlds(make(), None, observe_commitment=True)
    assert worlds.leader_set.budget == 2.0
    config = PBRLConfig(n_envs=4, follower_steps=64, warmup_steps=64, estimator=Rollouts(n_envs=8), learning_rate=1.0)
    leader = PBRL(make(), A2C, config=config, seed=0).learn(8000)
    assert leader.iteration >= 1
    assert np.abs(leader.last_x).sum() <= 2.0 + 1e-9
    for wrong in (LeaderSet.box(2, -1.0, 1.0), "a budget"):
        with pytest.raises(ValueError, match=r"^env.leader_set: expected a LeaderSet of 6 coordinates"):
            Worlds(make(wrong), None, observe_commitment=False)
