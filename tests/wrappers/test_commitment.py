"""Observations that show the leader's commitment."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv

import bilevel_gym
from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.wrappers import ObserveCommitment, RewardMixing, VectorEnvAdapter
from bilevel_gym.wrappers.vec_env import info_column

assert bilevel_gym.__version__
GAME, TWO = "bilevel_gym/StackelbergGame-v0", "bilevel_gym/TwoState-v0"
SMALL: dict[str, Any] = {"n_states": 4, "n_leader_actions": 3, "n_follower_actions": 2}


class BoxEnv(gym.Env[NDArray[np.float64], np.int64]):
    """A vector observation; the commitment depends on it."""

    observation_space = gym.spaces.Box(-5.0, 5.0, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)
    commitment_size = 1
    commitment_is_distribution = False

    def __init__(self, shape: tuple[int, ...] = (2,)) -> None:
        self.observation_space = gym.spaces.Box(-5.0, 5.0, shape, np.float64)

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        return np.array([10.0 * obs[0]], dtype=np.float32)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return np.array([1.0, 2.0]), {}

    def step(self, action: Any) -> Any:
        return np.array([3.0, 4.0]), 0.0, False, False, {}


def policy(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x.reshape(4, 3))
    answer: NDArray[np.float64] = e / e.sum(1, keepdims=True)
    return answer


@pytest.mark.filterwarnings("ignore:.*(unwrapped version|Box observation space).*")
@pytest.mark.parametrize("name", [GAME, TWO])
def test_checkers_accept_it(name: str) -> None:
    env = ObserveCommitment(gym.make(name))
    sb3_check_env(env, skip_render_check=True)
    assert env.spec is not None
    again = env.spec.make()
    assert isinstance(again, ObserveCommitment)
    assert again.observation_space == env.observation_space
    check_env(again, skip_render_check=True)
    assert pickle.loads(pickle.dumps(env)).observation_space == env.observation_space


def test_the_product_of_state_and_commitment() -> None:
    env = ObserveCommitment(gym.make(GAME, **SMALL))
    x = np.linspace(-2, 2, 12)
    env.get_wrapper_attr("set_leader")(x)
    obs, _ = env.reset(seed=0)
    seen = set()
    for _ in range(30):
        s = int(env.base_observation(obs))
        expected = np.zeros((4, 3))
        expected[s] = policy(x)[s]
        np.testing.assert_allclose(obs, expected.ravel(), rtol=1e-6)
        assert s == env.unwrapped._state  # type: ignore[attr-defined]
        seen.add(s)
        obs = env.step(0)[0]
    assert seen == {0, 1, 2, 3}
    two = ObserveCommitment(gym.make(TWO))
    two.get_wrapper_attr("set_leader")([0.0])  # a commitment of zeros hides no state
    two.reset(seed=0)
    assert two.step(1)[0].tolist() == [0, 0, 1, 0]
    two.get_wrapper_attr("set_leader")([2.5])
    assert two.step(0)[0].tolist() == [1, 2.5, 0, 0]


def test_the_follower_value_is_linear_in_the_features() -> None:
    """r_x(s, a) = <phi(s), theta_a> with one theta for every x: what the feature map is for."""
    problem = random_stackelberg(**SMALL, seed=0)
    env = ObserveCommitment(gym.make(GAME, **SMALL))
    theta = problem.r_follower.reshape(12, 2).numpy()
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=12)
        env.get_wrapper_attr("set_leader")(x)
        obs, _ = env.reset(seed=seed)
        r_x = problem.follower_mdp(torch.from_numpy(x)).r.numpy()
        np.testing.assert_allclose(obs @ theta, r_x[int(env.base_observation(obs))], rtol=1e-5)


def test_vector_observations_are_lengthened() -> None:
    env = ObserveCommitment(BoxEnv())
    assert env.observation_space.shape == (3,)
    assert env.reset()[0].tolist() == [1, 2, 10]
    obs = env.step(0)[0]
    assert obs.tolist() == [3, 4, 30]
    assert env.base_observation(np.stack([obs, obs])).tolist() == [[3, 4], [3, 4]]
    with pytest.raises(ValueError, match=r"^env: expected"):
        ObserveCommitment(BoxEnv((2, 2)))


def test_copies_show_their_own_x_and_last_observations_too() -> None:
    env = gym.make_vec(GAME, num_envs=3, **SMALL, max_episode_steps=4)
    adapter = VectorEnvAdapter(env, observe_commitment=True)
    venv = RewardMixing(adapter, 0.0)
    x = np.random.default_rng(0).normal(size=(3, 12))
    venv.env_method("set_leader", x)
    obs: Any = venv.reset()
    for t in range(1, 9):
        assert venv.observation_space.contains(obs[0])
        states = adapter.base_observation(obs)
        for i in range(3):
            np.testing.assert_allclose(obs[i].reshape(4, 3)[states[i]], policy(x[i])[states[i]], rtol=1e-6)
        following, _, dones, infos = venv.step(np.zeros(3, dtype=np.int64))
        np.testing.assert_array_equal(info_column(venv, infos, "base_obs"), states)
        after = info_column(venv, infos, "base_next_obs")
        obs = following
        assert dones.all() == (t % 4 == 0)
        np.testing.assert_array_equal(after == adapter.base_observation(obs), ~dones | (after == env._state))  # type: ignore[attr-defined]
        for i in range(3):
            if dones[i]:
                last = infos[i]["terminal_observation"]
                state = int(adapter.base_observation(last))
                assert state == after[i]
                assert last.dtype == np.float32
                assert np.count_nonzero(last) == 3
                np.testing.assert_allclose(last.reshape(4, 3)[state], policy(x[i])[state], rtol=1e-6)


def test_the_last_observation_is_that_of_the_last_state() -> None:
    """In the two-state problem, that is the last action, whatever the reset draws."""
    venv = VectorEnvAdapter(gym.make_vec(TWO, num_envs=8, max_episode_steps=1), observe_commitment=True)
    venv.seed(0)
    first = venv.reset()
    last = np.arange(8) % 2
    obs, _, _, infos = venv.step(last)
    assert venv.base_observation([info["terminal_observation"] for info in infos]).tolist() == last.tolist()
    assert venv.base_observation(obs).tolist() != last.tolist()
    assert not np.array_equal(np.asarray(first), np.asarray(obs))


@pytest.mark.parametrize("name", [GAME, TWO])
def test_leader_model_reads_the_longer_observations(name: str) -> None:
    kwargs = SMALL if name == GAME else {}
    single = ObserveCommitment(gym.make(name, **kwargs))
    venv = VectorEnvAdapter(gym.make_vec(name, num_envs=5, **kwargs), observe_commitment=True)
    x = np.linspace(-0.5, 0.5, single.get_wrapper_attr("leader_space").shape[0])
    single.get_wrapper_attr("set_leader")(x)
    venv.env_method("set_leader", x)
    obs = venv.reset()
    action = np.array([0, 1, 0, 1, 1])
    following, rewards, _, infos = venv.step(action)
    draws = np.array([info["leader_draw"] for info in infos])
    models: list[Any] = [single.leader_model(), venv.leader_model(), venv.env_method("leader_model", indices=0)[0]]
    for model in models:
        assert [key for key, _ in model.named_parameters()] == ["x"]
        follower, leader, log_p = model(torch.as_tensor(obs), action, draws, torch.as_tensor(following))
        np.testing.assert_allclose(follower.detach(), rewards, rtol=1e-6)
        np.testing.assert_allclose(leader.detach(), [info["leader_reward"] for info in infos])
        s = venv.base_observation(obs)
        inner = venv.env.leader_model()
        torch.testing.assert_close(log_p, inner(s, action, draws, s)[2])
        assert torch.autograd.grad(log_p.sum() + leader.sum(), model.x)[0].abs().sum() > 0


def test_ppo_trains_on_it() -> None:
    venv = VectorEnvAdapter(gym.make_vec(GAME, num_envs=4, **SMALL), observe_commitment=True)
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_epochs=1, device="cpu").learn(512)
    assert model.num_timesteps == 512


@pytest.mark.parametrize("name", [GAME, TWO, "bilevel_gym/FourRooms-v0"])
def test_every_observation_is_what_the_single_environment_shows(name: str) -> None:
    """Under any x, one or several, whatever x the parallel environments are under."""
    kwargs = SMALL if name == GAME else {}
    single = ObserveCommitment(gym.make(name, **kwargs))
    venv = VectorEnvAdapter(gym.make_vec(name, num_envs=2, **kwargs), observe_commitment=True)
    before = venv.get_attr("leader_x")
    points = np.random.default_rng(0).uniform(-1, 1, (3, len(before[0])))
    n = int(single.env.observation_space.n)  # type: ignore[attr-defined]
    expected = []
    for x in points:
        single.get_wrapper_attr("set_leader")(x)
        expected.append(np.stack([single.observation(s) for s in range(n)]))
    np.testing.assert_array_equal(venv.every_observation(points), np.concatenate(expected))
    np.testing.assert_array_equal(venv.every_observation(points[1]), expected[1])
    np.testing.assert_array_equal(venv.every_observation(points[1], [3, 0] if n > 3 else [1, 0])[1], expected[1][0])
    np.testing.assert_array_equal(venv.get_attr("leader_x"), before)
    plain = VectorEnvAdapter(gym.make_vec(name, num_envs=2, **kwargs))
    np.testing.assert_array_equal(plain.every_observation(points), np.tile(np.arange(n), 3))


@pytest.mark.parametrize("name", [GAME, "bilevel_gym/LQStackelberg-v0"])
def test_the_environment_s_own_observations_are_carried_as_they_stand_in_the_vectors(name: str) -> None:
    """Beside the features, in the native simulator's arrays and in the infos of single environments: never searched for."""
    make: Any = {"max_episode_steps": 3, **(SMALL if name == GAME else {})}
    native = VectorEnvAdapter(gym.make_vec(name, num_envs=2, **make), observe_commitment=True)
    dummy = DummyVecEnv([lambda: ObserveCommitment(gym.make(name, **make)) for _ in range(2)])
    for venv in (native, dummy):
        read = native.base_observation if venv is native else dummy.envs[0].get_wrapper_attr("base_observation")
        venv.seed(0)
        obs: Any = venv.reset()
        for _ in range(7):
            following, _, dones, infos = venv.step(np.stack([venv.action_space.sample() for _ in range(2)]))
            after = np.array(following)
            for i in np.flatnonzero(dones):
                after[i] = infos[i]["terminal_observation"]
            for key, seen in (("base_obs", obs), ("base_next_obs", after)):
                found = info_column(venv, infos, key)
                np.testing.assert_array_equal(found, read(seen))
                assert found.dtype == read(seen).dtype
            obs = following
