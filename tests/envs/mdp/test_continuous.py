"""Dynamic programming on a grid, held against tables, a Riccati equation and itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bilevel_gym.agents import TabularPBRL
from bilevel_gym.agents.sources import as_env
from bilevel_gym.envs import check_leader_env
from bilevel_gym.envs.continuous import ContinuousEnv, ContinuousLeaderModel, ContinuousVectorEnv
from bilevel_gym.envs.mdp import LeaderSet, TabularMDP, solve_soft
from bilevel_gym.envs.mdp.continuous import ContinuousProblem

Floats = NDArray[np.float64]


class Walk(ContinuousProblem):
    """A walk on d circles, by one point of the grid a step or none; each circle pays by where one stands.

    Every state that is reached is a point of the grid, so that nothing is interpolated.
    """

    gamma, horizon, tolerance, actions = 0.8, 60, math.inf, 3

    def __init__(self, d: int, points: int) -> None:
        self.d, self.points = d, points
        self.leader_set = LeaderSet.box(1, 0.0, 1.0)
        self.state_low, self.state_high, self.periodic = np.zeros(d), np.full(d, float(points)), (True,) * d
        self.action_low, self.action_high = -np.ones(d), np.ones(d)
        self.obs_low, self.obs_high = np.zeros(d), np.full(d, float(points))

    def pay(self, s: Any) -> Any:
        q = s % self.points
        return q * (q - 3.0) * (q - 7.0) / 20.0

    def step(self, s: Floats, a: Floats, e: Floats) -> Floats:
        return s + a

    def rewards(self, x: Any, obs: Any, a: Any, next_obs: Any) -> tuple[Any, Any]:
        here, moves = self.pay(obs).sum(-1), (a * a).sum(-1)
        return here - 0.3 * x[..., 0] * moves, x[..., 0] * moves + 0.0 * here

    def observe(self, s: Floats) -> Floats:
        return s

    def state_of(self, obs: Any) -> Floats:
        return np.asarray(obs, dtype=np.float64)

    def starts(self) -> tuple[Floats, Floats]:
        axes = np.meshgrid(*[np.arange(float(self.points))] * self.d, indexing="ij")
        states = np.stack([axis.reshape(-1) for axis in axes], -1)
        return states, np.full(len(states), 1.0 / len(states))

    def draw_starts(self, rng: np.random.Generator, n: int) -> Floats:
        return rng.integers(self.points, size=(n, self.d)).astype(float)


def table(walk: Walk, x: float) -> tuple[float, float]:
    """Both returns of the walk on one circle, over its horizon, by a table."""
    n, moves = walk.points, np.array([-1, 0, 1])
    P = np.zeros((n, 3, n))
    for s in range(n):
        P[s, np.arange(3), (s + moves) % n] = 1.0
    r = walk.pay(np.arange(float(n)))[:, None] - 0.3 * x * np.abs(moves)
    Q = solve_soft(
        TabularMDP(
            torch.from_numpy(P), torch.from_numpy(r), torch.full((n,), 1.0 / n, dtype=torch.float64), walk.gamma
        ),
        0.0,
    ).Q.numpy()
    a, states, paid = Q.argmax(1), np.arange(n), np.zeros(2)
    for t in range(walk.horizon):
        chosen = a[states]
        paid += walk.gamma**t * np.array([r[states, chosen].mean(), x * np.abs(moves[chosen]).mean()])
        states = (states + moves[chosen]) % n
    return float(paid[0]), float(paid[1])


@pytest.mark.parametrize("x", [0.0, 0.4, 1.0])
def test_where_nothing_is_interpolated_the_grid_is_a_table(x: float) -> None:
    walk = Walk(1, 9)
    found = walk.best_response([x])
    assert (found.follower_return, found.leader_return) == pytest.approx(table(walk, x), abs=1e-6)
    assert found.shape == (9,)


@pytest.mark.parametrize("d", [2, 3])
def test_circles_side_by_side_are_as_many_tables(d: int) -> None:
    walk = Walk(d, 6)
    found = walk.best_response([0.7])
    alone = np.array(table(Walk(1, 6), 0.7))
    assert (found.follower_return, found.leader_return) == pytest.approx(tuple(d * alone), abs=1e-5)


def test_too_many_dimensions_are_refused_with_their_points() -> None:
    walk = Walk(4, 41)
    walk.actions = 15
    expected = (
        r"at most 3 dimensions of state for a grid, got 4, which would take 143,054,150,625 points at 41 a dimension"
    )
    with pytest.raises(ValueError, match=expected):
        walk.best_response([0.5])
    five = Walk(5, 12)
    five.action_low, five.actions = np.zeros(1), 96
    with pytest.raises(ValueError, match="got 5, which would take 23,887,872 points at 12"):
        five.at_best_response([0.5])


class Regulator(ContinuousProblem):
    """s' = .9 s + .5 a + e with e = -.2 or .2: what the Riccati equation solves, with the noise's true variance."""

    gamma, horizon = 0.9, 100
    noise = np.array([[-0.2], [0.2]]), np.array([0.5, 0.5])

    def __init__(self) -> None:
        self.leader_set = LeaderSet.box(1, 0.0, 1.0)
        self.state_low, self.state_high, self.periodic = np.array([-4.0]), np.array([4.0]), (False,)
        self.action_low, self.action_high = np.array([-3.0]), np.array([3.0])
        self.obs_low, self.obs_high = self.state_low, self.state_high

    def step(self, s: Floats, a: Floats, e: Floats) -> Floats:
        return 0.9 * s + 0.5 * a + e

    def rewards(self, x: Any, obs: Any, a: Any, next_obs: Any) -> tuple[Any, Any]:
        return -(obs[..., 0] ** 2) - (0.2 + x[..., 0]) * a[..., 0] ** 2, -(next_obs[..., 0] ** 2)

    def observe(self, s: Floats) -> Floats:
        return s

    def state_of(self, obs: Any) -> Floats:
        return np.asarray(obs, dtype=np.float64)

    def starts(self) -> tuple[Floats, Floats]:
        s = np.repeat(np.linspace(-2.0, 2.0, 21), 10)[:, None]
        return s, np.full(len(s), 1.0 / len(s))

    def draw_starts(self, rng: np.random.Generator, n: int) -> Floats:
        return rng.uniform(-2.0, 2.0, (n, 1))


@pytest.mark.parametrize("x", [0.0, 0.8])
def test_a_regulator_with_noise_meets_its_riccati_equation(x: float) -> None:
    problem = Regulator()
    problem.points, problem.actions, problem.tolerance = 121, 61, math.inf
    found = problem.best_response([x])
    # V(s) = -(p s^2 + c): the Riccati equation by iteration, then both returns of a = -f s.
    p = 1.0
    for _ in range(2000):
        f = 0.9 * 0.9 * 0.5 * p / (0.2 + x + 0.9 * 0.25 * p)
        p = 1.0 + (0.2 + x) * f**2 + 0.9 * p * (0.9 - 0.5 * f) ** 2
    m, moment = 0.9 - 0.5 * f, float((problem.starts()[0] ** 2).mean())
    follower = -(p * moment + 0.9 / 0.1 * p * 0.04)
    q = m**2 / (1.0 - 0.9 * m**2)  # of the leader's return: E sum gamma^t s_{t+1}^2
    leader = -(q * moment + (0.04 + 0.9 * q * 0.04) / 0.1)
    # Within the noise of 210 episodes and the width of a step of 0.1 between actions.
    assert found.follower_return == pytest.approx(follower, rel=0.01)
    assert found.leader_return == pytest.approx(leader, rel=0.02)
    s = np.linspace(-2.0, 2.0, 9)[:, None]
    np.testing.assert_allclose(found.act(s), -f * s, atol=0.06)


def test_a_grid_is_refined_until_the_return_stands() -> None:
    problem = Regulator()
    problem.points, problem.actions, problem.tolerance = 6, 5, 0.1
    found = problem.best_response([0.3])
    assert found.moved <= 0.1
    assert found.shape[0] > 6
    assert found.n_actions > 5
    finer = Regulator()
    finer.points, finer.actions, finer.tolerance = found.shape[0], 2 * found.n_actions - 1, math.inf
    assert abs(finer.at_best_response([0.3]) - found.leader_return) < 0.2
    assert problem.best_response([0.3]) is found


def test_a_grid_that_may_not_grow_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bilevel_gym.envs.mdp.continuous.MOST_WEIGHTS", 2000)
    problem = Regulator()
    problem.points, problem.actions, problem.tolerance = 6, 5, 1e-9
    with pytest.warns(UserWarning, match=r"still moved by .*, more than the tolerance of 1e-09; a finer one"):
        found = problem.best_response([0.3])
    assert found.moved > 1e-9


@pytest.mark.parametrize(
    ("what", "message"), [("step", "step: expected finite"), ("rewards", "rewards: expected finite")]
)
def test_what_is_not_finite_is_named(what: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, plain = Regulator(), getattr(Regulator, what)

    def spoiled(self: Regulator, *args: Any) -> Any:
        answer = plain(self, *args)
        return answer * math.nan if what == "step" else (answer[0] * math.nan, answer[1])

    monkeypatch.setattr(Regulator, what, spoiled)
    with pytest.raises(ValueError, match=message):
        problem.best_response([0.3])


def test_a_point_outside_x_is_refused() -> None:
    with pytest.raises(ValueError, match="x: expected a point of X"):
        Walk(1, 9).best_response([1.5])


def test_any_continuous_problem_can_be_simulated() -> None:
    """With noise that is drawn, checked as an environment of one's own would be; exact leaders say that it is none of theirs."""
    env: Any = ContinuousEnv(Regulator(), render_mode="rgb_array")
    assert isinstance(as_env(env.problem), ContinuousEnv)
    with pytest.warns(UserWarning, match="could not check the noise of a continuous problem"):
        check_leader_env(env)
    env.set_leader([0.5])
    env.reset(seed=0)
    assert env.render().shape == (400, 500, 3)
    many = env.vectorised(500, 7)
    many.set_leader([0.3])
    s, _ = many.reset(seed=0)
    after, r_f, _, _, infos = many.step(np.full((500, 1), 0.4))
    e = after[:, 0] - 0.9 * s[:, 0] - 0.2
    np.testing.assert_allclose(np.abs(e), 0.2, atol=1e-6)
    assert abs((e > 0.0).mean() - 0.5) < 4.0 * 0.5 / math.sqrt(500)
    np.testing.assert_allclose(r_f, -(s[:, 0] ** 2) - 0.5 * 0.16, rtol=1e-5)
    np.testing.assert_allclose(infos["leader_reward"], -(after[:, 0] ** 2), rtol=1e-5)
    with pytest.raises(ValueError, match="problem: expected one whose lower_level is one of"):
        TabularPBRL(Regulator())


