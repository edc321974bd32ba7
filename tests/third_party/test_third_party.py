"""Environments of other projects under a leader: each is wrapped, checked and trained for five iterations of ``PBRL``.

``make third-party`` runs these, in a virtual environment of their own; ``make test`` does not collect this folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation, TimeLimit
from stable_baselines3 import PPO

from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts
from bilevel_gym.envs import check_leader_env
from bilevel_gym.wrappers import Attribute, DrawnAttribute, EventPayments, LinearReward, ShapedReward, Step

ITERATIONS = 5
GAMMA = 0.9

# --- the worlds: each a callable that makes a leader environment ------------------------------------------------------


def changes_lane(obs: Any, action: Any, next_obs: Any) -> bool:
    return int(action) in (0, 2)


def few_changes(step: Step) -> float:
    return step.reward - 0.5 * changes_lane(step.obs, step.action, step.next_obs)


def highway() -> Any:
    """highway-env: drivers pay, or are paid, for each change of the lane."""
    pytest.importorskip("highway_env")
    base = gym.make("highway-fast-v0", config={"duration": 15, "vehicles_count": 8})
    return ShapedReward(FlattenObservation(base), EventPayments([changes_lane]), GAMMA, leader_reward=few_changes)


def turns(obs: Any, action: Any, next_obs: Any) -> bool:
    return int(action) in (0, 1)


def few_turns(step: Step) -> float:
    return step.reward - 0.5 * turns(step.obs, step.action, step.next_obs)


def pictures() -> Any:
    """minigrid as its own wrapper shows it to a network for pictures, 7 x 7 x 3."""
    wrappers = pytest.importorskip("minigrid.wrappers")
    base = wrappers.ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0", max_steps=40))
    return ShapedReward(base, EventPayments([turns]), GAMMA, leader_reward=few_turns)


def grid() -> Any:
    """minigrid, the picture as one vector of 147 numbers: turns are paid for."""
    wrappers = pytest.importorskip("minigrid.wrappers")
    base = wrappers.ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0", max_steps=40))
    return ShapedReward(FlattenObservation(base), EventPayments([turns]), GAMMA, leader_reward=few_turns)


def set_gravity(env: Any, value: float) -> None:
    env.model.opt.gravity[2] = -value


def heavy(step: Step) -> float:
    return step.reward + 0.1 * float(step.drawn[0])


def mujoco() -> Any:
    """MuJoCo: the gravity is drawn at each episode's start."""
    pytest.importorskip("mujoco")
    gravity = Attribute("gravity", 5.0, 15.0, 1.0, limits=(0.0, 30.0), setter=set_gravity)
    base = gym.make("InvertedPendulum-v5", max_episode_steps=60)
    return TimeLimit(DrawnAttribute(base, [gravity], GAMMA, leader_reward=heavy), 60)


def pushes(obs: Any, action: Any, next_obs: Any) -> list[float]:
    return [float(np.square(action).mean()), float(next_obs[0])]


def mujoco_paid() -> Any:
    """MuJoCo: effort and place are paid for."""
    pytest.importorskip("mujoco")
    base = gym.make("HalfCheetah-v5", max_episode_steps=60)
    return ShapedReward(base, LinearReward(pushes, size=2), GAMMA, leader_pays=0.5)


def main_engine(obs: Any, action: Any, next_obs: Any) -> bool:
    return int(action) == 2


def saves_fuel(step: Step) -> float:
    return step.reward - float(main_engine(step.obs, step.action, step.next_obs))


def box2d() -> Any:
    """Box2D: the moon lander's main engine has a price."""
    pytest.importorskip("Box2D")
    base = gym.make("LunarLander-v3", max_episode_steps=100)
    return ShapedReward(base, EventPayments([main_engine]), GAMMA, leader_reward=saves_fuel)


def pushed_right(obs: Any, action: Any, next_obs: Any) -> bool:
    return int(action) == 2


def right_is_dear(step: Step) -> float:
    return step.reward - 0.3 * pushed_right(step.obs, step.action, step.next_obs)


def mo_gymnasium() -> Any:
    """MO-Gymnasium: its scalariser makes one reward of three; a push to the right has a price."""
    mo = pytest.importorskip("mo_gymnasium")
    base = mo.wrappers.LinearReward(
        mo.make("mo-mountaincar-v0", max_episode_steps=60), weight=np.array([0.8, 0.1, 0.1])
    )
    return ShapedReward(base, EventPayments([pushed_right]), GAMMA, leader_reward=right_is_dear)


def vectors() -> Any:
    """MO-Gymnasium without its scalariser."""
    mo = pytest.importorskip("mo_gymnasium")
    return ShapedReward(mo.make("mo-mountaincar-v0"), EventPayments([pushed_right]), GAMMA)


def dm_control() -> Any:
    """dm_control through shimmy: effort and place are paid for; its actions are float64."""
    pytest.importorskip("shimmy")
    pytest.importorskip("dm_control")
    base = TimeLimit(FlattenObservation(gym.make("dm_control/cartpole-swingup-v0")), 60)
    return ShapedReward(base, LinearReward(pushes, size=2), GAMMA, leader_pays=0.5)


TRAINED = (highway, grid, pictures, mujoco, mujoco_paid, box2d, mo_gymnasium, dm_control)

# --- what is looked at ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", TRAINED, ids=lambda make: make.__name__)
def test_it_is_a_leader_environment(make: Callable[[], Any]) -> None:
    check_leader_env(make, steps=500)


def fewest_steps(leader: PBRL, iterations: int) -> int:
    """The smallest budget that buys so many iterations, according to ``leader.plan``."""
    return next(total for total in itertools.count(leader.plan(1).least) if leader.plan(total).iterations == iterations)


def leader_of(make: Callable[[], Any], shows_x: bool = True) -> PBRL:
    config = PBRLConfig(
        n_envs=2,
        follower_steps=64,
        warmup_steps=64,
        evaluation_steps=128,
        estimator=Rollouts(n_envs=2),
        observe_commitment=shows_x,
        x_noise=0.1 * shows_x,
    )
    settings: dict[str, Any] = {"gamma": GAMMA, "n_steps": 32, "batch_size": 32, "n_epochs": 1}
    return PBRL(make, lambda venv: PPO("MlpPolicy", venv, **settings), config=config, seed=0)


@pytest.mark.parametrize("make", TRAINED, ids=lambda make: make.__name__)
def test_it_trains_and_x_moves(make: Callable[[], Any]) -> None:
    leader = leader_of(make, shows_x=make is not pictures)
    start, seen = np.array(leader.last_x), list[Any]()
    total = fewest_steps(leader, ITERATIONS)
    plan: Any = leader.plan(total)
    leader.learn(total, callback=lambda leader: seen.append(np.array(leader.last_x)))
    assert (leader.iteration, leader.num_timesteps) == (len(seen), plan.spent) == (ITERATIONS, plan.spent)
    assert all(np.isfinite(x).all() for x in seen)
    assert np.abs(seen[-1] - start).max() > 1e-4
    record = leader.evaluate()
    print(
        f"\n{make.__name__}: {leader.num_timesteps} steps, x {start} -> {seen[-1]}, return {record.leader_return:.3f}"
    )


def test_x_beside_a_picture_is_refused_by_name() -> None:
    """A follower that sees pictures is trained without it."""
    with pytest.raises(ValueError, match=r"^env: expected Discrete observations \(from 0\) or a Box of one axis"):
        leader_of(pictures)


def test_vector_rewards_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"^reward: expected one number a step, got an array of shape \(3,\); .*LinearReward"
    ):
        check_leader_env(vectors, steps=100)
