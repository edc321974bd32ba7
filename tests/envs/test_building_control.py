"""The building: its steps, its leader, and its best response by a Riccati equation."""

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym.envs import check_leader_env
from bilevel_gym.envs.building_control import BuildingControlEnv
from bilevel_gym.envs.mdp import BuildingProblem

ID, F64 = "bilevel_gym/BuildingControl-v0", torch.float64
GREEDY = [0.897, 0.0, 0.124, 0.420, 0.0, 0.257, 0.647, 0.750]
SOFT = [0.896, 0.0, 0.127, 0.420, 0.0, 0.276, 0.641, 0.757]


def test_checkers_have_nothing_to_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_leader_env(ID)


def test_dynamics_by_hand() -> None:
    x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], dtype=F64)
    A = BuildingProblem().dynamics(x).numpy()
    a01, a12, a23, a30 = 0.5, 0.6, 0.7, 0.8
    expected = np.array(
        [
            [0.0, 0.05 * a01, 0.0, 0.05 * a30],
            [0.03 * a01, 0.0, 0.04 * a12, 0.0],
            [0.0, 0.04 * a12, 0.0, 0.06 * a23],
            [0.05 * a30, 0.0, 0.03 * a23, 0.0],
        ]
    )
    own = 1.0 + np.array([0.04 * 0.9, 0.03 * 0.8, 0.06 * 0.7, 0.05 * 0.6]) - expected.sum(1)
    np.testing.assert_allclose(A, expected + np.diag(own), rtol=1e-14)


