"""Cart Pole, with a leader that wants the cart at a target and pays the follower according to the cart's position."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from gymnasium.envs.classic_control import CartPoleEnv

from ...envs.mdp.checks import check_number
from .. import LinearReward, ShapedReward, Step

_HALF_TRACK = 2.4


def features(obs: Any, action: Any, next_obs: Any) -> tuple[float, float]:
    """Return the features u = p / 2.4, for the cart's position p after the step, and u^2."""
    u = float(next_obs[0]) / _HALF_TRACK
    return u, u * u


def _near_target(target: float, step: Step) -> float:
    """1 - (u - u_target)^2."""
    return 1.0 - ((float(step.next_obs[0]) - target) / _HALF_TRACK) ** 2


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
        wanted = partial(_near_target, check_number(target, "target", low=-_HALF_TRACK, high=_HALF_TRACK))
        base = CartPoleEnv(render_mode=render_mode)
        shaping = LinearReward(features, size=2)
        super().__init__(base, shaping, gamma, leader_reward=wanted, leader_pays=leader_pays)
