"""The leader that the docs advise, by what is known of an environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import A2C, DQN, PPO

from bilevel_gym.agents import (
    PBRL,
    Hypergradient,
    NikaidoIsodaPenalty,
    PBRLConfig,
    ResponsePool,
    TabularPBRL,
    ValuePenalty,
    leader_for,
)
from bilevel_gym.envs import incentive_design_v0
from bilevel_gym.envs.two_state import TwoStateProblem

TWO, GAME = "bilevel_gym/TwoState-v0", "bilevel_gym/incentive_design_v0"


def curved_dynamics() -> gym.Env[Any, Any]:
    return gym.make("bilevel_gym/DesignedPendulum-v0")


def world() -> gym.Env[Any, Any]:
    return gym.make("bilevel_gym/ShapedCartPole-v0")


@pytest.mark.parametrize(
    ("env", "kwargs", "kind"),
    [
        (TWO, {}, Hypergradient),
        (TWO, {"env_kwargs": {"gamma": 0.8}}, Hypergradient),
        (lambda: gym.make(TWO), {}, Hypergradient),
        (gym.make(TWO), {}, Hypergradient),
        (TwoStateProblem(), {}, Hypergradient),
        ("bilevel_gym/LQStackelberg-v0", {}, Hypergradient),
        (GAME, {}, TabularPBRL),
        (lambda: incentive_design_v0.parallel_env(), {}, TabularPBRL),
        (world, {}, ResponsePool),
        (curved_dynamics, {}, PBRL),
        ("bilevel_gym/SubsidisedPendulum-v0", {}, ResponsePool),
    ],
)
def test_without_a_follower_a_model_is_solved_and_other_worlds_are_learned_in_by_ppo(
    env: Any, kwargs: Any, kind: Any
) -> None:
    leader = leader_for(env, **kwargs)
    assert type(leader) is kind
    if kind in (PBRL, ResponsePool):
        assert leader.method.follower_spec is PPO
        leader.close()
    else:
        before = leader.evaluate().leader_return
        assert leader.learn(20).evaluate().leader_return >= before


@pytest.mark.parametrize(
    ("env", "penalty"),
    [
        ("bilevel_gym/LQStackelberg-v0", ValuePenalty),
        (curved_dynamics, ValuePenalty),
        (GAME, NikaidoIsodaPenalty),
        (lambda: incentive_design_v0.parallel_env(), NikaidoIsodaPenalty),
    ],
)
def test_a_follower_that_is_given_learns(env: Any, penalty: Any) -> None:
    leader = leader_for(env, A2C, seed=3)
    assert isinstance(leader, PBRL)
    assert isinstance(leader.follower.model, A2C)
    assert leader.seed == 3
    assert type(leader.penalty) is penalty
    leader.close()


@pytest.mark.parametrize("env", [TWO, lambda: gym.make(TWO), gym.make(TWO), TwoStateProblem(), world])
def test_where_x_enters_rewards_only_a_pool_of_responses_learns(env: Any) -> None:
    leader = leader_for(env, A2C, seed=3, episodes=5)
    assert type(leader) is ResponsePool
    assert leader.method.follower_spec is A2C
    assert (leader.seed, leader.config.episodes) == (3, 5)
    leader.close()
    penalised = leader_for(env, A2C, penalty=ValuePenalty(lam=3.0))
    assert type(penalised) is PBRL
    penalised.close()


def test_arguments_go_on_to_the_leader() -> None:
    leader = leader_for(TWO, DQN, config=PBRLConfig(n_envs=3), env_kwargs={"gamma": 0.8})
    assert leader.config.n_envs == 3
    assert leader.worlds.gamma == 0.8
    leader.close()
    with pytest.raises(ValueError, match="expected a registered environment id"):
        leader_for("bilevel_gym/NoSuch-v0")
