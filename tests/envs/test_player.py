"""One player's world in a game: it is the MDP that the held policy leaves, under each copy's own x."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from bilevel_gym.envs.mdp import IncentiveDesignProblem, ZeroSumGame, joint_return, player_mdp, policy_return
from bilevel_gym.envs.player import PlayerVectorEnv
from tests.games import random_game, random_pair

DESIGNER = random_game(4, gamma=0.8, sharp=8.0)
PROBLEM = IncentiveDesignProblem.over(random_game(3, gamma=0.8, sharp=8.0), DESIGNER.P, DESIGNER.r)


def pair() -> tuple[Any, Any]:
    pi1, pi2 = random_pair(PROBLEM.designer, 1)
    return pi1, pi2


def returns(env: PlayerVectorEnv, pi: Any, horizon: int = 40) -> tuple[Any, Any]:
    """Discounted sums of the reward and of the leader's, one a copy."""
    rng, total = np.random.default_rng(7), np.zeros((2, env.num_envs))
    s, _ = env.reset(seed=5)
    for t in range(horizon):
        a = (pi.numpy()[s].cumsum(-1) < rng.random((len(s), 1))).sum(-1)
        s, reward, _, _, info = env.step(a)
        total += env.gamma**t * np.stack([reward, info["leader_reward"]])
    return total[0], total[1]


def near(values: Any, exact: float) -> bool:
    stderr = values.std(ddof=1) / np.sqrt(len(values))
    return bool(abs(values.mean() - exact) < 4.0 * stderr + 0.002 and stderr < 0.05)


@pytest.mark.parametrize("player", [1, 2])
def test_its_return_is_that_of_the_mdp_that_the_held_policy_leaves(player: int) -> None:
    pis = pair()
    own, other = (pis[0], pis[1]) if player == 1 else (pis[1], pis[0])
    x = torch.linspace(-2, 2, PROBLEM.leader_dim, dtype=torch.float64)
    env = PlayerVectorEnv(PROBLEM, player, 3000)
    bonus = np.random.default_rng(0).uniform(size=own.shape)
    env.set_leader(x)
    env.hold(other, bonus)
    reward, leader = returns(env, own)
    mdp = player_mdp(PROBLEM.game(x), player, other, 0.0)
    assert near(reward, float(policy_return(mdp.with_reward(mdp.r + torch.from_numpy(bonus)), own)))
    paid = ZeroSumGame(PROBLEM.P, PROBLEM.r_id, PROBLEM.rho, PROBLEM.gamma)
    assert near(leader, float(joint_return(paid, *pis)))


def test_in_the_leaders_world_the_leaders_rewards_add_up_to_its_return() -> None:
    pi1, pi2 = pair()
    env = PlayerVectorEnv(PROBLEM, 1, 3000, leaders_world=True)
    env.hold(pi2)
    _, leader = returns(env, pi1)
    assert near(leader, float(joint_return(PROBLEM.designer, pi1, pi2)))
    assert not near(returns(PlayerVectorEnv(PROBLEM, 1, 3000), pi1)[1], float(joint_return(PROBLEM.designer, pi1, pi2)))


def test_copies_have_an_x_a_policy_and_a_bonus_of_their_own() -> None:
    env, rng = PlayerVectorEnv(PROBLEM, 2, 3, max_episode_steps=4), np.random.default_rng(0)
    x = rng.uniform(-3, 3, (3, PROBLEM.leader_dim))
    first = np.eye(3)[[[0, 1, 2, 0], [1, 2, 0, 1], [2, 2, 2, 2]]]
    bonus = rng.uniform(size=(3, 4, 2))
    env.set_leader(x)
    env.hold(first, bonus)
    s, _ = env.reset(seed=0)
    for t in range(9):
        a = rng.integers(0, 2, 3)
        shown = env.commitment(s)
        after, reward, terminated, truncated, info = env.step(a)
        for i in range(3):
            a1 = int(first[i, s[i]].argmax())
            game = PROBLEM.game(torch.from_numpy(x[i]))
            assert info["leader_draw"][i] == a1
            assert reward[i] == pytest.approx(float(-game.r[s[i], a1, a[i]]) + bonus[i, s[i], a[i]], abs=1e-12)
            assert info["leader_reward"][i] == float(PROBLEM.r_id[s[i], a1, a[i]])
            assert shown[i] == pytest.approx(1 / (1 + np.exp(-x[i].reshape(4, 6)[s[i]])), abs=1e-6)
        assert not terminated.any()
        assert truncated.all() == (t % 4 == 3) == ("final_obs" in info)
        s = after


def test_equal_seeds_give_equal_episodes() -> None:
    pi1, pi2 = pair()
    one, two = (PlayerVectorEnv(PROBLEM, 1, 50) for _ in range(2))
    for env in (one, two):
        env.hold(pi2)
    assert np.array_equal(returns(one, pi1, 10)[0], returns(two, pi1, 10)[0])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="player: expected 1 or 2, got 3"):
        PlayerVectorEnv(PROBLEM, 3, 1)
    env = PlayerVectorEnv(PROBLEM, 1, 2)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(ValueError, match=r"policy: expected shape \(4, 2\) or \(2, 4, 2\), got shape \(4, 3\)"):
        env.hold(np.full((4, 3), 1 / 3))
    with pytest.raises(ValueError, match="policy: expected rows that are distributions"):
        env.hold(np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"bonus: expected shape \(4, 3\)"):
        env.hold(np.full((4, 2), 0.5), np.zeros((4, 2)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions: expected 2 whole numbers"):
        env.step(np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"actions\[1\]: expected one that exists in state [0-9], got 3"):
        env.step(np.array([0, 3]))
    with pytest.raises(ValueError, match="x: expected"):
        env.set_leader(np.full(PROBLEM.leader_dim, 99.0))
