"""Cart Pole, with a leader that wants the cart at a target and pays the follower according to the cart's position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from numpy.typing import NDArray

from ...envs.core import Flags
from ...envs.mdp.checks import check_number
from .. import LinearReward, ShapedReward, Step
from ..leader_wrapper import Floats
from .parallel import WrappedVectorEnv, squared

_HALF_TRACK = 2.4


def features(obs: Any, action: Any, next_obs: Any) -> tuple[float, float]:
    """Return the features u = p / 2.4, for the cart's position p after the step, and u^2."""
    u = float(next_obs[0]) / _HALF_TRACK
    return u, u * u


def _near_target(target: float, step: Step) -> float:
    """1 - (u - u_target)^2."""
    return 1.0 - ((float(step.next_obs[0]) - target) / _HALF_TRACK) ** 2


class ShapedCartPoleVectorEnv(WrappedVectorEnv):
    """Parallel ``ShapedCartPoleEnv``; a state is (position, speed, angle, speed of the angle)."""

    single: ShapedCartPoleEnv

    def _begin(self, rows: Sequence[int]) -> Floats:
        return np.stack([self._generators[i].uniform(low=-0.05, high=0.05, size=(4,)) for i in rows])

    def _seen(self, state: Floats) -> NDArray[np.float32]:
        return state.astype(np.float32)

    def _move(self, state: Floats, actions: NDArray[Any]) -> tuple[Floats, Floats, Flags]:
        whole = actions.shape == (len(state),) and actions.dtype.kind in "iu"
        self._require_actions(whole and bool(((actions == 0) | (actions == 1)).all()), actions)
        pole, (x, x_dot, theta, theta_dot) = self.single.pole, state.T
        force = np.where(actions == 1, pole.force_mag, -pole.force_mag)
        cosine, sine = np.cos(theta), np.sin(theta)
        push = (force + pole.polemass_length * np.square(theta_dot) * sine) / pole.total_mass
        turn = (pole.gravity * sine - cosine * push) / (
            pole.length * (4.0 / 3.0 - pole.masspole * np.square(cosine) / pole.total_mass)
        )
        pull = push - pole.polemass_length * turn * cosine / pole.total_mass
        speeds = (
            x + pole.tau * x_dot,
            x_dot + pole.tau * pull,
            theta + pole.tau * theta_dot,
            theta_dot + pole.tau * turn,
        )
        following = np.stack(speeds, axis=1)
        out = (np.abs(following[:, 0]) > pole.x_threshold) | (np.abs(following[:, 2]) > pole.theta_threshold_radians)
        return following, np.ones(len(state)), out

    def _paid(self, r: Floats, before: Floats, seen: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
        place = seen[:, 0].astype(np.float64)
        u, x = place / _HALF_TRACK, self._x
        paid = u * x[..., 0] + u * u * x[..., 1]
        wanted = 1.0 - squared((place - self.single.target) / _HALF_TRACK)
        return r + paid, wanted - self.single.leader_pays * paid, np.stack([r, wanted, u, u * u], axis=1)


class ShapedCartPoleEnv(ShapedReward):
    """Cart Pole with a leader that wants the cart at a target and pays the follower according to the cart's position.

    ## Description
    The follower earns 1 in every step in which the pole stands, at any position of the cart. The leader wants the cart at
    ``target``. In each step it pays the follower ``x_1 u + x_2 u^2``, which may be negative, where u in [-1, 1] is the cart's
    position on the track after the step; it bears a share of the payment. If x_2 < 0, the payment is largest at
    u = -x_1 / (2 x_2).

    ## Action Space
    ``Discrete(2)``: push to the left, to the right.

    ## Observation Space
    ``Box(4.8, inf, 0.42, inf; (4,), float32)`` around 0: the cart's position and speed, the pole's angle and its speed.

    ## Leader Space
    ``Box(-1, 1, (2,), float64)``: x, initially 0. ``commitment(s)`` is x; ``info["leader_draw"]`` is (r, r_l, u, u^2).

    ## Rewards
    The follower's: ``1 + x_1 u + x_2 u^2``. The leader's: ``1 - ((p - target)/2.4)^2 - leader_pays (x_1 u + x_2 u^2)``.

    ## Starting State
    Each of the four uniform in [-0.05, 0.05].

    ## Episode End
    Terminates when the pole leans by more than 12 degrees or the cart leaves [-2.4, 2.4]; the registered environment truncates
    after 500 steps (``max_episode_steps``).

    ## Arguments
    - ``gamma``: discount of both players, in [0, 1) (0.99).
    - ``target``: the position at which the leader wants the cart, in [-2.4, 2.4] (1.0).
    - ``leader_pays``: share of the payment that the leader bears (0.1).
    - ``render_mode``: None, ``"human"`` or ``"rgb_array"``: Cart Pole's own (extra ``render``).

    ## Version History
    - v0: first version.

    ## References
    Cart Pole: Barto, Sutton and Anderson, 1983, as in ``gymnasium`` (``CartPole-v1``). The leader is this library's own.
    """

    metadata: ClassVar[dict[str, Any]] = CartPoleEnv.metadata  # type: ignore[misc]

    def __init__(
        self, gamma: float = 0.99, target: float = 1.0, leader_pays: float = 0.1, render_mode: str | None = None
    ) -> None:
        self.target = check_number(target, "target", low=-_HALF_TRACK, high=_HALF_TRACK)
        self.pole, shaping = CartPoleEnv(render_mode=render_mode), LinearReward(features, size=2)
        wanted = partial(_near_target, self.target)
        super().__init__(self.pole, shaping, gamma, leader_reward=wanted, leader_pays=leader_pays)
        self.leader_pays = self._share

    def vectorised(self, num_envs: int, max_episode_steps: int | None) -> ShapedCartPoleVectorEnv:
        return ShapedCartPoleVectorEnv(self, num_envs, max_episode_steps)


def vector_env(num_envs: int, max_episode_steps: int | None = None, **arguments: Any) -> ShapedCartPoleVectorEnv:
    """Make parallel environments, given the arguments of a single one."""
    return ShapedCartPoleEnv(**arguments).vectorised(num_envs, max_episode_steps)
