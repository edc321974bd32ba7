"""A building whose leader sets insulation and airflow, and whose follower heats and cools it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .continuous import ContinuousEnv, ContinuousVectorEnv, Floats
from .core import FromArguments
from .mdp.building import ZONES, BuildingProblem
from .mdp.checks import require
from .render import FOLLOWER, draw_heat

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class BuildingLeaderModel(nn.Module):
    r"""Rewards and log-probability of steps as functions of x: :math:`\log p_x = \log N(s'; A(x) s + B u, noise^2 I)`.

    Args:
        problem: the problem.
        x: where the parameter starts, ``[8]``.
    """

    def __init__(self, problem: BuildingProblem, x: Tensor) -> None:
        super().__init__()
        self.problem = problem
        self.x = nn.Parameter(x.detach().to(torch.float64).clone())

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch of steps.

        Args:
            obs: temperatures, ``[..., 4]``.
            action: the follower's actions, ``[..., 2]``, clipped to [-1, 1].
            draw: not used: what is drawn is the next state.
            next_obs: temperatures after the step, ``[..., 4]``.

        Returns:
            r_follower, r_leader, log_p, each ``[...]``, float64.
        """
        problem = self.problem
        s, a, after = (torch.as_tensor(part).to(torch.float64) for part in (obs, action, next_obs))
        a = a.clamp(-1.0, 1.0)
        r_f, r_l = problem.rewards(self.x, s, a, after)
        z = (after - problem.move(problem.dynamics(self.x), s, a)) / problem.noise
        log_p = -0.5 * z.square().sum(-1) - ZONES * math.log(problem.noise * math.sqrt(2.0 * math.pi))
        return r_f + 0.0 * self.x.sum(), r_l, log_p


class _Building:
    """What both environments have that other continuous ones do not: x in their dynamics."""

    obs_dtype: ClassVar[type[Any]] = np.float64  # noise is small: float32 would change log p_x
    problem: BuildingProblem
    _x: Tensor

    def _load(self, x: Tensor) -> None:
        self._x, self._A = x, self.problem.dynamics(x).numpy()

    def _follow(self, s: Floats, a: Floats, rng: np.random.Generator) -> Floats:
        moved: Floats = self.problem.move(self._A, s, a)
        return moved + self.problem.noise * rng.standard_normal(s.shape)

    def leader_model(self) -> nn.Module:
        """The step as a function of x.

        Raises:
            ValueError: if the environments have different x.
        """
        require(self._x.ndim == 1, "x", "one x for all environments", f"shape {tuple(self._x.shape)}")
        return BuildingLeaderModel(self.problem, self._x)


class BuildingVectorEnv(_Building, ContinuousVectorEnv):
    """Parallel ``BuildingControlEnv``, stepped together in numpy; see ``ContinuousVectorEnv``."""


class BuildingControlEnv(FromArguments, _Building, ContinuousEnv, problem=BuildingProblem):
    """A leader insulates a building and connects its zones, so that a follower who heats and cools it keeps it even.

    ## Description
    Four zones have temperatures s, as deviations from what is wanted, and drift away from it. The leader chooses the insulation
    of each zone and the airflow of four pairs of zones, and so the matrix A(x) of

        s' = A(x) s + B u + noise e,    e ~ N(0, I)

    The follower's two inputs u hold the deviations small; the leader wants the zones alike and the inputs small. For each x the
    best response is linear, by a Riccati equation: ``problem.best_response(x)``; ``problem.return_at_best_response(x)`` is
    differentiable in x. The leader's return is -12.38 at the start and -9.53 at the optimum. Learned followers find this
    hard: one that loses 2% of its return moves the leader's by a quarter.

    ## Action Space
    ``Box(-1, 1, (2,), float32)``: ``u = bound * a``; what lies beyond is clipped.

    ## Observation Space
    ``Box(-inf, inf, (4,), float64)``: the temperatures.

    ## Leader Space
    ``Box(0, 1, (8,), float64)``: insulation of zones 0 to 3, airflow of the pairs (0, 1), (1, 2), (2, 3), (3, 0); 0.5 at first.
    ``commitment(s)`` is x, ``info["leader_draw"]`` 0.

    ## Rewards
    The follower's ``-s^T Q s - 0.01 |u|^2`` with Q = diag(8, 1, 5, 6). The leader's ``-var(s) - 0.5 |u|^2 - 0.1 |x|^2``,
    undiscounted, in ``info["leader_reward"]``; the variance is over the zones.

    ## Starting State
    Temperatures are standard normal.

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``gamma``: discount of both players, in [0, 1) (0.9).
    - ``noise``: standard deviation of the temperatures' noise, positive (0.02).
    - ``bound``: largest input of the follower, positive (10.0).
    - ``tau``: temperature of the follower's entropy in the problem's own return, 0 for a greedy follower (0.0). Steps do not
      depend on it.
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``: the temperatures, and A(x) - 1 as a heat map.

    ## Version History
    - v0: first version.

    ## References
    After the building of BC-HG (ICAPS 2026). The mathematics is in ``bilevel_gym.envs.mdp.building``.
    """

    vector_class: ClassVar[type[Any]] = BuildingVectorEnv
    size = (9.0, 3.6)

    def _draw(self, panel: Axes) -> None:
        """Draw the temperatures as bars, and A(x) less the identity as a heat map."""
        figure = panel.get_figure(root=True)
        assert figure is not None
        figure.clear()
        zones, exchange = figure.subplots(1, 2)
        zones.bar(range(ZONES), np.zeros(ZONES) if self._state is None else self._state, color=FOLLOWER)
        zones.axhline(0.0, color="0.6", linewidth=1.0)
        zones.set(ylim=(-3.0, 3.0), xticks=range(ZONES), xlabel="zone", ylabel="deviation", title="temperatures")
        draw_heat(exchange, self._A - np.eye(ZONES), "A(x) - 1", cmap="RdBu", vmin=-0.15, vmax=0.15)
        exchange.set(
            xticks=range(ZONES), yticks=range(ZONES), xlabel="from zone", ylabel="to zone", title="drift and airflow"
        )


vector_env = BuildingControlEnv.vector
