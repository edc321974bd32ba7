"""A pendulum that is paid for standing up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .continuous import ContinuousEnv, Floats
from .core import FromArguments
from .mdp import LeaderSet
from .mdp.checks import check_gamma, check_number
from .mdp.continuous import ContinuousProblem
from .render import FOLLOWER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 100
"""Steps of an episode."""


class SubsidisedPendulumProblem(ContinuousProblem):
    """The problem of ``SubsidisedPendulumEnv``; a state is (angle, speed).

    Args:
        gamma: discount of both players, in [0, 1).
        price: what a push of full strength costs the follower, not negative.
        force: largest torque, positive.
        gravity, mass, length: of the pendulum, positive.
        dt: seconds of a step, positive.
        max_speed: bound on the speed, at least 1.

    Raises:
        ValueError: a number outside its interval.
    """

    def __init__(
        self,
        gamma: float = 0.97,
        price: float = 0.3,
        force: float = 4.0,
        gravity: float = 10.0,
        mass: float = 1.0,
        length: float = 1.0,
        dt: float = 0.05,
        max_speed: float = 8.0,
    ) -> None:
        self.gamma, self.horizon = check_gamma(gamma, endless=True), STEPS
        self.price = check_number(price, "price", low=0.0, open_high=True)
        for name, value in (("force", force), ("gravity", gravity), ("mass", mass), ("length", length), ("dt", dt)):
            setattr(self, name, check_number(value, name, low=0.0, open_low=True, open_high=True))
        self.max_speed = check_number(max_speed, "max_speed", low=1.0, open_high=True)
        self._fall, self._push = 1.5 * gravity / length * dt, 3.0 * force / (mass * length**2) * dt
        self.leader_set = LeaderSet.box(1, 0.0, 1.0)
        self.state_low, self.state_high = np.array([-math.pi, -max_speed]), np.array([math.pi, max_speed])
        self.periodic = (True, False)
        self.action_low, self.action_high = np.array([-1.0]), np.array([1.0])
        self.obs_high = np.array([1.0, 1.0, max_speed])
        self.obs_low = -self.obs_high

    dt: float

    def step(self, s: Floats, a: Floats, e: Floats) -> Floats:
        angle, speed = s[..., 0], s[..., 1]
        speed = (speed + self._fall * np.sin(angle) + self._push * a[..., 0]).clip(-self.max_speed, self.max_speed)
        return np.stack([angle + self.dt * speed, speed], axis=-1)

    def observe(self, s: Floats) -> Floats:
        return np.stack([np.cos(s[..., 0]), np.sin(s[..., 0]), s[..., 1]], axis=-1)

    def state_of(self, obs: Any) -> Floats:
        seen = np.asarray(obs, dtype=np.float64)
        return np.stack([np.arctan2(seen[..., 1], seen[..., 0]), seen[..., 2]], axis=-1)

    def rewards(self, x: Any, obs: Any, a: Any, next_obs: Any) -> tuple[Any, Any]:
        up = 0.5 + 0.5 * next_obs[..., 0]
        return x[..., 0] * up - self.price * a[..., 0] ** 2, (1.0 - x[..., 0]) * up

    def starts(self) -> tuple[Floats, Floats]:
        """Midpoints of 128 angles and 16 speeds."""
        angles, speeds = math.pi * (2.0 * (np.arange(128) + 0.5) / 128 - 1.0), 2.0 * (np.arange(16) + 0.5) / 16 - 1.0
        states = np.stack([part.reshape(-1) for part in np.meshgrid(angles, speeds, indexing="ij")], axis=-1)
        return states, np.full(len(states), 1.0 / len(states))

    def draw_starts(self, rng: np.random.Generator, n: int) -> Floats:
        return rng.uniform([-math.pi, -1.0], [math.pi, 1.0], (n, 2))


class SubsidisedPendulumEnv(FromArguments, ContinuousEnv, problem=SubsidisedPendulumProblem):
    """A leader earns from a pendulum that stands up, and pays a share of it to the follower, whose pushes cost.

    ## Description
    The follower pushes a pendulum, at a price. The leader earns ``up``, 1 where the pendulum stands and 0 where it hangs, and
    passes the share x of it on. A follower that is paid nothing does nothing; at a small share it is worth its while to swing the
    pendulum up only where little is missing. At every x the follower has a best response by dynamic programming on a grid:
    ``problem.best_response(x)``. With the default arguments the leader's return is 10.0 at x = 0 and at best 18.8, near
    x = 0.15.

        speed' = clip(speed + dt (1.5 gravity / length sin(angle) + 3 force a / (mass length^2)), -max_speed, max_speed)
        angle' = angle + dt speed'                                       up = (1 + cos(angle')) / 2

    ## Action Space
    ``Box(-1, 1, (1,), float32)``: a, the torque in units of ``force``; what lies beyond is clipped.

    ## Observation Space
    ``Box([-1, -1, -8], [1, 1, 8], (3,), float32)``: cosine and sine of the angle (0 where it stands), the speed.

    ## Leader Space
    ``Box(0, 1, (1,), float64)``: the share, 0 at first. ``commitment(s)`` is x, ``info["leader_draw"]`` 0.

    ## Rewards
    The follower's ``x up - price a^2``; the leader's ``(1 - x) up``, undiscounted, in ``info["leader_reward"]``.

    ## Starting State
    The angle uniform, the speed uniform in [-1, 1].

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``gamma``: discount of both players, in [0, 1) (0.97).
    - ``price``: what a push of full strength costs the follower a step, not negative (0.3).
    - ``force``: largest torque, positive (4.0).
    - ``gravity``, ``mass``, ``length``: of the pendulum, positive (10.0, 1.0, 1.0).
    - ``dt``: seconds of a step, positive (0.05).
    - ``max_speed``: bound on the speed, at least 1 (8.0).
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``: the pendulum, the push, the share.

    ## Version History
    - v0: first version.

    ## References
    The dynamics are those of ``gymnasium``'s ``Pendulum-v1`` with another torque; the leader is this library's own. Dynamic
    programming is in ``bilevel_gym.envs.mdp.continuous``.
    """

    size = (5.0, 4.0)

    def _draw(self, panel: Axes) -> None:
        """Draw the pendulum, the push as a bar below it, and x in the title."""
        angle = 0.0 if self._state is None else float(self._state[0])
        push = 0.0 if self._action is None else float(self._action[0])
        panel.plot([0.0, math.sin(angle)], [0.0, math.cos(angle)], color="0.3", linewidth=6.0, solid_capstyle="round")
        panel.plot(math.sin(angle), math.cos(angle), "o", color=FOLLOWER, markersize=14.0, markeredgecolor="white")
        panel.plot(0.0, 0.0, "o", color="0.3", markersize=6.0)
        panel.barh(-1.35, push, height=0.12, color=FOLLOWER)
        panel.axvline(0.0, ymax=0.12, color="0.8", zorder=0)
        panel.text(-1.5, -1.35, "push", va="center")
        panel.set(xlim=(-1.6, 1.6), ylim=(-1.5, 1.3), aspect="equal", xticks=[], yticks=[])
        panel.set_title(f"the follower is paid {float(self._x[0]):.2f} of what standing is worth")


vector_env = SubsidisedPendulumEnv.vector
