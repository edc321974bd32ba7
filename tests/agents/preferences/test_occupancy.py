"""A follower's value under the learned reward and the penalty's gradient in x, against exact values and central differences."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_gym  # noqa: F401
from bilevel_gym.agents.leaders.preference_pbrl import Occupancy, occupancy, weights
from bilevel_gym.agents.preferences.reward_model import MLPReward, RewardModel
from bilevel_gym.agents.preferences.worlds import PreferenceWorlds, best_policy, regret
from bilevel_gym.envs.mdp import TabularMDP, policy_return, solve_soft, visitation
from bilevel_gym.wrappers import SegmentRecorder
from bilevel_gym.wrappers.segments import CUT, RUNNING, TERMINATED, Steps

GRID = "bilevel_gym/RewardGrid-v0"
SIZE = 3


def worlds() -> PreferenceWorlds:
    return PreferenceWorlds(GRID, {"size": SIZE, "gamma": 0.8})


def exact_mdp() -> TabularMDP:
    mdp = worlds().true_mdp()
    assert mdp is not None
    return mdp


def reward_model(hidden: tuple[int, ...] = ()) -> RewardModel:
    torch.manual_seed(3)
    spaces = gym.spaces.Discrete(SIZE**2), gym.spaces.Discrete(4)
    return RewardModel([MLPReward(*spaces, hidden=hidden)], "cpu").double()


def raw_table(model: RewardModel) -> torch.Tensor:
    """r_x(s, a), ``[S, 4]``, differentiable."""
    states, actions = torch.arange(SIZE**2).repeat_interleave(4), torch.arange(4).repeat(SIZE**2)
    found: torch.Tensor = model(states, actions).reshape(-1, 4)
    return found


def exact_occupancy(mdp: TabularMDP, pi: torch.Tensor) -> Occupancy:
    """Every state and action, weighted by (1 - gamma) d(s) pi(a|s)."""
    S = mdp.n_states
    m = (1.0 - mdp.gamma) * visitation(mdp, pi).unsqueeze(-1) * pi
    return Occupancy(torch.arange(S).repeat_interleave(4), torch.arange(4).repeat(S), m.flatten())


def test_the_weighted_sum_is_the_value() -> None:
    mdp, model = exact_mdp(), reward_model()
    pi = torch.softmax(torch.randn(mdp.r.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    value = policy_return(mdp.with_reward(raw_table(model).detach()), pi)
    torch.testing.assert_close(exact_occupancy(mdp, pi).mean_reward(model)[0], (1 - mdp.gamma) * value)


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_the_penaltys_gradient_agrees_with_central_differences(hidden: tuple[int, ...]) -> None:
    """Danskin: of p(x) = (1 - gamma)(max_pi V_x^pi - V_x^{pi_y}), with the best response held."""
    mdp, model = exact_mdp(), reward_model(hidden)
    pi_y = torch.softmax(torch.randn(mdp.r.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), -1)

    def p() -> float:
        at_x = mdp.with_reward(raw_table(model).detach())
        return (1 - mdp.gamma) * float(mdp.rho @ solve_soft(at_x, 0.0).V - policy_return(at_x, pi_y))

    pi_hat = solve_soft(mdp.with_reward(raw_table(model).detach()), 0.0).pi
    gap = exact_occupancy(mdp, pi_hat).mean_reward(model) - exact_occupancy(mdp, pi_y).mean_reward(model)
    assert gap.item() == pytest.approx(p(), rel=1e-10)
    assert gap.item() > 0.0
    gap.sum().backward()
    h = 1e-6
    for parameter in model.parameters():
        assert parameter.grad is not None
        for index in list(np.ndindex(*parameter.shape))[::5]:
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    parameter[index] += sign * h
                    ends.append(p())
                    parameter[index] -= sign * h
            assert float(parameter.grad[index]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-9)


def played(steps: int, n: int) -> SegmentRecorder:
    """Uniform actions."""
    venv = SegmentRecorder(worlds().make(n), 1, steps, "leader_reward")
    venv.seed(0)
    venv.reset()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        venv.step(rng.integers(0, 4, n))
    return venv


def test_recorded_steps_estimate_the_value_without_bias() -> None:
    mdp, model = exact_mdp(), reward_model()
    uniform = torch.full_like(mdp.r, 0.25)
    exact = (1 - mdp.gamma) * float(policy_return(mdp.with_reward(raw_table(model).detach()), uniform))
    rng = np.random.default_rng(0)
    recorder = played(100, 256)  # whole episodes, cut at 100 steps, where gamma^t is 2e-10
    window = recorder.window()
    estimates = []
    for i in range(256):
        alone = Steps(window.time, *(part[:, i : i + 1] for name, part in vars(window).items() if name != "time"))
        obs = recorder.observations(alone.time, np.full(100, i))
        found = Occupancy(*map(torch.from_numpy, (obs, alone.actions[:, 0], weights(alone, mdp.gamma)[:, 0])))
        estimates.append(found.mean_reward(model).item())
    stderr = np.std(estimates) / 16.0
    assert abs(np.mean(estimates) - exact) < 3.5 * stderr
    assert stderr < 0.05 * raw_table(model).std().item()
    whole = occupancy(recorder, 0, mdp.gamma, model, 10**6, rng).mean_reward(model).item()
    assert whole == pytest.approx(np.mean(estimates), rel=1e-6)
    drawn = [occupancy(recorder, 0, mdp.gamma, model, 500, rng).mean_reward(model).item() for _ in range(100)]
    assert abs(np.mean(drawn) - whole) < 3.5 * np.std(drawn) / 10.0


def steps_of(ages: list[int], ended: list[int]) -> Steps:
    T = len(ages)
    nothing: Any = np.zeros((T, 1), int)
    return Steps(nothing, nothing, np.zeros((T, 1)), np.array(ages)[:, None], np.array(ended, np.int8)[:, None])


def test_after_the_end_of_an_episode_nothing_is_paid() -> None:
    """Reward 1 a step: (1 - gamma) V = 1 - gamma^T."""
    gamma = 0.9
    ended = steps_of([0, 1, 2], [RUNNING, RUNNING, TERMINATED])
    assert weights(ended, gamma).sum() == pytest.approx(1 - gamma**3)
    np.testing.assert_allclose(weights(ended, gamma)[:, 0], (1 - gamma) * gamma ** np.arange(3))
    twice = steps_of([0, 1, 2, 0], [RUNNING, RUNNING, TERMINATED, TERMINATED])
    assert weights(twice, gamma).sum() == pytest.approx(((1 - gamma**3) + (1 - gamma)) / 2)
    assert weights(steps_of([0, 1, 2], [RUNNING, RUNNING, CUT]), gamma).sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(weights(twice, None), 0.25)


def test_the_regret_is_exact() -> None:
    """0 for the true reward and for what no policy tells apart from it; that of a table by value iteration."""
    mdp = exact_mdp()
    for r in (mdp.r, 3.0 * mdp.r - 5.0):
        assert regret(mdp, best_policy(mdp, r)) == pytest.approx(0.0, abs=1e-6)
    pi = best_policy(mdp, -mdp.r)
    V = torch.zeros(mdp.n_states, dtype=torch.float64)
    W = V.clone()
    for _ in range(400):
        V = (mdp.r + mdp.gamma * mdp.P @ V).max(-1).values
        W = (pi * (mdp.r + mdp.gamma * mdp.P @ W)).sum(-1)
    assert regret(mdp, pi) == pytest.approx(float(mdp.rho @ (V - W)), rel=1e-9)
    assert regret(mdp, pi) > 0.1
