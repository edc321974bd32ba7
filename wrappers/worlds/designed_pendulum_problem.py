r"""The reference of the designed pendulum, for followers that see the gravity.

Gravity is drawn once an episode, ``g ~ N(x, std^2)`` clipped at 0, and is then a constant that the follower sees. So its best
response is that of each gravity, and does not depend on x:

    F(x) = E_g [ V_f*(g) ] + value E[g] sum_{t < H} gamma^t

V_f* comes from dynamic programming on a grid (:mod:`...envs.mdp.continuous`) at gravities one standard deviation apart, but at
most 1; between them it is a cubic spline, integrated over the Gaussian. A follower that does not see g faces a partially
observed problem, which has no such reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from ...envs.mdp import LeaderSet
from ...envs.mdp.continuous import ContinuousProblem, GridResponse
from ...envs.mdp.problem import BilevelProblem

Floats = NDArray[np.float64]
STEPS, REACH = 200, 5.0
"""Steps of an episode; standard deviations over which gravity is integrated."""


class PendulumAtGravity(ContinuousProblem):
    """Gymnasium's pendulum at one gravity; a state is (angle, speed), and so is an observation. Nobody leads: x is not used.

    Args:
        gravity: at least 0.
        gamma: the discount.

    Attributes:
        midpoints: number of start angles and of start speeds.
    """

    midpoints: tuple[int, int] = (128, 16)
    max_torque, max_speed, dt = 2.0, 8.0, 0.05

    def __init__(self, gravity: float, gamma: float) -> None:
        self.gravity, self.gamma, self.horizon = gravity, gamma, STEPS
        self.leader_set = LeaderSet.box(1, 0.0, 0.0)
        self.state_high = np.array([math.pi, self.max_speed])
        self.state_low, self.periodic = -self.state_high, (True, False)
        self.action_low, self.action_high = np.array([-self.max_torque]), np.array([self.max_torque])
        self.obs_low, self.obs_high = self.state_low, self.state_high

    def step(self, s: Floats, a: Floats, e: Floats) -> Floats:
        angle, speed = s[..., 0], s[..., 1]
        faster = speed + (1.5 * self.gravity * np.sin(angle) + 3.0 * a[..., 0]) * self.dt
        faster = faster.clip(-self.max_speed, self.max_speed)
        return np.stack([angle + self.dt * faster, faster], axis=-1)

    def observe(self, s: Floats) -> Floats:
        return np.stack([(s[..., 0] + math.pi) % (2.0 * math.pi) - math.pi, s[..., 1]], axis=-1)

    def state_of(self, obs: Any) -> Floats:
        return np.asarray(obs, dtype=np.float64)

    def rewards(self, x: Any, obs: Any, a: Any, next_obs: Any) -> tuple[Any, Any]:
        r = -(obs[..., 0] ** 2 + 0.1 * obs[..., 1] ** 2 + 0.001 * a[..., 0] ** 2)
        return r, r

    def starts(self) -> tuple[Floats, Floats]:
        """Midpoints of intervals of the angle and the speed."""
        angles, speeds = (2.0 * (np.arange(n) + 0.5) / n - 1.0 for n in self.midpoints)
        angles = math.pi * angles
        states = np.stack([part.reshape(-1) for part in np.meshgrid(angles, speeds, indexing="ij")], axis=-1)
        return states, np.full(len(states), 1.0 / len(states))

    def draw_starts(self, rng: np.random.Generator, n: int) -> Floats:
        return rng.uniform([-math.pi, -1.0], [math.pi, 1.0], (n, 2))


@dataclass(frozen=True, eq=False)
class _Knot:
    """One gravity, with its problem and the best response there."""

    problem: PendulumAtGravity
    response: GridResponse


class DesignedPendulumProblem(BilevelProblem):
    """The problem of ``DesignedPendulumEnv`` with ``show_draw=True``; its references judge, and give no gradient.

    Args:
        gamma: discount of both players, in [0, 1).
        std: standard deviation of gravity, positive.
        value: the leader's reward per unit of gravity in each step.
    """

    lower_level: ClassVar[Any] = "continuous"

    def __init__(self, gamma: float, std: float, value: float) -> None:
        self.gamma, self.std, self.value, self.leader_set = gamma, std, value, LeaderSet.box(1, 2.0, 20.0)
        self._apart, self._knots = min(std, 1.0), dict[int, _Knot]()

    def best_response(self, x: Any) -> GridResponse:
        """The follower's best response at x, ``[dim]``; its policy acts on (cosine, sine, speed, ..., g), as followers see it.

        ``moved`` is by how much the return moved in the last refinement of a grid, the most over gravities. The policy plays
        the best response to the nearest of the gravities that were solved.

        Raises:
            ValueError: an x outside X.
        """
        knots = self._solved(x)
        returns = self._integrated(x, {k: knot.response.follower_return for k, knot in knots.items()})
        moved = max(knot.response.moved for knot in knots.values())
        return replace(
            next(iter(knots.values())).response,
            leader_return=returns[1],
            follower_return=returns[0],
            moved=moved,
            act=lambda obs: self._act(knots, np.asarray(obs, dtype=np.float64)),
        )

    def at_best_response(self, x: Any) -> float:
        """F_0(x): the leader's return at the follower's best response."""
        return self.best_response(x).leader_return

    def follower_value(self, x: Any) -> float:
        """V_f*(x): the follower's return at its best response."""
        return self.best_response(x).follower_return

    def returns(self, x: Any, act: Callable[[Any], Any]) -> tuple[float, float]:
        """The follower's and the leader's return at x of any policy, over the horizon.

        Args:
            x: a point of X, ``[dim]``.
            act: from observations (cosine, sine, speed, x, g), ``[n, 5]``, float32, to torques ``[n, 1]``.

        Raises:
            ValueError: an x outside X, actions of another shape.
        """
        point = float(self.leader_set.check(x)[0])

        def at(g: float, states: Floats) -> Any:
            n = len(states)
            columns = [np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1], np.full(n, point), np.full(n, g)]
            return act(np.stack(columns, axis=1).astype(np.float32))

        values = {}
        for k, knot in self._solved(x).items():
            values[k], _ = knot.problem.returns([0.0], partial(at, k * self._apart))
        return self._integrated(x, values)

    def leader_return(self, x: Any, act: Callable[[Any], Any]) -> float:
        """J_L(x, act): the leader's return of any policy."""
        return self.returns(x, act)[1]

    def follower_regret(self, x: Any, act: Callable[[Any], Any]) -> float:
        """V_f*(x) - V_f(x, act)."""
        return self.follower_value(x) - self.returns(x, act)[0]

    def _solved(self, x: Any) -> dict[int, _Knot]:
        """Solve every gravity that x can draw, but for a chance of 1e-6, each once."""
        centre, far = float(self.leader_set.check(x)[0]), REACH * self.std
        ends = max(centre - far, 0.0) / self._apart, (centre + far) / self._apart
        numbers = range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
        for k in numbers:
            if k not in self._knots:
                problem = PendulumAtGravity(k * self._apart, self.gamma)
                self._knots[k] = _Knot(problem, problem.best_response([0.0]))
        return {k: self._knots[k] for k in numbers}

    def _integrated(self, x: Any, values: dict[int, float]) -> tuple[float, float]:
        """Both players' returns, given the follower's at each gravity that was solved."""
        centre = float(self.leader_set.check(x)[0])
        z = np.linspace(-REACH, REACH, 2001)
        weights = np.exp(-0.5 * z**2)
        weights /= weights.sum()
        g = np.maximum(centre + self.std * z, 0.0)
        follower = float(weights @ CubicSpline([k * self._apart for k in values], list(values.values()))(g))
        length = (1.0 - self.gamma**STEPS) / (1.0 - self.gamma)
        return follower, follower + self.value * length * float(weights @ g)

    def _act(self, knots: dict[int, _Knot], obs: Floats) -> Floats:
        nearest = np.clip(np.rint(obs[:, -1] / self._apart), min(knots), max(knots)).astype(np.int64)
        states, torque = np.stack([np.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2]], axis=1), np.zeros((len(obs), 1))
        for k in np.unique(nearest).tolist():
            torque[nearest == k] = knots[k].response.act(states[nearest == k])
        return torque
