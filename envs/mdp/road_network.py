r"""Road networks: nodes, one-way links with fixed mean times, and the demand between origins and destinations.

A trip goes from an origin to a destination over links. The time of a link does not depend on how many use it: there is
**no congestion**.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import check_seed, check_size, keep, require

RING_SPEED, AVENUE_SPEED, STREET_SPEEDS = 50.0, 50.0, (30.0, 45.0)
"""Speeds in a random city, km/h; a street's is uniform between the two."""

RING_COST, AVENUE_COST, STREET_COSTS = 0.3, 1.0, (1.0, 4.0)
"""External cost in a random city, a km; a street's is uniform between the two."""

AVENUE_SHARE = 0.3
"""Share of the roads inside the ring of a random city that are avenues."""


@dataclass(frozen=True, eq=False)
class RoadNetwork:
    """A road network with its demand.

    Attributes:
        links: tail and head of each one-way link, whole numbers, ``[L, 2]``; parallel links are allowed.
        time: mean travel time of each link in minutes, ``[L]``, ``>= 0``.
        external_cost: what one use of each link costs others, ``[L]``, ``>= 0``, in any unit.
        demand: trips between zones, which are the first Z nodes, from row to column, ``[Z, Z]``, in any unit; its
            diagonal is 0.
        coordinates: where the nodes are, ``[N, 2]``; only pictures read them.
        first_through: nodes below this number carry no through traffic: trips start and end there, none passes.

    Raises:
        ValueError: shapes that do not fit, a link to a node that does not exist or to itself, a time, cost or demand
            that is negative or not finite, no demand at all.
    """

    links: Tensor
    time: Tensor
    external_cost: Tensor
    demand: Tensor
    coordinates: Tensor
    first_through: int = 0

    def __post_init__(self) -> None:
        links = torch.as_tensor(self.links)
        whole = not (links.is_floating_point() or links.is_complex() or links.dtype == torch.bool)
        shaped = links.ndim == 2 and links.shape[0] >= 1 and links.shape[1] == 2
        require(whole and shaped, "links", "whole numbers [L, 2], L >= 1", f"{links.dtype} {tuple(links.shape)}")
        object.__setattr__(self, "links", links.long())
        keep(self, "time", "external_cost", "demand", "coordinates")
        L, N = len(links), len(self.coordinates)
        Z = len(self.demand)
        require(1 <= Z <= N, "demand", f"zones among the {N} nodes", f"shape {tuple(self.demand.shape)}")
        shapes = {"time": (L,), "external_cost": (L,), "demand": (Z, Z), "coordinates": (N, 2)}
        for name, shape in shapes.items():
            got = tuple(getattr(self, name).shape)
            require(got == shape, name, f"shape {shape} for {L} links and {N} nodes", f"shape {got}")
        for i, (tail, head) in enumerate(self.links.tolist()):
            fits = 0 <= tail < N and 0 <= head < N and tail != head
            require(fits, f"links[{i}]", f"two different nodes in 0 to {N - 1}", (tail, head))
        for name in ("time", "external_cost", "demand"):
            value = getattr(self, name)
            require(bool((value >= 0).all()), name, "numbers >= 0", value.min().item())
        diagonal = self.demand.diagonal()
        require(not bool(diagonal.any()), "demand", "no trips from a node to itself", diagonal.sum().item())
        require(bool(self.demand.any()), "demand", "at least one trip", "none")
        through = isinstance(self.first_through, int) and 0 <= self.first_through <= N
        require(through, "first_through", f"a whole number in 0 to {N}", repr(self.first_through))

    @property
    def n_nodes(self) -> int:
        """N."""
        return len(self.coordinates)

    @property
    def n_links(self) -> int:
        """L."""
        return len(self.links)


def on_a_circle(n_nodes: int) -> NDArray[np.float64]:
    """Coordinates on the unit circle, ``[N, 2]``, for networks whose nodes have no known coordinates."""
    angle = 2.0 * math.pi * np.arange(n_nodes) / n_nodes
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _places(n_nodes: int, n_ring: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The ring's nodes, the centre, then inner nodes far from the others (the farthest of 30 candidates), in km."""
    radius = math.sqrt(2.0 * n_nodes / math.pi)  # a node every two square km
    angle = 2.0 * math.pi * (np.arange(n_ring) + rng.uniform(-0.2, 0.2, n_ring)) / n_ring
    places = np.concatenate([radius * np.stack([np.cos(angle), np.sin(angle)], -1), np.zeros((1, 2))])
    while len(places) < n_nodes:
        away, angle = 0.85 * radius * np.sqrt(rng.uniform(size=30)), rng.uniform(0.0, 2.0 * math.pi, 30)
        candidates = np.stack([away * np.cos(angle), away * np.sin(angle)], -1)
        nearest = np.linalg.norm(candidates[:, None] - places, axis=-1).min(1)
        places = np.concatenate([places, candidates[nearest.argmax()][None]])
    return places


def _neighbours(distance: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Relative neighbourhood graph: i and j are joined unless a third node is nearer to both than they are to each other."""
    return np.stack([~(np.maximum(row, distance) < row[:, None] - 1e-9).any(-1) for row in distance])


def random_city(n_nodes: int = 25, seed: int | None = 0) -> RoadNetwork:
    """Make a random city with a centre, streets and a ring road; times are in minutes.

    Two fifths of the nodes (at least six) lie on a ring, the others inside, one of them in the centre; there is a node
    to every two square km. The roads are the relative neighbourhood graph of the nodes, which is connected, and the
    ring; both directions are open and alike. The ring is driven at 50 km/h and costs others 0.3 a km; of the roads
    inside, three in ten are avenues (50 km/h, 1 a km) and the rest residential streets (30 to 45 km/h, 1 to 4 a km, each
    uniform). There are trips between all nodes, in proportion to random populations of origins and attractions of
    destinations, uniform on [0.5, 1.5]; the centre attracts three times as much.

    Args:
        n_nodes: number of nodes, at least 8.
        seed: of the city; None draws a random one.

    Raises:
        ValueError: fewer than 8 nodes, a negative seed.
    """
    n = check_size(n_nodes, "n_nodes")
    require(n >= 8, "n_nodes", "at least 8", n_nodes)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    n_ring = max(6, round(0.4 * n))
    places = _places(n, n_ring, rng)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    on_ring = np.zeros((n, n), dtype=bool)
    for i in range(n_ring):
        on_ring[i, (i + 1) % n_ring] = on_ring[(i + 1) % n_ring, i] = True
    roads = np.argwhere(np.triu(_neighbours(distance) | on_ring, 1))
    km, ring = distance[tuple(roads.T)], on_ring[tuple(roads.T)]
    avenue = rng.uniform(size=len(roads)) < AVENUE_SHARE
    speed = np.where(avenue, AVENUE_SPEED, rng.uniform(*STREET_SPEEDS, size=len(roads)))
    cost = np.where(avenue, AVENUE_COST, rng.uniform(*STREET_COSTS, size=len(roads)))
    time, external = 60.0 * km / np.where(ring, RING_SPEED, speed), km * np.where(ring, RING_COST, cost)
    population, attraction = rng.uniform(0.5, 1.5, (2, n))
    attraction[n_ring] *= 3.0
    demand = np.outer(population, attraction)
    np.fill_diagonal(demand, 0.0)
    both_ways = torch.from_numpy(np.concatenate([roads, roads[:, ::-1]]))
    time, external = (torch.from_numpy(np.tile(values, 2)) for values in (time, external))
    return RoadNetwork(both_ways, time, external, torch.from_numpy(demand), torch.from_numpy(places))
