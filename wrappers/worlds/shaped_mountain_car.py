"""Mountain Car, with a leader that chooses a shaping potential for its sparse reward."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from gymnasium.envs.classic_control import MountainCarEnv

from .. import LinearPotential, ShapedReward

_MAX_SPEED = 0.07


def features(obs: Any) -> tuple[float, float, float]:
    """Return height, kinetic energy and position: sin 3p, (v / v_max)^2, (p + 0.3) / 0.9."""
    p, v = float(obs[0]), float(obs[1])
    return math.sin(3.0 * p), (v / _MAX_SPEED) ** 2, (p + 0.3) / 0.9


class ShapedMountainCarEnv(ShapedReward):
    """A leader shapes the reward of Mountain Car so that the follower finds the goal sooner.

    ## Description
    A car that is too weak for the hill has to swing up. Every step costs 1 until the goal is reached, so a follower learns
    nothing before it has reached the goal by chance. The leader adds ``gamma Phi_x(s') - Phi_x(s)``, with

        Phi_x(p, v) = x_1 sin 3p + x_2 (v / 0.07)^2 + x_3 (p + 0.3) / 0.9        (height, kinetic energy, position)

    and Phi = 0 at the goal. The optimal policies are those of Mountain Car for every x. The leader's return at the *exact* best
    response therefore has no gradient in x, and ``PBRL`` cannot improve it. x affects how much a follower learns in a given
    number of steps, which a search with newly trained followers (``CMAES``) can measure.

    ## Action Space
    ``Discrete(3)``: to the left, nothing, to the right.

    ## Observation Space
    ``Box([-1.2, -0.07], [0.6, 0.07], (2,), float32)``: position p and speed v.

    ## Leader Space
    ``Box(-40, 40, (3,), float64)``: x, initially 0. ``commitment(s)`` is x; ``info["leader_draw"]`` is (r, r_l, and the three
    differences ``gamma f(s') - f(s)``).

    ## Rewards
    The follower's: -1 a step, plus the leader's payment. The leader's: -1 a step.

    ## Starting State
    p uniform in [-0.6, -0.4], v = 0.

    ## Episode End
    Terminates at p >= 0.5; the registered environment truncates after 200 steps (``max_episode_steps``).

    ## Arguments
    - ``gamma``: discount of both players and of the potential, in [0, 1) (0.99).
    - ``render_mode``: None, ``"human"`` or ``"rgb_array"``: Mountain Car's own (extra ``render``).

    ## Version History
    - v0: first version.

    ## References
    Mountain Car: Moore, 1990, as in ``gymnasium`` (``MountainCar-v0``). Potentials: Ng, Harada and Russell, ICML 1999.
    """

    metadata: ClassVar[dict[str, Any]] = MountainCarEnv.metadata  # type: ignore[misc]

    def __init__(self, gamma: float = 0.99, render_mode: str | None = None) -> None:
        base = MountainCarEnv(render_mode=render_mode)
        super().__init__(base, LinearPotential(features, size=3), gamma=gamma, low=-40.0, high=40.0)
