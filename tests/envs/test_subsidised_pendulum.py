"""The pendulum with a subsidy: its steps, its leader, and the reference on a grid."""

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from bilevel_gym.agents import PBRL, PBRLConfig
from bilevel_gym.envs import check_leader_env
from bilevel_gym.envs.mdp.continuous import GridSolver
from bilevel_gym.envs.subsidised_pendulum import SubsidisedPendulumEnv, SubsidisedPendulumProblem

ID = "bilevel_gym/SubsidisedPendulum-v0"
OTHER: dict[str, Any] = {
    "price": 0.2,
    "force": 3.0,
    "gravity": 9.0,
    "mass": 0.8,
    "length": 1.1,
    "dt": 0.04,
    "max_speed": 7.0,
    "gamma": 0.9,
}


@pytest.mark.parametrize("kwargs", [{}, OTHER])
def test_checkers_have_nothing_to_say(kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_leader_env(ID, env_kwargs=kwargs)


def test_a_step_by_hand() -> None:
    env: Any = gym.make(ID).unwrapped
    env.set_leader([0.4])
    env.reset(seed=3)
    env._state = np.array([2.0, -7.9])
    obs, reward, terminated, truncated, info = env.step(np.array([-0.5], np.float32))
    speed = max(-7.9 + 0.05 * (1.5 * 10.0 * math.sin(2.0) + 3.0 * 4.0 * -0.5), -8.0)
    angle = 2.0 + 0.05 * speed
    up = (1.0 + math.cos(angle)) / 2.0
    np.testing.assert_allclose(obs, [math.cos(angle), math.sin(angle), speed], rtol=1e-6)
    assert reward == pytest.approx(0.4 * up - 0.3 * 0.25, rel=1e-12)
    assert info == {"leader_reward": pytest.approx(0.6 * up, rel=1e-12), "leader_draw": 0}
    assert not terminated
    assert not truncated
    env._state = np.array([1.5, 7.95])  # the speed is clipped, and so is the push
    obs, reward, *_ = env.step(np.array([1.7], np.float32))
    assert obs[2] == 8.0
    assert reward == pytest.approx(0.4 * (1.0 + math.cos(1.5 + 0.4)) / 2.0 - 0.3)


def test_another_pendulum_by_hand() -> None:
    env: Any = SubsidisedPendulumEnv(**OTHER)
    env.reset(seed=0)
    env._state = np.array([-1.0, 0.5])
    obs, reward, *_ = env.step([0.25])
    speed = 0.5 + 0.04 * (1.5 * 9.0 / 1.1 * math.sin(-1.0) + 3.0 / (0.8 * 1.1**2) * 3.0 * 0.25)
    assert obs[2] == pytest.approx(speed, rel=1e-6)
    assert obs[0] == pytest.approx(math.cos(-1.0 + 0.04 * speed), rel=1e-6)
    assert reward == pytest.approx(-0.2 * 0.0625, rel=1e-12)
    assert env.observation_space.high[2] == 7.0
    assert env.gamma == 0.9


def test_parallel_environments_step_alike_each_under_its_own_x() -> None:
    many: Any = SubsidisedPendulumEnv.vector(3, max_episode_steps=4)
    x = np.array([[0.0], [0.5], [1.0]])
    many.set_leader(x)
    obs, _ = many.reset(seed=0)
    state = many._state.copy()
    one = SubsidisedPendulumEnv()
    one.reset(seed=0)
    rng = np.random.default_rng(0)
    for t in range(1, 5):
        a = rng.uniform(-1.5, 1.5, (3, 1))
        obs, rewards, _, truncated, infos = many.step(a)
        seen = infos["final_obs"] if t == 4 else obs
        for i in range(3):
            one.set_leader(x[i])
            one._state = state[i]
            alone = one.step(a[i])
            np.testing.assert_array_equal(seen[i], alone[0])
            assert rewards[i] == alone[1]
            assert infos["leader_reward"][i] == alone[4]["leader_reward"]
            state[i] = one._state
        assert bool(truncated.all()) is (t == 4)
    np.testing.assert_allclose(obs[:, 0], np.cos(many._state[:, 0]), rtol=1e-6)
    twin = pickle.loads(pickle.dumps(many))
    np.testing.assert_array_equal(twin.step(a)[0], many.step(a)[0])


def test_starts_are_uniform() -> None:
    env: Any = SubsidisedPendulumEnv.vector(4000)
    env.reset(seed=1)
    for column, width in zip(env._state.T, (math.pi, 1.0), strict=True):
        assert np.abs(column).max() <= width
        assert abs(column.mean()) < 4.0 * width / math.sqrt(3.0 * 4000)
        assert (column**2).mean() == pytest.approx(width**2 / 3.0, rel=0.06)


def test_the_leader_model_s_gradient() -> None:
    env = SubsidisedPendulumEnv()
    env.set_leader([0.3])
    model = env.leader_model()
    obs, after, a = torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]), torch.tensor([[2.0], [0.5]])
    r_f, r_l, log_p = model(obs, a, torch.zeros(2), after)
    torch.testing.assert_close(r_f, torch.tensor([0.3 - 0.3, 0.225 - 0.075], dtype=torch.float64))
    torch.testing.assert_close(r_l, torch.tensor([0.7, 0.525], dtype=torch.float64))
    assert log_p.tolist() == [0.0, 0.0]
    x = [model.get_parameter("x")]
    for part, slope in ((r_f, 1.75), (r_l, -1.75), (log_p, 0.0)):
        assert torch.autograd.grad(part.sum(), x, retain_graph=True)[0].item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gamma": 1.0}, "gamma: expected"),
        ({"price": -0.1}, "price: expected"),
        ({"mass": 0.0}, "mass: expected"),
        ({"force": math.nan}, "force: expected"),
        ({"max_speed": 0.5}, "max_speed: expected"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubsidisedPendulumEnv(**kwargs)


def test_bad_points_and_actions_are_named() -> None:
    env, many = SubsidisedPendulumEnv(), SubsidisedPendulumEnv.vector(2)
    for one in (env, many):
        with pytest.raises(gym.error.ResetNeeded):
            one.step(np.zeros(1))
        with pytest.raises(ValueError, match=r"x: expected a point of X, within \[0, 1\]"):
            one.set_leader([1.2])
        one.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: expected finite numbers of shape \(1, 1\), got NaN"):
        env.step([math.nan])
    with pytest.raises(ValueError, match=r"actions: expected finite numbers of shape \(2, 1\)"):
        many.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"x\[1\]: expected a point of X"):
        many.set_leader([[0.5], [-0.5]])
    many.set_leader([[0.5], [0.25]])
    with pytest.raises(ValueError, match="one x for all environments"):
        many.leader_model()


