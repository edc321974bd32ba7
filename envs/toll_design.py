"""Tolls on a road network: a driver crosses a city, and the leader sets a toll on each link."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .core import FromArguments
from .mdp import RoadNetwork, TollDesignProblem, solve_soft
from .render import FOLLOWER
from .tabular import TabularEnv

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_network(panel: Axes, network: RoadNetwork, width: Tensor, colour: Tensor, label: str, **kwargs: Any) -> None:
    """Draw a map in which each one-way link has its own width and colour, beside the link in the other direction.

    Args:
        panel: where to draw.
        network: the network.
        width: of each link, in ``[0, 1]``, ``[L]``.
        colour: a number of each link, ``[L]``.
        label: what the colours are.
        kwargs: of matplotlib's ``LineCollection``, e.g. ``cmap``, ``clim``.
    """
    from matplotlib.collections import LineCollection

    places = network.coordinates
    ends = places[network.links]
    along = ends[:, 1] - ends[:, 0]
    right = torch.stack([along[:, 1], -along[:, 0]], -1) / along.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    extent = float((places.max(0).values - places.min(0).values).max())
    lanes = ends + 0.008 * extent * right.unsqueeze(1)
    points = (0.6 + 7.0 * width).numpy()
    drawn = LineCollection(lanes.numpy(), linewidths=points, array=colour.numpy(), capstyle="butt", **kwargs)
    panel.add_collection(drawn)
    panel.plot(*places.T.numpy(), "o", color="0.3", markersize=3.0)
    panel.set_aspect("equal")
    panel.set_axis_off()
    assert panel.figure is not None
    panel.figure.colorbar(drawn, ax=panel, label=label, shrink=0.8)


def draw_before_and_after(before: Axes, after: Axes, problem: TollDesignProblem, x: Tensor) -> None:
    """Draw two maps: the traffic without tolls over the links' external costs, and the traffic under x over the tolls.

    The traffic is that of the soft-optimal driver; links are as wide as their use a trip, on one scale in both maps.
    """
    network, free = problem.network, torch.zeros_like(x)
    trips = [problem.trip(tolls, solve_soft(problem.follower_mdp(tolls), problem.tau0).pi) for tolls in (free, x)]
    widest = max(float(trip.flow.max()) for trip in trips)
    cost = network.external_cost
    for panel, trip, title, colour, label, top in (
        (before, trips[0], "without tolls", cost, "external cost of a use", float(cost.max())),
        (after, trips[1], "under the tolls x", x, "toll, minutes", problem.max_toll),
    ):
        draw_network(panel, network, trip.flow / widest, colour, label, cmap="viridis_r", clim=(0.0, top))
        panel.set_title(f"{title}: external cost {trip.external_cost:.2f}, {trip.time:.1f} min a trip", fontsize=9)


class TollDesignEnv(FromArguments, TabularEnv, problem=TollDesignProblem):
    """A driver finds a route through a city in which the leader sets a toll on every link.

    ## Description
    A road network: a random city with a centre, residential streets, avenues and a ring road, or one read from a file in
    the TNTP text format. A trip has an origin and a destination, drawn from the network's demand. At a node the driver
    takes an outgoing link; that takes a random time, its mean times 0.7, 0.8, 0.9, 1.1 or 1.5, equally likely, and costs
    the link's toll. The leader sets the tolls to lower the external cost of the links that are used (noise, danger, bad
    air), with a weight on revenue. **There is no congestion**: mean times do not depend on the traffic. All is in minutes
    of the driver's time, tolls too.

    ## Action Space
    ``Discrete(A)``, A the largest number of links that leave a node: the a-th outgoing link, in the order of
    ``problem.link_of``, ``[N, A]``. Where the node has fewer, the action is missing, and so is a link that does not lead on
    to the destination: ``info["action_mask"]`` and ``action_masks()`` (for sb3-contrib's MaskablePPO) tell. The model
    excludes missing actions; the environment answers one with a wait at the node, as long as the dearest link may cost,
    which is worse than going on, so that algorithms without masks can play. At the destination the one action is 0.

    ## Observation Space
    ``Discrete(C * N)``: ``c * N + s``, at node s on the way to ``problem.destinations[c]``.

    ## Leader Space
    ``Box(0, max_toll, (L,), float64)``: the tolls of the links, in the network's order. ``commitment(s)`` is all of them.
    ``info["leader_draw"]`` numbers the factor of the link's mean time that was drawn; with it, ``leader_model()`` gives the
    rewards of the very step.

    ## Rewards
    The driver's: minus the link's random time and its toll; nothing at the destination. The leader's: minus the link's
    external cost plus ``revenue_weight`` times its toll.

    ## Starting State
    A destination by its share of the trips, then an origin by its share of the trips to there.

    ## Episode End
    With the step taken at the destination, which costs nothing and stays there; the registered environment truncates
    after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``network``: the path of a file in the TNTP format, or a ``RoadNetwork``; None for a random city.
    - ``minutes``, ``trips``, ``nodes``: of a file: the length of its unit of time in minutes, e.g. 60 for hours (1); the
      paths of its trip table and of its nodes' places (None takes those beside it; see ``read_tntp``).
    - ``n_nodes``, ``seed``: of the random city (25, 0); seed None draws a random one.
    - ``gamma``: discount of both players, a link, in [0, 1) (0.999).
    - ``tau``: default temperature of the driver, in minutes (0.5): the scale of a logit choice of routes. It is refused
      where driving in circles would pay.
    - ``max_toll``: largest toll, in minutes (5).
    - ``revenue_weight``: what a minute of toll is worth to the leader, in [-1, 1] (0).
    - ``render_mode``: None, ``"ansi"``, or ``"rgb_array"``: two maps, the traffic without tolls over the links' external
      cost, and the traffic under x over its tolls, both of the soft-optimal driver, with the driver of this episode (disc)
      and its destination (star).

    A network is refused where destinations x nodes x out-degree x nodes, the size of P in the exact model, exceeds 50
    million (400 MB, and seconds an exact step).

    ## Version History
    - v0: first version.

    ## References
    Fosgerau, Frejinger and Karlström, A link based network route choice model with unrestricted choice set,
    Transportation Research Part B, 2013, for the driver (recursive logit; here discounted). The cities are this library's
    own.
    """

    problem: TollDesignProblem

    def _draw(self, panel: Axes) -> None:
        figure, where = panel.get_figure(root=True), panel.get_subplotspec()
        assert figure is not None
        assert where is not None
        figure.set_size_inches(10.0, 4.5)
        panel.set_axis_off()
        halves = where.subgridspec(1, 2)
        before, after = (figure.add_subplot(halves[k]) for k in range(2))
        problem, network = self.problem, self.problem.network
        draw_before_and_after(before, after, problem, self._x)
        if self._state is not None:
            c, s = divmod(self._state, network.n_nodes)
            places = network.coordinates[[s, int(problem.destinations[c])]].numpy()
            for (x, y), marker, size in zip(places, "o*", (9, 14), strict=True):
                after.plot(x, y, marker, markersize=size, color=FOLLOWER, markeredgecolor="white", zorder=5)


vector_env = TollDesignEnv.vector
