"""Replay that stays true: rewards are those of the current x and lam, what tells of another MDP is dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts
from bilevel_gym.agents.followers.product_features import Blocks
from bilevel_gym.agents.followers.replay import TrueReplay, buffer_state, restore_buffer
from bilevel_gym.agents.followers.sb3 import SB3Follower
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.core import LeaderEnv
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP, TabularProblem
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import RewardMixing, set_leader

GAME = "bilevel_gym/StackelbergGame-v0"
CONFIG = PBRLConfig(n_envs=4, follower_steps=32, warmup_steps=32, estimator=Rollouts(4, tail=0.5), eval_every=4)


def reward_problem(moves_transitions: bool = False) -> TabularProblem:
    """x enters both rewards, and no probability unless asked."""
    rng = torch.Generator().manual_seed(7)
    S, A, dim = 5, 3, 2
    P, Q, r, g = (torch.rand(S, A, n, generator=rng, dtype=torch.float64) for n in (S, S, dim, dim))
    base = TabularMDP(P / P.sum(-1, keepdim=True), r[..., 0], torch.full((S,), 1 / S), 0.9)

    def transition(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(P + x[0] * Q, -1)

    moving = transition if moves_transitions else None
    return ArrayProblem(base, LeaderSet.box(dim, -3, 3), lambda x: (r * x).sum(-1), lambda x: (g * x).sum(-1), moving)


class Aim(LeaderEnv[Any, Any]):
    """The follower is paid for an action near x, in bounds that are not [-1, 1]; not tabular."""

    gamma, commitment_size = 0.5, 1

    def __init__(self) -> None:
        self.leader_space = gym.spaces.Box(-1.0, 2.0, (1,), np.float64)
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float64)
        self.action_space = gym.spaces.Box(-2.0, 3.0, (1,), np.float32)
        self._x, self._s = np.array([0.5]), np.zeros(1)

    @property
    def leader_x(self) -> NDArray[np.float64]:
        return self._x.copy()

    def set_leader(self, x: Any) -> None:
        self._x = np.array(x, dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._s = self.np_random.normal(size=1)
        return self._s.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        missed = float(action[0]) - float(self._x[0]) * float(self._s[0])
        info = {"leader_reward": float(action[0] - self._x[0]), "leader_draw": 0}
        self._s = 0.5 * self._s + self.np_random.normal(size=1)
        return self._s.copy(), -(missed**2), False, False, info

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        return self._x.astype(np.float32)

    def leader_model(self) -> torch.nn.Module:
        class Model(torch.nn.Module):
            def __init__(self, x: NDArray[np.float64]) -> None:
                super().__init__()
                self.x = torch.nn.Parameter(torch.from_numpy(x))

            def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
                a = action[..., 0].double()
                return -((a - self.x * obs[..., 0].double()) ** 2), a - self.x, torch.zeros_like(a)

        return Model(self.leader_x)


class Same(gym.Wrapper[Any, Any, Any, Any]):
    """A user's wrapper, behind which no model is read."""


def driver(venv: VecEnv) -> BaseAlgorithm:
    return DQN("MlpPolicy", venv, gamma=0.9, learning_starts=8, batch_size=16, device="cpu")


# --- where x enters rewards alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (lambda: TabularEnv(reward_problem()), True),
        (lambda: Same(gym.wrappers.TimeLimit(TabularEnv(reward_problem()), 10)), True),
        (lambda: TabularEnv(reward_problem(moves_transitions=True)), False),
        (lambda: Same(TabularEnv(reward_problem(moves_transitions=True))), False),
        (lambda: gym.make(GAME, n_states=4), False),
        (lambda: Same(gym.make(GAME, n_states=4)), False),
        (lambda: gym.make("bilevel_gym/LQStackelberg-v0"), False),
        (lambda: gym.make("bilevel_gym/TwoState-v0"), True),
        (lambda: gym.make("bilevel_gym/TollDesign-v0", n_nodes=8), True),
        (Aim, True),
    ],
)
def test_where_x_enters_is_found_out(env: Any, expected: bool) -> None:
    assert Worlds(env, None, observe_commitment=False).only_rewards_move is expected