@pytest.mark.parametrize(
    ("x", "tau", "expected"),
    [
        (GREEDY, 0.0, -9.529),
        ([0.5] * 8, 0.0, -12.376),
        ([1.0] * 8, 0.0, -15.54),
        (SOFT, 0.1, -10.996),
        ([0.5] * 8, 0.1, -13.835),
        ([1.0] * 8, 0.1, -16.96),
    ],
)
def test_the_return_at_the_best_response(x: list[float], tau: float, expected: float) -> None:
    problem = BuildingProblem(tau=tau)
    assert problem.at_best_response(x) == pytest.approx(expected, abs=0.0015 if expected > -15.0 else 0.005)
    assert problem.at_best_response(x, tau) == problem.at_best_response(x)


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_the_gradient_against_central_differences(tau: float) -> None:
    problem, rng = BuildingProblem(), np.random.default_rng(0)
    for _ in range(3):
        x = torch.from_numpy(rng.uniform(0.1, 0.9, 8))
        ours, h = problem.leader_return_gradient(x, tau), 1e-5
        for i, e in enumerate(torch.eye(8, dtype=F64)):
            difference = (problem.at_best_response(x + h * e, tau) - problem.at_best_response(x - h * e, tau)) / (
                2.0 * h
            )
            assert float(ours[i]) == pytest.approx(difference, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(("x", "tau"), [(GREEDY, 0.0), (SOFT, 0.1)])
def test_the_optimum_is_one(x: list[float], tau: float) -> None:
    """The projected gradient is 0 there but for the digits that are given, and no random point is better."""
    problem, point = BuildingProblem(), torch.tensor(x, dtype=F64)
    gradient = problem.leader_return_gradient(point, tau)
    assert float((problem.project(point + gradient) - point).abs().max()) < 2e-3
    best = problem.at_best_response(point, tau)
    assert max(problem.at_best_response(y, tau) for y in np.random.default_rng(0).uniform(size=(100, 8))) < best


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_the_best_response_is_optimal(tau: float) -> None:
    """V of the soft follower, entropy included, falls in every direction of F and of the noise's size."""
    problem, rng = BuildingProblem(), np.random.default_rng(1)
    x = torch.from_numpy(rng.uniform(size=8))
    F, gamma = problem.best_response(x), problem.gamma
    Q, R = problem.costs["follower"]
    V = problem._lyapunov(problem.dynamics(x) - problem.B @ F, Q + F.T @ R @ F)
    covariance = 0.5 * tau * torch.linalg.inv(problem._curvature(V))

    def value(F: torch.Tensor, C: torch.Tensor) -> float:
        entropy = 0.5 * float(torch.logdet(C)) if tau > 0.0 else 0.0
        return float(problem.follower_return(x, F, C)) + tau * entropy / (1.0 - gamma)

    best = value(F, covariance)
    for _ in range(10):
        other = F + 0.01 * torch.from_numpy(rng.standard_normal((2, 4)))
        assert value(other, covariance) < best
    if tau > 0.0:
        for size in (0.9, 1.1):
            assert value(F, size * covariance) < best
    else:
        assert best == pytest.approx(problem.follower_value(x))


def test_returns_are_those_of_the_environment() -> None:
    """The closed form, the problem's own episodes, and the environment's agree within their noise."""
    problem, n = BuildingProblem(), 4000
    x = torch.full((8,), 0.5, dtype=F64)
    F = problem.best_response(x).numpy()
    act: Any = lambda s: -(s @ F.T) / problem.bound  # noqa: E731
    exact = np.array([problem.follower_value(x), problem.at_best_response(x)])
    env: Any = BuildingControlEnv.vector(n)
    s, _ = env.reset(seed=3)
    paid = np.zeros((2, n))
    for t in range(100):
        s, r_f, _, _, infos = env.step(act(s))
        paid += problem.gamma**t * np.stack([r_f, infos["leader_reward"]])
    errors = paid.std(1) / math.sqrt(n)
    assert bool((np.abs(paid.mean(1) - exact) < 4.0 * errors + 0.01).all())
    assert bool((np.abs(np.array(problem.returns(x, act, n)) - exact) < 4.0 * errors + 0.01).all())
    assert exact[0] == pytest.approx(-81.0, abs=0.05)
    with pytest.raises(ValueError, match="act: expected actions of shape"):
        problem.returns(x, lambda s: np.zeros(3))


def test_parallel_environments_each_under_its_own_x() -> None:
    env: Any = BuildingControlEnv.vector(2)
    x = np.array([np.zeros(8), np.full(8, 0.75)])
    env.set_leader(x)
    s, _ = env.reset(seed=0)
    a = np.array([[0.3, -0.2], [2.0, 0.1]])
    twin = pickle.loads(pickle.dumps(env))
    after, r_f, _, _, infos = env.step(a)
    np.testing.assert_array_equal(twin.step(a)[0], after)
    Q, u = np.array([8.0, 1.0, 5.0, 6.0]), 10.0 * a.clip(-1.0, 1.0)
    for i in range(2):
        A = env.problem.dynamics(torch.from_numpy(x[i])).numpy()
        assert np.abs(after[i] - A @ s[i] - env.problem.B.numpy() @ u[i]).max() < 5.0 * 0.02
        assert r_f[i] == pytest.approx(-(Q * s[i] ** 2).sum() - 0.01 * (u[i] ** 2).sum())
        leader = -s[i].var() - 0.5 * (u[i] ** 2).sum() - 0.1 * (x[i] ** 2).sum()
        assert infos["leader_reward"][i] == pytest.approx(leader)
    with pytest.raises(ValueError, match="one x for all environments"):
        env.leader_model()


def test_the_leader_model_s_log_probability() -> None:
    env = BuildingControlEnv()
    s, _ = env.reset(seed=0)
    a = np.array([0.1, -0.3])
    after, reward, _, _, info = env.step(a)
    model = env.leader_model()
    r_f, r_l, log_p = model(s[None], a[None], np.zeros(1), after[None])
    assert r_f.item() == pytest.approx(reward)
    assert r_l.item() == pytest.approx(info["leader_reward"])
    x = model.get_parameter("x")
    mean = env.problem.dynamics(x) @ torch.from_numpy(s) + env.problem.B @ torch.from_numpy(10.0 * a)
    expected = torch.distributions.Normal(mean, 0.02).log_prob(torch.from_numpy(after)).sum()
    torch.testing.assert_close(log_p[0], expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(part, [x], retain_graph=True)[0] for part in (log_p[0], expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert float(ours.abs().min()) > 0.0


@pytest.mark.parametrize("kwargs", [{"gamma": 1.0}, {"noise": 0.0}, {"bound": -1.0}, {"tau": -0.1}])
def test_bad_arguments_are_named(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(kwargs))}: expected"):
        BuildingControlEnv(**kwargs)
    with pytest.raises(ValueError, match="F: expected a closed loop"):
        BuildingProblem().leader_return(torch.zeros(8, dtype=F64), torch.full((2, 4), -1.0, dtype=F64))


def test_pictures_and_text() -> None:
    env = gym.make(ID, render_mode="rgb_array")
    env.reset(seed=0)
    frames: list[Any] = [env.render()]
    env.step(env.action_space.sample())
    frames.append(env.render())
    env.get_wrapper_attr("set_leader")(np.ones(8))
    frames.append(env.render())
    assert all(frame.dtype == np.uint8 and frame.shape == (360, 900, 3) for frame in frames)
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
