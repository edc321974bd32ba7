"""The designed pendulum's reference on a grid, for followers that see the gravity."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from bilevel_gym.agents import Hypergradient, leader_for
from bilevel_gym.agents.estimators.rollouts import collect, discounts
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.wrappers import set_leader
from bilevel_gym.wrappers.worlds.designed_pendulum_problem import PendulumAtGravity

ID = "bilevel_gym/DesignedPendulum-v0"
ARGUMENTS: dict[str, Any] = {"show_draw": True, "gamma": 0.9, "std": 0.5, "value": 0.3}


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """One grid of few points, which takes a tenth of a second a gravity."""
    monkeypatch.setattr(PendulumAtGravity, "points", 21)
    monkeypatch.setattr(PendulumAtGravity, "actions", 5)
    monkeypatch.setattr(PendulumAtGravity, "tolerance", math.inf)
    monkeypatch.setattr(PendulumAtGravity, "midpoints", (32, 4))


def test_its_steps_are_the_environment_s() -> None:
    env: Any = gym.make(ID, show_draw=True).unwrapped
    env.set_leader([7.0])
    rng = np.random.default_rng(0)
    for seed in range(5):
        env.reset(seed=seed)
        problem = PendulumAtGravity(env.env.unwrapped.g, 0.98)
        for _ in range(40):
            s = np.array(env.env.unwrapped.state)
            action = rng.uniform(-3.0, 3.0, 1)
            _, reward, _, _, info = env.step(action)
            a = action.clip(-2.0, 2.0)
            np.testing.assert_allclose(problem.step(s, a, np.zeros(1)), env.env.unwrapped.state, rtol=1e-12)
            assert problem.rewards(None, problem.observe(s), a, None)[0] == pytest.approx(reward, rel=1e-9)
            assert info["leader_reward"] == pytest.approx(reward + 0.2 * problem.gravity, rel=1e-12)


def test_what_it_says_is_what_episodes_give(coarse: None) -> None:
    """The best response, and doing nothing, played by the simulator under gravities that it draws itself."""
    env = gym.make(ID, **ARGUMENTS)
    problem: Any = env.get_wrapper_attr("problem")
    worlds, x = Worlds(env, None, True), [4.0]
    best = problem.best_response(x)
    assert best.leader_return == problem.at_best_response(x)
    assert best.follower_return == problem.follower_value(x)
    venv = worlds.make(256)
    set_leader(venv, x)
    for act in (best.act, lambda obs: np.zeros((len(obs), 1))):
        rollout = collect(venv, act, 80, 3)
        told = problem.returns(x, act)
        for paid, expected in zip((rollout.r_follower, rollout.r_leader), told, strict=True):
            returns = (discounts(rollout, 0.9) * paid).sum(0)
            error = float(returns.std(ddof=1)) / 16.0
            assert abs(float(returns.mean()) - expected) < 3.5 * error + 1e-2
    venv.close()
    # The policy of the nearest gravity loses little, doing nothing much.
    assert -0.05 * abs(best.follower_return) < problem.follower_regret(x, best.act) < 0.05 * abs(best.follower_return)
    assert problem.follower_regret(x, lambda obs: np.zeros((len(obs), 1))) > 0.5
    assert problem.leader_return(x, best.act) == pytest.approx(best.leader_return, rel=0.05)


def test_the_leader_s_share_is_gravity_and_far_from_0_it_is_its_mean(coarse: None) -> None:
    problem: Any = gym.make(ID, **ARGUMENTS).get_wrapper_attr("problem")
    length = (1.0 - 0.9**200) / 0.1
    for x in (8.0, 8.25):
        best = problem.best_response([x])
        assert best.leader_return - best.follower_return == pytest.approx(0.3 * x * length, rel=1e-9)
    assert len(problem._knots) < 14  # a second x solves its new gravities alone


@pytest.mark.long
def test_the_spline_passes_through_gravities_between() -> None:
    problem: Any = gym.make(ID, show_draw=True).get_wrapper_attr("problem")
    at = problem._solved([10.0])
    between = PendulumAtGravity(10.5, 0.98).best_response([0.0])
    g = sorted(at)
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(g, [at[k].response.follower_return for k in g])
    assert spline(10.5) == pytest.approx(between.follower_return, abs=0.3)
    assert problem.best_response([10.0]).moved < 0.11


def test_without_the_draw_there_is_none() -> None:
    hidden = gym.make(ID)
    assert not hidden.has_wrapper_attr("problem")
    with pytest.raises(AttributeError, match=r"show_draw=True"):
        _ = hidden.unwrapped.problem  # type: ignore[attr-defined]
    for env in (hidden, gym.make(ID, show_draw=True)):
        leader = leader_for(env, n_envs=2)
        assert type(leader).__name__ == "PBRL"
        leader.close()
    with pytest.raises(ValueError, match=r"^problem: expected"):
        Hypergradient(gym.make(ID, show_draw=True))


@pytest.mark.parametrize("x", [[1.0], [20.5], [math.nan], [3.0, 4.0]])
def test_x_outside_is_named(x: Any) -> None:
    problem: Any = gym.make(ID, show_draw=True).get_wrapper_attr("problem")
    for verb in (problem.best_response, problem.at_best_response, lambda x: problem.returns(x, None)):
        with pytest.raises(ValueError, match=r"^x: expected"):
            verb(x)


def test_other_actions_are_named(coarse: None) -> None:
    problem: Any = gym.make(ID, **ARGUMENTS).get_wrapper_attr("problem")
    with pytest.raises(ValueError, match=r"^act: expected actions of shape"):
        problem.returns([2.0], lambda obs: np.zeros(len(obs)))