def test_pictures_and_text() -> None:
    env = SubsidisedPendulumEnv(render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    env.step([1.0])
    frames.append(env.render())
    env.set_leader([0.5])
    frames.append(env.render())
    assert all(frame.dtype == np.uint8 and frame.shape == (400, 500, 3) for frame in frames)
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    text = SubsidisedPendulumEnv(render_mode="ansi")
    assert text.render() == ""
    text.reset(seed=0)
    _, reward, _, _, info = text.step([0.5])
    assert text.render().startswith(f"action (0.5): follower {reward:.3g}, leader {info['leader_reward']:.3g}; state (")


# --- the reference ----------------------------------------------------------------------------------------------------

ROW = {0.0: 9.995, 0.06: 16.74, 0.1: 18.36, 0.12: 18.66, 0.15: 18.77, 0.2: 18.50}
"""The leader's return at the best response on a grid of 161 x 161, by another program."""


def on_one_grid(points: int) -> SubsidisedPendulumProblem:
    """The problem with a grid of one size."""
    problem = SubsidisedPendulumProblem()
    problem.points, problem.tolerance = points, math.inf
    return problem


def test_the_reference_on_a_small_grid() -> None:
    """On 81 x 81 points the return is up to 0.25 below that of 161 x 161."""
    problem = on_one_grid(81)
    for x in (0.0, 0.1, 0.15):
        found = problem.best_response([x])
        assert found.shape == (81, 81)
        assert 0.0 <= ROW[x] - found.leader_return + 0.001 <= 0.25
    assert problem.at_best_response([0.15]) > problem.at_best_response([0.1])


@pytest.mark.long
def test_the_reference_on_the_full_grid() -> None:
    """At x = 0.06, near the threshold, grids still differ: 16.52 on 81 x 81, 16.89 on 161 x 161, 16.96 on 321 x 321."""
    problem = on_one_grid(161)
    for x, expected in ROW.items():
        assert problem.at_best_response([x]) == pytest.approx(expected, abs=0.2 if x == 0.06 else 0.01)
    finer = on_one_grid(321)
    assert finer.at_best_response([0.06]) == pytest.approx(16.96, abs=0.02)
    refined = SubsidisedPendulumProblem().best_response([0.15])
    assert refined.moved <= 0.1
    assert refined.leader_return == pytest.approx(18.78, abs=0.02)


def test_returns_and_regret_of_any_policy() -> None:
    problem = on_one_grid(41)
    best = problem.best_response([0.15])
    assert problem.returns([0.15], best.act) == pytest.approx((best.follower_return, best.leader_return), abs=1e-3)
    assert problem.follower_regret([0.15], best.act) == pytest.approx(0.0, abs=1e-3)
    still: Any = lambda obs: np.zeros((len(obs), 1))  # noqa: E731
    follower, leader = problem.returns([0.15], still)
    assert problem.follower_regret([0.15], still) == pytest.approx(best.follower_return - follower)
    assert problem.leader_return([0.15], still) == leader
    assert best.follower_return > follower + 1.0
    # A follower that is never paid does nothing, and doing nothing pays 0.
    assert problem.follower_value([0.0]) == pytest.approx(0.0, abs=1e-12)
    assert problem.returns([0.0], still)[1] == pytest.approx(problem.at_best_response([0.0]), abs=1e-9)
    # The same policy in the environment itself.
    n = 4000
    env = SubsidisedPendulumEnv.vector(n)
    env.set_leader([0.15])
    obs, _ = env.reset(seed=5)
    paid = np.zeros((2, n))
    for t in range(100):
        obs, r_f, _, _, infos = env.step(best.act(obs))
        paid += problem.gamma**t * np.stack([r_f, infos["leader_reward"]])
    errors = paid.std(1) / math.sqrt(n)
    assert np.abs(paid.mean(1) - [best.follower_return, best.leader_return]).max() < 4.0 * errors.max()
    with pytest.raises(ValueError, match=r"act: expected actions of shape \(2048, 1\), got shape \(2048,\)"):
        problem.returns([0.15], lambda obs: np.zeros(len(obs)))


@pytest.mark.filterwarnings("ignore::UserWarning")  # a run this short does not learn
def test_a_learned_leader_never_asks_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("the reference was asked")

    for name in ("best_response", "at_best_response", "follower_value", "returns", "leader_return", "follower_regret"):
        monkeypatch.setattr(SubsidisedPendulumProblem, name, refuse)
    monkeypatch.setattr(GridSolver, "__init__", refuse)
    config = PBRLConfig(n_envs=8, follower_steps=800, evaluation_steps=800, evaluation_followers=1)
    leader = PBRL(ID, PPO, config=config, x0=[0.5], seed=0)
    leader.learn(20_000)
    assert leader.num_timesteps > 15_000
    assert math.isfinite(leader.evaluate().leader_return)
    leader.close()
