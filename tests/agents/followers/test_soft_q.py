"""Soft DQN followers: the target that SB3's maximum reads, and what they learn, against the soft optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from torch import Tensor, nn

from bilevel_gym.agents.followers.sb3 import SB3Follower, mean_over_quantiles
from bilevel_gym.agents.followers.soft_q import SoftQFollower, SoftTarget
from bilevel_gym.agents.followers.spec import Answering
from bilevel_gym.agents.held_policies import Solved
from bilevel_gym.agents.schedules import Constant, Linear
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP, solve_soft
from bilevel_gym.envs.tabular import TabularVectorEnv
from bilevel_gym.wrappers import RewardMixing, VectorEnvAdapter

TAU, LAM = 0.2, 3.0


class Table(nn.Module):
    """Q or quantiles of numbered observations."""

    def __init__(self, entries: Tensor) -> None:
        super().__init__()
        self.entries = nn.Parameter(entries)

    def forward(self, obs: Tensor) -> Tensor:
        return self.entries[obs]


def test_the_maximum_of_the_target_is_the_soft_value() -> None:
    table = Table(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    target = SoftTarget(table, lambda obs, Q: TAU * torch.logsumexp(Q / TAU, -1))
    obs = torch.tensor([3, 1, 1, 5])
    answer = target(obs)
    assert answer.shape == (4, 4)
    torch.testing.assert_close(answer.max(1).values, TAU * torch.logsumexp(table.entries[obs] / TAU, -1))
    assert bool((answer.max(1).values > table.entries[obs].max(1).values + 1e-3).all())
    assert [id(p) for p in target.parameters()] == [id(table.entries)]  # what SB3 moves towards the network


def test_quantiles_are_the_best_actions_with_the_soft_value_as_mean() -> None:
    table = Table(torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(0)))
    target = SoftTarget(table, lambda obs, Q: TAU * torch.logsumexp(Q / TAU, -1))
    obs = torch.tensor([3, 1, 5])
    answer, raw = target(obs), table.entries[obs]
    assert answer.shape == (3, 7, 4)
    Q = mean_over_quantiles(raw)
    best = Q.argmax(-1)
    for i in range(3):
        spread = answer[i, :, 0] - answer[i, :, 0].mean()
        torch.testing.assert_close(spread, raw[i, :, best[i]] - raw[i, :, best[i]].mean())
    soft = (TAU * torch.logsumexp(Q / TAU, -1)).unsqueeze(-1).expand(3, 4)
    torch.testing.assert_close(mean_over_quantiles(answer), soft)


# --- trained --------------------------------------------------------------------------------------------------------------


def dqn(venv: Any) -> DQN:
    """A linear Q that is exact, a step that falls; SB3's own algorithm."""
    return DQN(
        "MlpPolicy",
        venv,
        gamma=0.9,
        learning_rate=lambda remaining: 0.02 * remaining + 2e-4,
        batch_size=256,
        learning_starts=500,
        train_freq=1,
        gradient_steps=2,
        target_update_interval=64,
        exploration_initial_eps=0.5,
        exploration_final_eps=0.5,
        policy_kwargs={"net_arch": []},
        seed=0,
        device="cpu",
    )


def fork() -> ArrayProblem:
    """State 0 leads to 1, whose three actions pay alike, or to 2, where one pays more and two nothing; then back to 0."""
    P = torch.zeros(3, 3, 3, dtype=torch.float64)
    P[0, 0, 1] = P[0, 1, 2] = P[0, 2, 0] = 1.0
    P[1:, :, 0] = 1.0
    r = torch.tensor([[0.0, 0.0, 0.1], [0.5, 0.5, 0.5], [0.65, 0.0, 0.0]], dtype=torch.float64)
    paid = torch.tensor([[0.0, 0.6, 0.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.4]], dtype=torch.float64)
    base = TabularMDP(P, r, torch.full((3,), 1 / 3, dtype=torch.float64), 0.9)
    return ArrayProblem(base, LeaderSet.box(1, -1, 1), lambda x: r + 0.0 * x, lambda x: paid + 0.0 * x)


def world(leader_weight: float, own_weight: float) -> RewardMixing:
    return RewardMixing(
        VectorEnvAdapter(TabularVectorEnv(fork(), 16), observe_commitment=True), leader_weight, own_weight
    )


OBS = np.kron(np.eye(3), np.array([1.0, 0.0])).astype(np.float32)  # a state's 1, and x = 0


def distance(a: Any, b: Tensor) -> float:
    """Total variation, the worst state's."""
    return float(0.5 * np.abs(np.asarray(a) - b.numpy()).sum(-1).max())


