r"""Tolls on a road network (recursive logit: Fosgerau, Frejinger and Karlström 2013).

A driver at node s on the way to destination c takes an outgoing link l, which takes a random time of mean t_l minutes,
and pays its toll x_l (in minutes of the driver's time):

    r_x(c,s,l) = -(t_l + x_l),     0 in s = c, where the trip ends
    V_c(s)     = tau log sum_l exp( (r_x(c,s,l) + gamma V_c(head(l))) / tau ),     V_c(c) = 0
    pi(l|c,s)  = exp( (r_x(c,s,l) + gamma V_c(head(l)) - V_c(s)) / tau )

which for gamma to 1 is a logit choice among all paths. The leader is paid, a use of link l,

    r_l(c,s,l) = -e_l + w x_l,     e_l the external cost, w the weight of revenue.

Destinations are contexts, weighted by their share of the trips; the start distribution of context c is the share of the
origins in its trips. Links' times are fixed: there is **no congestion**.

**Cycles.** Entropy must not pay for driving in circles. A path is chosen in proportion to ``exp(-cost/tau)``; the sum over
all paths is finite where the matrix ``M(s,s') = sum_{l: s to s'} exp(-t_l/tau)``, without the destination's row, has
spectral radius under 1. Tolls are not negative and so only lower it. Since M >= 0 this holds exactly where the solution z of
(I - M) z = 1 is positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import ClassVar

import torch
from torch import Tensor

from .checks import check_gamma, check_number, check_tau, require
from .problem import LeaderSet, TabularProblem
from .road_network import RoadNetwork, random_city
from .tabular import TabularKernel, TabularMDP, visitation
from .tntp import read_tntp

TIME_FACTORS = (0.7, 0.8, 0.9, 1.1, 1.5)
"""A link takes its mean time times one of these, equally likely: late more seriously than early, 1 on average."""

MAX_ENTRIES = 50_000_000
"""Largest C * S * A * S, the size of P (400 MB); at two thirds of it an exact step takes about 3 s of one core."""


@dataclass(frozen=True)
class Trip:
    """Expected totals of a trip, undiscounted.

    Attributes:
        time: minutes on the road.
        external_cost: external cost of the links used, in the network's unit.
        toll: tolls paid, in minutes.
        flow: expected number of uses of each link per trip, ``[L]``.
    """

    time: float
    external_cost: float
    toll: float
    flow: Tensor


class TollDesignProblem(TabularProblem):
    """Toll design on a road network; x is the toll of each link, in ``[0, max_toll]``.

    Args:
        network: the network, the path of a file in the TNTP format (see :func:`read_tntp`), or None for a random city.
        gamma: discount factor of both players per link, in [0, 1).
        tau: default temperature of the driver, in minutes, i.e. the scale of its logit route choice.
        max_toll: largest toll, in minutes of the driver's time.
        revenue_weight: the weight w of revenue in the leader's reward, in [-1, 1]; negative if tolls are a burden to the leader.
        n_nodes: number of nodes of the random city.
        seed: seed of the random city; None draws a new seed.
        minutes: for a file, the length of its unit of time in minutes, e.g. 60 if the file is in hours.
        trips: for a file, the path of its trip table, or ``"uniform"``; None looks for one in the same folder.
        nodes: for a file, the path of its nodes' coordinates; None looks for one in the same folder.

    Attributes:
        destinations: the node of each context, ``[C]``.
        link_of: the link that each action takes at each node, ``[N, A]``; -1 if the node has fewer links.

    Raises:
        ValueError: an argument is out of range; a destination cannot be reached from an origin; at this temperature driving in
            circles would pay; or the network is too large for exact methods.
    """

    batched_kernel: ClassVar[bool] = True
    takes_missing_actions: ClassVar[bool] = True

    def __init__(
        self,
        network: RoadNetwork | str | PathLike[str] | None = None,
        gamma: float = 0.999,
        tau: float = 0.5,
        max_toll: float = 5.0,
        revenue_weight: float = 0.0,
        n_nodes: int = 25,
        seed: int | None = 0,
        minutes: float = 1.0,
        trips: str | PathLike[str] | None = None,
        nodes: str | PathLike[str] | None = None,
    ) -> None:
        from_file = network is not None and not isinstance(network, RoadNetwork)
        for name, value, default in (("minutes", minutes, 1.0), ("trips", trips, None), ("nodes", nodes, None)):
            unused = value is default or (isinstance(value, float) and value == default)
            require(from_file or unused, name, f"{default} where network is no file", repr(value))
        if network is None:
            network = random_city(n_nodes, seed)
        elif not isinstance(network, RoadNetwork):
            network = read_tntp(network, trips=trips, nodes=nodes, minutes=minutes)
        self.network, self.gamma, self.tau = network, check_gamma(gamma), check_tau(tau)
        self.max_toll = check_number(max_toll, "max_toll", low=0.0, open_low=True, open_high=True)
        self.revenue_weight = check_number(revenue_weight, "revenue_weight", low=-1.0, high=1.0)
        self.leader_set = LeaderSet.box(network.n_links, 0.0, self.max_toll)
        # Destinations, slots of outgoing links, who may use which on the way to which destination.
        N = network.n_nodes
        tail, head = network.links.unbind(-1)
        arrivals = network.demand.sum(0)
        self.destinations = arrivals.nonzero().flatten()
        C = len(self.destinations)
        self.context_probs = arrivals[self.destinations] / arrivals.sum()
        degree = torch.bincount(tail, minlength=N)
        A = int(degree.max())
        expected = (
            f"at most {MAX_ENTRIES} for destinations x nodes x out-degree x nodes, the size of P in the exact model"
        )
        entries = C * N * A * N
        require(entries <= MAX_ENTRIES, "network", expected, f"{C} x {N} x {A} x {N} = {entries}")
        self._rho = torch.zeros(C, N, dtype=torch.float64)
        self._rho[:, : len(arrivals)] = (network.demand[:, self.destinations] / arrivals[self.destinations]).T
        order = torch.argsort(tail, stable=True)
        rank = torch.arange(len(tail)) - (degree.cumsum(0) - degree)[tail[order]]
        self.link_of = torch.full((N, A), -1).index_put((tail[order], rank), order)
        slot, exists = self.link_of.clamp_min(0), self.link_of >= 0
        self._slot = slot
        reached, enters = self._reach(tail, head)
        lost = (self._rho > 0) & ~reached
        if bool(lost.any()):
            c, origin = (int(i) for i in lost.nonzero()[0])
            pair = f"{origin} to node {int(self.destinations[c])}"
            raise ValueError(f"network: expected a way for every trip, got none from node {pair}")
        self._terminal = (torch.arange(N) == self.destinations.unsqueeze(-1)) | ~reached
        self._drives = exists & enters[:, slot] & ~self._terminal.unsqueeze(-1)
        self._mask = self._drives.clone()
        self._mask[..., 0] |= self._terminal
        # Missing actions, and those at the end of a trip, stay where they are.
        ends = torch.where(self._drives, head[slot], torch.arange(N).unsqueeze(-1))
        self._P = torch.nn.functional.one_hot(ends, N).to(torch.float64)
        self._check_cycles(tail, head, enters)
        self._draw = torch.full((N, 1, len(TIME_FACTORS)), 1.0 / len(TIME_FACTORS), dtype=torch.float64)
        self._uses = self._drives.to(torch.float64)
        self._time, self._external = self._uses * network.time[slot], self._uses * network.external_cost[slot]
        # Waiting is dearer than the dearest link, hence strictly worse than going on, whatever gamma.
        idle = ~self._drives & ~self._terminal.unsqueeze(-1)
        self._idle = -(float(network.time.max()) + self.max_toll) * idle.to(torch.float64)
        self.follower_mdp(self.start_x()).check_discount()

    def _reach(self, tail: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """Return which nodes have a path to each destination, ``[C, N]``, and which links lie on one, ``[C, L]``."""
        network, to = self.network, self.destinations.unsqueeze(-1)
        open_to = (head >= network.first_through) | (head == to)
        reached = torch.arange(network.n_nodes) == to
        while True:
            enters = open_to & reached[:, head]
            wider = reached | (torch.zeros(reached.shape).index_add_(1, tail, enters.float()) > 0)
            if torch.equal(wider, reached):
                return reached, enters
            reached = wider

    def _check_cycles(self, tail: Tensor, head: Tensor, enters: Tensor) -> None:
        """Raise ``ValueError`` unless the sum over all paths is finite (see the module)."""
        if self.tau == 0.0:
            return
        N = self.network.n_nodes

        def cycles(tau: float) -> float | None:
            """The spectral radius on the way to a destination where it is 1 or more; None where it is less for all."""
            weight = enters * torch.exp(-self.network.time / tau)
            M = torch.zeros(len(enters), N * N, dtype=torch.float64).index_add_(1, tail * N + head, weight)
            M = M.view(-1, N, N) * ~self._terminal.unsqueeze(-1)
            z, failed = torch.linalg.solve_ex(torch.eye(N, dtype=torch.float64) - M, torch.ones(len(M), N, 1).double())
            cycling = (failed != 0) | ~(z > 0).all(-1).all(-1)
            worst = cycling.nonzero()
            return float(torch.linalg.eigvals(M[int(worst[0])]).abs().max()) if len(worst) else None

        radius = cycles(self.tau)
        if radius is not None:
            lower = next((self.tau / 2**k for k in range(1, 40) if cycles(self.tau / 2**k) is None), None)
            median = float(self.network.time.median())
            can = "" if lower is None else f"take a lower tau, such as tau={lower:.3g}, or, "
            raise ValueError(
                f"tau: expected a temperature at which driving in circles does not pay, got {self.tau:g} minutes, where the "
                f"median link takes {median:.3g} minutes (the spectral radius of exp(-time/tau) over the links is "
                f"{radius:.4g} and should be under 1); {can}if the file's times are in another unit, say how many minutes it "
                "is, e.g. minutes=60 for hours"
            )

    def _tolls(self, x: Tensor) -> Tensor:
        """Return the toll of each state and action, ``[..., C, N, A]`` for x ``[..., L]``; 0 where no link is taken."""
        return self._uses * x[..., self._slot].unsqueeze(-3)

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        r = self._idle - self._time - self._tolls(x)
        return TabularMDP(self._P, r, self._rho, self.gamma, self._terminal, self._mask, validate=False)

    def leader_reward(self, x: Tensor) -> Tensor:
        return self.revenue_weight * self._tolls(x) - self._external

    def kernel(self, x: Tensor) -> TabularKernel:
        """Return the kernel at x, whose draw w indexes ``TIME_FACTORS``; x may be ``[n, L]``, a row per environment."""
        factors = torch.tensor(TIME_FACTORS, dtype=torch.float64)
        r_follower = (self._idle - self._tolls(x)).unsqueeze(-1) - self._time.unsqueeze(-1) * factors
        r_leader = self.leader_reward(x).unsqueeze(-1).expand(r_follower.shape)
        P = self._P.unsqueeze(-2).expand(*self._P.shape[:-1], len(factors), -1)
        return TabularKernel(self._draw, P, r_follower, r_leader)

    def trip(self, x: Tensor, pi: Tensor) -> Trip:
        """Return the expected totals of a trip under tolls x, ``[L]``, and policy pi, ``[C, N, A]``.

        pi must reach the destination with probability 1, as every soft-optimal policy does.
        """
        to_the_end = TabularMDP(self._P, self._time, self._rho, 1.0, self._terminal, self._mask, validate=False)
        use = self.over_contexts((visitation(to_the_end, pi).unsqueeze(-1) * pi * self._uses).movedim(0, -1))
        flow = torch.zeros(self.network.n_links, dtype=torch.float64)
        flow.index_add_(0, self._slot.flatten(), use.flatten())
        network = self.network
        time, external, toll = (float(flow @ v) for v in (network.time, network.external_cost, x))
        return Trip(time, external, toll, flow)
