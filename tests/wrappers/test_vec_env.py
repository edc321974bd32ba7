"""The native simulator as a VecEnv, and set_leader on any VecEnv."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

import bilevel_gym
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
from bilevel_gym.envs.tabular import TabularVectorEnv
from bilevel_gym.envs.two_state import TwoStateEnv
from bilevel_gym.wrappers import VectorEnvAdapter, set_leader
from bilevel_gym.wrappers.vec_env import add_info_column, info_column

assert bilevel_gym.__version__
GAME = "bilevel_gym:bilevel_gym/StackelbergGame-v0"
SMALL: dict[str, Any] = {"n_states": 4, "n_leader_actions": 3, "n_follower_actions": 2}


def adapter(num_envs: int = 4, **kwargs: Any) -> VectorEnvAdapter:
    return VectorEnvAdapter(gym.make_vec(GAME, num_envs=num_envs, **SMALL, **kwargs))


def terminal_problem() -> ArrayProblem:
    """Action a leads to state a; state 1 is terminal."""
    rewards = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    terminal = torch.tensor([False, True])
    base = TabularMDP(torch.eye(2).expand(2, 2, 2), rewards, torch.tensor([1.0, 0.0]), 0.9, terminal)
    return ArrayProblem(base, LeaderSet.box(1, 0, 1), lambda x: base.r + x, lambda x: 2 * base.r + x)


def test_steps_are_those_of_the_simulator() -> None:
    venv, twin = adapter(max_episode_steps=5), gym.make_vec(GAME, num_envs=4, **SMALL, max_episode_steps=5)
    x = np.random.default_rng(0).normal(size=(4, 12))
    venv.set_leader(x)
    twin.unwrapped.set_leader(x)  # type: ignore[attr-defined]
    venv.seed(3)
    np.testing.assert_array_equal(venv.reset(), twin.reset(seed=3)[0])
    rng = np.random.default_rng(1)
    for t in range(1, 12):
        actions = rng.integers(2, size=4)
        obs, rewards, dones, infos = venv.step(actions)
        obs_2, rewards_2, terminated, truncated, infos_2 = twin.step(actions)
        np.testing.assert_array_equal(obs, obs_2)
        np.testing.assert_array_equal(rewards, rewards_2.astype(np.float32))
        assert rewards.dtype == np.float32
        np.testing.assert_array_equal(dones, terminated | truncated)
        for i, info in enumerate(infos):
            ended = {"terminal_observation"} if t % 5 == 0 else set()
            assert set(info) == {"leader_reward", "leader_draw", "TimeLimit.truncated"} | ended
            assert type(info["leader_reward"]) is float
            assert type(info["leader_draw"]) is int
            assert (info["leader_reward"], info["leader_draw"]) == (
                infos_2["leader_reward"][i],
                infos_2["leader_draw"][i],
            )
            assert info["TimeLimit.truncated"] is bool(truncated[i])
            assert not ended or info["terminal_observation"] == infos_2["final_obs"][i]


def test_without_infos_the_same_stands_in_arrays_and_only_ends_are_told() -> None:
    told, quiet = (
        VectorEnvAdapter(gym.make_vec(GAME, num_envs=4, **SMALL, max_episode_steps=5), infos=infos)
        for infos in (True, False)
    )
    for venv in (told, quiet):
        venv.seed(3)
        venv.reset()
    for t in range(1, 12):
        one, two = told.step(np.zeros(4, dtype=np.int64)), quiet.step(np.zeros(4, dtype=np.int64))
        for name in ("leader_reward", "leader_draw", "TimeLimit.truncated"):
            for venv, step in ((told, one), (quiet, two)):
                np.testing.assert_array_equal(info_column(venv, step[3], name), [info[name] for info in one[3]])
        assert two[3] == (one[3] if t % 5 == 0 else [{}] * 4)
        add_info_column(quiet, two[3], "mine", np.arange(4.0))
        assert info_column(quiet, two[3], "mine").tolist() == [0.0, 1.0, 2.0, 3.0]
        assert "mine" not in two[3][0]
    with pytest.raises(ValueError, match=r"^info: expected the key 'mine' after every step"):
        info_column(told, one[3], "mine")
    assert info_column(told, one[3], "mine", optional=True) is None


def test_a_terminal_state_is_no_time_limit() -> None:
    """Copies in turn: terminated at step 2, truncated at step 2, both at once are a termination."""
    venv = VectorEnvAdapter(TabularVectorEnv(terminal_problem(), 2, max_episode_steps=2))
    venv.reset()
    venv.step(np.array([1, 0]))
    obs, rewards, dones, infos = venv.step(np.array([1, 0]))
    assert dones.tolist() == [True, True]
    assert [info["TimeLimit.truncated"] for info in infos] == [False, True]
    assert [int(info["terminal_observation"]) for info in infos] == [1, 0]
    assert isinstance(obs, np.ndarray)
    assert obs.tolist() == [0, 0]
    assert rewards.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("algorithm", [partial(A2C, n_steps=8), partial(DQN, learning_starts=10)])
def test_sb3_trains_on_it(algorithm: Any) -> None:
    venv = VecMonitor(adapter(num_envs=4))
    model = algorithm("MlpPolicy", venv, device="cpu")
    model.learn(500)
    assert model.num_timesteps >= 500
    assert {len_info["l"] for len_info in model.ep_info_buffer} == {100}


def test_methods_and_attributes_by_copy() -> None:
    venv = adapter(num_envs=3)
    venv.reset()
    x = np.linspace(-1, 1, 12)
    venv.env_method("set_leader", x, indices=[0, 2])
    rows = venv.get_attr("leader_x")
    np.testing.assert_array_equal(rows, [x, np.zeros(12), x])
    shown = venv.env_method("commitment", 1)
    np.testing.assert_allclose(shown[1], 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(shown[0], venv.commitment(np.ones(3, dtype=np.int64))[0])
    np.testing.assert_array_equal(venv.env_method("commitment", 1, indices=2), [shown[2]])
    for row, i, s in zip(venv.env_method("commitment", [3, 1], indices=[0, 2]), (0, 2), (3, 1), strict=True):
        np.testing.assert_array_equal(row, venv.commitment(np.full(3, s))[i])
    assert venv.get_attr("gamma", indices=[0, 1]) == [0.9, 0.9]
    assert venv.env_is_wrapped(Monitor) == [False] * 3
    assert venv.has_attr("commitment_size")
    assert not venv.has_attr("typo")
    with pytest.raises(AttributeError):
        venv.set_attr("typo", 1)
    with pytest.raises(AttributeError):
        venv.set_attr("leader_x", x)
    with pytest.raises(ValueError, match=r"^indices"):
        venv.set_attr("gamma", 0.5, indices=0)
    with pytest.raises(ValueError, match=r"^x: expected"):
        venv.env_method("set_leader", np.zeros((3, 12)), indices=0)
    with pytest.raises(ValueError, match=r"^env: expected"):
        VectorEnvAdapter(gym.make_vec(GAME, num_envs=2, vectorization_mode="sync", **SMALL))


def venvs() -> list[VecEnv]:
    make = partial(gym.make, "bilevel_gym:bilevel_gym/TwoState-v0")
    return [
        DummyVecEnv([lambda: Monitor(make()) for _ in range(3)]),
        VecMonitor(DummyVecEnv([make] * 3)),
        VectorEnvAdapter(TwoStateEnv.vector(3)),
        VecMonitor(VectorEnvAdapter(TwoStateEnv.vector(3))),
    ]


@pytest.mark.parametrize("which", range(4))
def test_set_leader_reaches_every_copy(which: int) -> None:
    """In state 1 action 1 pays x - 1 + 0.5."""
    venv = venvs()[which]
    venv.reset()
    ones = np.ones(3, dtype=np.int64)
    set_leader(venv, [2.0])
    venv.step(ones)
    assert venv.step(ones)[1].tolist() == [1.5] * 3
    set_leader(venv, np.array([[0.5], [1.5], [3.0]]))
    assert venv.step(ones)[1].tolist() == [0.0, 1.0, 2.5]
    for wrong in (np.zeros((2, 1)), np.zeros(2), 1.0, [9.0], [[np.nan]] * 3):
        with pytest.raises(ValueError, match=r"^x(\[0\])?: expected"):
            set_leader(venv, wrong)


def test_subprocesses_equal_the_same_process_to_the_bit() -> None:
    make = partial(gym.make, GAME, **SMALL)
    dummy, subproc = DummyVecEnv([make, make]), SubprocVecEnv([make, make], start_method="forkserver")
    try:
        for venv in (dummy, subproc):
            venv.seed(7)
        np.testing.assert_array_equal(dummy.reset(), subproc.reset())
        rng = np.random.default_rng(0)
        draws = []
        for t in range(210):
            if t % 10 == 0:
                x = np.full((2, 4, 3), -10.0)
                x[0, :, t // 10 % 3], x[1, :, (t // 10 + 1) % 3] = 10.0, 10.0
                set_leader(dummy, x.reshape(2, -1))
                set_leader(subproc, x.reshape(2, -1))
            actions = rng.integers(2, size=2)
            one, two = dummy.step(actions), subproc.step(actions)
            parts: Any = zip(one[:3], two[:3], strict=True)
            for a, b in parts:
                np.testing.assert_array_equal(a, np.asarray(b, dtype=a.dtype))  # Subproc leaves rewards float64
            assert one[3] == list(two[3])
            draws.append([info["leader_draw"] for info in two[3]])
        # Each copy's own x, from the next step on.
        assert draws == [[t // 10 % 3, (t // 10 + 1) % 3] for t in range(210)]
    finally:
        subproc.close()
