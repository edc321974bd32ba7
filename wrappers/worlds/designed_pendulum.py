"""Pendulum, with a leader that chooses the gravity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from gymnasium.envs.classic_control import PendulumEnv
from numpy.typing import NDArray

from ...envs.core import Flags
from ...envs.mdp.checks import check_number
from .. import Attribute, DrawnAttribute, Step
from ..leader_wrapper import Floats
from .designed_pendulum_problem import DesignedPendulumProblem
from .parallel import WrappedVectorEnv, squared


def _heavier_is_better(value: float, step: Step) -> float:
    """r + value * g."""
    return step.reward + value * float(step.drawn[0])


class DesignedPendulumVectorEnv(WrappedVectorEnv):
    """Parallel ``DesignedPendulumEnv``; a state is (angle, speed, g before it is clipped, 1 in an episode's first step)."""

    single: DesignedPendulumEnv

    def _begin(self, rows: Sequence[int]) -> Floats:
        means, std = np.broadcast_to(self._x, (self.num_envs, 1))[:, 0], np.exp(np.log(self.single.std))
        drawn = [means[i] + std * self._draws[i].standard_normal(1)[0] for i in rows]
        starts = np.stack([self._generators[i].uniform(low=[-math.pi, -1.0], high=[math.pi, 1.0]) for i in rows])
        return np.column_stack([starts, drawn, np.ones(len(starts))])

    def _seen(self, state: Floats) -> NDArray[np.float32]:
        return np.stack([np.cos(state[:, 0]), np.sin(state[:, 0]), state[:, 1]], axis=1).astype(np.float32)

    def _move(self, state: Floats, actions: NDArray[Any]) -> tuple[Floats, Floats, Flags]:
        fits = actions.shape == (len(state), 1) and actions.dtype.kind in "iuf" and bool(np.isfinite(actions).all())
        self._require_actions(fits, actions)
        p, (angle, speed, drawn, _) = self.single.pendulum, state.T
        u, g = np.clip(actions, -p.max_torque, p.max_torque)[:, 0], np.maximum(drawn, 0.0)
        normal = (angle + np.pi) % (2.0 * np.pi) - np.pi
        costs = squared(normal) + 0.1 * squared(speed) + 0.001 * squared(u)
        faster = speed + (3.0 * g / (2.0 * p.l) * np.sin(angle) + 3.0 / (p.m * p.l**2) * u) * p.dt
        faster = np.clip(faster, -p.max_speed, p.max_speed)
        following = np.stack([angle + faster * p.dt, faster, drawn, np.zeros(len(state))], axis=1)
        return following, -costs, np.zeros(len(state), dtype=np.bool_)

    def _paid(self, r: Floats, before: Floats, seen: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
        drawn, first = before[:, 2], before[:, 3]
        r_l = r + self.single.value * np.maximum(drawn, 0.0)
        return r, r_l, np.stack([r, r_l, first, drawn], axis=1)

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """The leader context of each environment: its x, and the drawn g where that is shown."""
        shown = super().commitment(obs)
        if self.commitment_size == 1 or self._state is None:
            return shown
        return np.column_stack([shown, np.maximum(self._state[:, 2], 0.0).astype(np.float32)])


class DesignedPendulumEnv(DrawnAttribute):
    """A leader chooses the gravity of the pendulum that a follower swings up.

    ## Description
    At the start of every episode the gravity is drawn, ``g ~ N(x, std^2)``, clipped at 0; the follower swings the pendulum up and
    holds it there. The leader shares the follower's costs and earns a reward that increases with g. The dynamics depend on g and
    are not differentiated: x's gradient comes from log p_x(g), once per episode.

    **Reference.** With ``show_draw=True`` the gravity is a constant that the follower sees, and ``problem.best_response(x)`` is
    found by dynamic programming on a grid for each of a few gravities. Otherwise the follower has to guess it from how
    the pendulum moves, and there is no reference.

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
    _problem: DesignedPendulumProblem | None = None

    def __init__(
        self,
        gamma: float = 0.98,
        std: float = 1.0,
        value: float = 0.2,
        show_draw: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.value = check_number(value, "value", open_low=True, open_high=True)
        gravity = Attribute("g", 2.0, 20.0, std, limits=(0.0, math.inf))
        self.std, self.pendulum = float(std), PendulumEnv(render_mode=render_mode)
        worth = partial(_heavier_is_better, self.value)
        super().__init__(self.pendulum, [gravity], gamma, show_draw, worth)

    @property
    def problem(self) -> DesignedPendulumProblem:
        """The reference on a grid, where the follower sees g.

        Raises:
            AttributeError: the follower does not see g.
        """
        if not self._show_draw:
            raise AttributeError(
                "problem: expected show_draw=True; a follower that does not see g has no reference on a grid"
            )
        if self._problem is None:
            self._problem = DesignedPendulumProblem(self.gamma, self.std, self.value)
        return self._problem

    def vectorised(self, num_envs: int, max_episode_steps: int | None) -> DesignedPendulumVectorEnv:
        return DesignedPendulumVectorEnv(self, num_envs, max_episode_steps)


def vector_env(num_envs: int, max_episode_steps: int | None = None, **arguments: Any) -> DesignedPendulumVectorEnv:
    """Make parallel environments, given the arguments of a single one."""
    return DesignedPendulumEnv(**arguments).vectorised(num_envs, max_episode_steps)