@pytest.mark.long
def test_both_learn_the_policies_they_stand_for() -> None:
    """The maximum that SB3's target takes by itself misses pi*, and pi* misses pi_y, by many times the error that is left."""
    problem = fork()
    x = problem.start_x()
    mdp, reward = problem.follower_mdp(x), problem.leader_reward(x)
    soft, hard = solve_soft(mdp, TAU), solve_soft(mdp, 0.0)
    pi_y, _ = Solved().solve(mdp, reward, LAM, TAU, None)
    answering, total = Answering(Constant(TAU), 0.5), 12_000
    followers: list[SoftQFollower] = []
    for weights in ((0.0, 1.0), (1.0, 0.0)):
        follower = SoftQFollower(
            dqn, world(*weights), 0.9, 3, True, answering, prior=followers[0] if followers else None
        )
        follower.lam = LAM
        for _ in range(3):
            follower.train(total // 3, total)
        followers.append(follower)
    best, penalised = (follower.probabilities(OBS) for follower in followers)
    assert distance(best, soft.pi) < 0.02
    assert distance(torch.softmax(hard.Q / TAU, -1), soft.pi) > 0.1
    assert distance(penalised, pi_y) < 0.02
    assert distance(best, pi_y) > 0.1


def test_no_weight_for_the_leader_is_no_distance_from_the_best_response() -> None:
    prior = SoftQFollower(dqn, world(0.0, 1.0), 0.9, 3, True, Answering(Constant(TAU)))
    follower = SoftQFollower(dqn, world(1.0, 0.0), 0.9, 4, True, Answering(Constant(TAU)), prior=prior)
    obs = OBS
    away = [distance(follower.probabilities(obs), torch.from_numpy(prior.probabilities(obs)))]
    follower.lam = 1e6
    away.append(distance(follower.probabilities(obs), torch.from_numpy(prior.probabilities(obs))))
    assert away[0] > 1e-2
    assert away[1] < 1e-5


def test_training_plays_the_soft_policy() -> None:
    follower = SoftQFollower(dqn, world(0.0, 1.0), 0.9, 3, True, Answering(Constant(1.0)))
    follower.train(2000, 2000)
    obs = np.repeat(OBS[:1], 20_000, 0)
    follower.model.exploration_rate = 0.0  # type: ignore[attr-defined]
    with follower.generators.active():
        actions, _ = follower.model.predict(obs, deterministic=False)
        greedy, _ = follower.model.predict(obs, deterministic=True)
    pi = follower.trained_probabilities(obs[:1])[0]
    assert pi.max() < 0.9
    np.testing.assert_allclose(np.bincount(actions, minlength=3) / 20_000, pi, atol=4 * 0.5 / np.sqrt(20_000))
    assert set(greedy) == {pi.argmax()}


def test_coupled_players_differ_as_little_as_their_policies_allow() -> None:
    prior = SoftQFollower(dqn, world(0.0, 1.0), 0.9, 3, True, Answering(Constant(TAU)))
    follower = SoftQFollower(dqn, world(1.0, 0.0), 0.9, 4, True, Answering(Constant(TAU)), prior=prior)
    follower.lam = 4.0
    obs = np.repeat(OBS[:1], 20_000, 0)
    a, b = (player.coupled_player(7)(obs) for player in (prior, follower))
    p, q = (player.probabilities(obs[:1])[0] for player in (prior, follower))
    for actions, pi in ((a, p), (b, q)):
        np.testing.assert_allclose(np.bincount(actions, minlength=3) / 20_000, pi, atol=4 * 0.5 / np.sqrt(20_000))
    assert (a != b).mean() < 2 * 0.5 * np.abs(p - q).sum() + 0.01
    apart = (prior.coupled_player(7)(obs) != follower.coupled_player(8)(obs)).mean()
    assert (a != b).mean() < 0.5 * apart


def test_it_keeps_to_itself_what_a_plain_follower_does() -> None:
    """A plain SB3 follower's target is SB3's own still."""
    plain = SB3Follower(dqn, world(0.0, 1.0), 0.9, 3, True, Answering(Linear(0.2, 0.1)))
    assert type(plain.model.q_net_target).__name__ == "QNetwork"  # type: ignore[attr-defined]
    soft = SoftQFollower(dqn, world(0.0, 1.0), 0.9, 3, True, Answering(Linear(0.2, 0.1)))
    assert soft.model.q_net_target.network is soft.model.policy.q_net_target  # type: ignore[attr-defined]
