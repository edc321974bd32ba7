"""Pendulum, with a leader that chooses the gravity."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

from gymnasium.envs.classic_control import PendulumEnv

from ...envs.mdp.checks import check_number
from .. import Attribute, DrawnAttribute, Step


def _heavier_is_better(value: float, step: Step) -> float:
    """r + value * g."""
    return step.reward + value * float(step.drawn[0])


class DesignedPendulumEnv(DrawnAttribute):
    """A leader chooses the gravity of the pendulum that a follower swings up.

    ## Description
    At the start of every episode the gravity is drawn, ``g ~ N(x, std^2)``, clipped at 0; the follower swings the pendulum up and
    holds it there. The leader shares the follower's costs and earns a reward that increases with g. The dynamics depend on g and
    are not differentiated: x's gradient comes from log p_x(g), once per episode.

    ## Action Space
    ``Box(-2, 2, (1,), float32)``: the torque.

    ## Observation Space
    ``Box([-1, -1, -8], [1, 1, 8], (3,), float32)``: cosine and sine of the angle, its speed.

    ## Leader Space
    ``Box(2, 20, (1,), float64)``: the mean of g, initially 10. ``commitment(s)`` is x, or (x, g) if ``show_draw`` is True;
    ``info["leader_draw"]`` is (r, r_l, 1 in an episode's first step, g before it is clipped).

    ## Rewards
    The follower's: ``-(angle^2 + 0.1 speed^2 + 0.001 torque^2)``. The leader's: the same plus ``value * g``.

    ## Starting State
    The angle uniform, the speed uniform in [-1, 1]; neither depends on g.

    ## Episode End
    It does not terminate; the registered environment truncates after 200 steps (``max_episode_steps``).

    ## Arguments
    - ``gamma``: discount of both players, in [0, 1) (0.98).
    - ``std``: standard deviation of g, positive (1.0).
    - ``value``: the leader's reward per unit of gravity in each step (0.2).
    - ``show_draw``: whether the follower sees g (False).
    - ``render_mode``: None, ``"human"`` or ``"rgb_array"``: Pendulum's own (extra ``render``).

    ## Version History
    - v0: first version.

    ## References
    ``gymnasium`` (``Pendulum-v1``); the leader is this library's own.
    """

    metadata: ClassVar[dict[str, Any]] = PendulumEnv.metadata  # type: ignore[misc]

    def __init__(
        self,
        gamma: float = 0.98,
        std: float = 1.0,
        value: float = 0.2,
        show_draw: bool = False,
        render_mode: str | None = None,
    ) -> None:
        worth = partial(_heavier_is_better, check_number(value, "value", open_low=True, open_high=True))
        gravity = Attribute("g", 2.0, 20.0, std, limits=(0.0, math.inf))
        super().__init__(PendulumEnv(render_mode=render_mode), [gravity], gamma, show_draw, worth)