class Says(ContinuousEnv):
    """The walk on one circle, in an environment that brings the problem of another."""

    real = Walk(1, 9)

    def _move(self, *args: Any) -> tuple[Any, ...]:
        told, self.problem = self.problem, self.real
        try:
            return super()._move(*args)
        finally:
            self.problem = told

    def leader_model(self) -> ContinuousLeaderModel:
        return ContinuousLeaderModel(self.real, self._x)

    def vectorised(self, num_envs: int, max_episode_steps: int | None) -> Any:
        return ContinuousVectorEnv(self.real, num_envs, max_episode_steps)


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("step", lambda s, a, e: s + 0.9 * a, "the next observation .*step and problem must agree"),
        ("rewards", lambda x, obs, a, after: (0.0 * obs[..., 0], 0.0 * obs[..., 0]), "the follower's reward of a step"),
        ("starts", lambda: (np.zeros((1, 1)), np.ones(1)), "first observations with the mean of its start states"),
        ("gamma", 0.5, "that of the problem, 0.5"),
    ],
)
def test_a_problem_that_is_not_the_environment_is_noticed(name: str, other: Any, message: str) -> None:
    told = Walk(1, 9)
    env = Says(told)
    check_leader_env(env)
    setattr(told, name, other)
    with pytest.raises(ValueError, match=message):
        check_leader_env(env)