def kept(venv: VecEnv, worlds: Worlds, blocks: Blocks | None = None) -> TrueReplay:
    """A buffer of 40 steps in three environments."""
    space = worlds.base_space if worlds.observe_commitment else None
    like = (120, venv.observation_space, venv.action_space, "cpu", 3)
    return TrueReplay(*like, venv=venv, base_space=space, blocks=blocks)


def form(worlds: Worlds) -> Blocks | None:
    """The form of the product features that followers see; None where they see none."""
    space = worlds.base_space
    if not worlds.observe_commitment or not isinstance(space, gym.spaces.Discrete):
        return None
    return Blocks(int(space.n), worlds.make(1).observation_space.shape[0] // int(space.n))  # type: ignore[index]


def whole(buffer: TrueReplay, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The follower's observations of the first n steps, whole, ``[n, n_envs, D]``."""
    if buffer._blocks is None:
        return buffer.observations[:n], buffer.next_observations[:n]
    pairs = ((buffer.base_obs, buffer.observations), (buffer.base_next_obs, buffer.next_observations))
    size, shape = n * buffer.n_envs, (n, buffer.n_envs, -1)
    seen = [
        buffer._blocks.join(s[:n].reshape(size), part[:n].reshape(size, -1)).numpy().reshape(shape)  # type: ignore[index]
        for s, part in pairs
    ]
    return seen[0], seen[1]


def play(
    venv: VecEnv, points: NDArray[np.float64], weight: float, buffer: TrueReplay | None = None
) -> list[tuple[Any, Any, Any]]:
    """(obs, rewards, next_obs) of 25 steps with fixed random numbers and actions; they go into the buffer."""
    mixed = RewardMixing(venv, weight)
    set_leader(mixed, points)
    mixed.seed(11)
    mixed.action_space.seed(5)
    obs, steps = np.asarray(mixed.reset()), []
    for _ in range(25):
        actions = np.stack([mixed.action_space.sample() for _ in range(mixed.num_envs)])
        following, rewards, dones, infos = mixed.step(actions)
        after = np.array(following)
        for i in np.flatnonzero(dones):
            after[i] = infos[i]["terminal_observation"]
        if buffer is not None:
            space, stored = mixed.action_space, actions
            if isinstance(space, gym.spaces.Box):
                stored = 2.0 * (actions - space.low) / (space.high - space.low) - 1.0
            buffer.add(obs, after, stored, rewards, dones, infos)
        steps.append((obs, rewards, after))
        obs = np.asarray(following)
    return steps


@pytest.mark.parametrize(("observe_commitment", "in_blocks"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("vec_env", ["native", "dummy"])
@pytest.mark.parametrize("name", ["own", "FourRooms", "TollDesign"])
@pytest.mark.filterwarnings("ignore:.*regularised at tau.*")
def test_relabelled_rewards_are_what_the_environment_pays_to_the_bit(
    name: str, vec_env: Any, observe_commitment: bool, in_blocks: bool
) -> None:
    """The same random numbers and actions at the old x, relabelled, and at the new one."""
    env: Any = {
        "own": lambda: gym.wrappers.TimeLimit(TabularEnv(reward_problem()), 10),
        "FourRooms": lambda: gym.make("bilevel_gym/FourRooms-v0", max_episode_steps=10),
        "TollDesign": lambda: gym.make("bilevel_gym/TollDesign-v0", n_nodes=8, max_episode_steps=10),
    }[name]
    worlds = Worlds(env, None, observe_commitment, vec_env)
    assert worlds.only_rewards_move
    rng, dim = np.random.default_rng(0), worlds.leader_set.dim
    old, new = (worlds.leader_set.project(torch.from_numpy(rng.uniform(0, 2, (3, dim)))).numpy() for _ in range(2))
    venv = worlds.make(3)
    buffer = kept(venv, worlds, form(worlds) if in_blocks else None)
    before = play(venv, old, 0.5, buffer)
    buffer.renew(old, 0.5, worlds.relabelled, observe_commitment)
    np.testing.assert_array_equal(buffer.rewards[:25], np.stack([step[1] for step in before]))
    buffer.renew(new, 0.125, worlds.relabelled, observe_commitment)
    paid = play(venv, new, 0.125)
    expected = np.stack([step[1] for step in paid])
    np.testing.assert_array_equal(buffer.rewards[:25], expected)
    assert buffer.rewards.dtype == expected.dtype
    assert not np.allclose(expected, np.stack([step[1] for step in before]), rtol=0.05, atol=0.0)
    for stored, k in zip(whole(buffer, 25), (0, 2), strict=True):
        np.testing.assert_array_equal(stored, np.stack([step[k] for step in paid]).reshape(stored.shape))


def test_scaled_actions_are_relabelled_as_played() -> None:
    worlds = Worlds(lambda: gym.wrappers.TimeLimit(Aim(), 10), None, observe_commitment=True)
    venv = worlds.make(3)
    buffer = kept(venv, worlds)
    play(venv, np.array([[0.5], [1.0], [-0.5]]), 0.5, buffer)
    buffer._points = np.zeros((3, 1))
    points = np.array([[1.5], [0.2], [0.2]])
    buffer.renew(points, 0.25, worlds.relabelled, told=True)
    expected = np.stack([step[1] for step in play(venv, points, 0.25)])
    np.testing.assert_allclose(buffer.rewards[:25], expected, rtol=1e-5, atol=1e-5)  # observations are kept in float32


@pytest.mark.parametrize("observe_commitment", [True, False])
def test_followers_train_on_rewards_of_the_x_and_lam_of_now(
    observe_commitment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, observe_commitment=observe_commitment, noisy_share=0.0)
    leader = PBRL(TabularEnv(reward_problem()), driver, config=config)
    problem, worlds, checked, moved = leader.worlds.problem, leader.worlds, 0, []
    assert problem is not None
    train = SB3Follower.train

    def checking(follower: SB3Follower, steps: int, planned: int) -> int:
        nonlocal checked
        buffer = follower.replay
        assert buffer is follower.model.replay_buffer  # type: ignore[attr-defined]
        assert buffer is not None
        n = buffer.size()
        if n:
            x = torch.from_numpy(leader.last_x)
            obs = whole(buffer, n)[0] if observe_commitment else buffer.observations[:n, :, 0]
            s, a = worlds.base_observation(obs), buffer.actions[:n, :, 0]
            weight = 0.0 if follower is leader.best_response else 1.0 / leader.lam
            r_l = problem.leader_reward(x)
            assert r_l is not None
            r_f = problem.follower_mdp(x).r.numpy().astype(np.float32)
            np.testing.assert_array_equal(
                buffer.rewards[:n], (r_f[s, a] + weight * r_l.numpy()[s, a]).astype(np.float32)
            )
            checked += 1
            moved.append(x.numpy().copy())
        return train(follower, steps, planned)

    monkeypatch.setattr(SB3Follower, "train", checking)
    leader.learn(1000)
    assert checked >= 6
    assert np.ptp(np.stack(moved), axis=0).max() > 0.05


# --- where x is the leader's policy or affects the dynamics ---------------------------------------------------------------


def test_what_the_observation_tells_is_kept_and_mixed_at_the_current_lam() -> None:
    leader = PBRL(GAME, driver, config=CONFIG, env_kwargs={"n_states": 4}).learn(600)
    for follower, weight in ((leader.best_response, 0.0), (leader.penalised, 1.0 / leader.lam)):
        buffer = follower.replay
        assert buffer is not None
        n = buffer.size()
        assert n * 4 == follower.num_timesteps
        mixed = (buffer.follower_rewards[:n] + weight * buffer.leader_rewards[:n]).astype(np.float32)
        np.testing.assert_array_equal(buffer.rewards[:n], mixed)
        assert np.abs(buffer.leader_rewards[:n]).max() > 0.0


def test_what_it_does_not_tell_is_dropped_when_x_moves() -> None:
    config = replace(CONFIG, observe_commitment=False)
    leader = PBRL(GAME, driver, config=config, env_kwargs={"n_states": 4})
    seen: list[tuple[float, list[int]]] = [
        (float(leader.last_x.sum()), [])
    ]  # x at the end of each iteration, sizes in it

    def watch(leader: Any) -> None:
        sizes = [follower.replay.size() * 4 for follower in (leader.best_response, leader.penalised)]
        seen.append((float(leader.last_x.sum()), sizes))

    leader.learn(2000, callback=watch)
    moves = 0
    for (x_before, _), (x, sizes), (_, sizes_after) in zip(seen, seen[1:], seen[2:], strict=False):
        kept = sizes if x == x_before else [0, 0]
        moves += x != x_before
        assert sizes_after == [size + 32 for size in kept]
    assert moves >= 2
    still = replace(config, learning_rate=1e-300)
    leader = PBRL(GAME, driver, config=still, env_kwargs={"n_states": 4}, x0=np.ones(20)).learn(600)
    assert leader.best_response.replay is not None
    assert leader.best_response.replay.size() * 4 == leader.best_response.num_timesteps


def test_relabelling_is_refused_where_it_is_not_valid() -> None:
    asked = replace(CONFIG, relabel=True)
    for env in (lambda: gym.make(GAME, n_states=4), lambda: TabularEnv(reward_problem(moves_transitions=True))):
        with pytest.raises(
            ValueError, match="relabel: expected None or False where x is the leader's policy or affects"
        ):
            PBRL(env, driver, config=asked)
    with pytest.raises(ValueError, match="relabel: expected None or False for PPO, which has no plain replay"):
        PBRL(TabularEnv(reward_problem()), PPO, config=asked)
    with pytest.raises(ValueError, match="relabel: expected None, True or False, got 1"):
        replace(CONFIG, relabel=1)  # type: ignore[arg-type]
    assert PBRL(TabularEnv(reward_problem()), driver, config=asked).best_response.replay is not None


def test_sb3s_own_buffer_is_left_alone_where_that_is_asked() -> None:
    leader = PBRL(TabularEnv(reward_problem()), driver, config=replace(CONFIG, relabel=False)).learn(500)
    assert type(leader.penalised.model.replay_buffer) is ReplayBuffer


def test_continuous_followers_relabel_too() -> None:
    def build(venv: VecEnv) -> BaseAlgorithm:
        return SAC("MlpPolicy", venv, gamma=0.5, learning_starts=8, batch_size=16, device="cpu")

    config = replace(CONFIG, relabel=True, evaluation_steps=64)
    leader = PBRL(lambda: gym.wrappers.TimeLimit(Aim(), 10), build, config=config).learn(500)
    assert leader.iteration >= 2
    assert leader.penalised.replay is not None
    assert leader.penalised.replay.size() * 4 == leader.penalised.num_timesteps


@pytest.mark.parametrize(
    "draws",
    [("<f8", [10**9]), ("<i8", [10**4, 10**4]), ("<f8", [-1]), ("|O", []), ("<U1000000", [])],
    ids=["long", "wide", "negative", "objects", "texts"],
)
def test_a_file_asks_for_no_room_that_no_draw_takes(draws: Any) -> None:
    config = PBRLConfig(n_envs=4, warmup_steps=64, follower_steps=64, estimator=Rollouts(4))
    leader = PBRL("bilevel_gym/StackelbergGame-v0", DQN, config=config, env_kwargs={"n_states": 4}).learn(500)
    state = leader.best_response.state_dict()
    buffer = leader.best_response.model.replay_buffer
    before = buffer.draws
    with pytest.raises(ValueError, match=r"^draws: expected"):
        restore_buffer(buffer, buffer_state(buffer) | {"draws": draws})
    assert buffer.draws is before
    leader.best_response.load_state_dict(state)
    leader.close()
