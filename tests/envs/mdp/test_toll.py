"""Tolls: the driver against closed forms of logit route choice, the leader's gradient against central differences."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.envs.mdp import RoadNetwork, SoftOptimum, TollDesignProblem, Trip, random_city, solve_soft
from bilevel_gym.envs.mdp.toll import MAX_ENTRIES, TIME_FACTORS
from tests.problems import assert_gradient, autograd, numerical_gradient, residual

F64 = torch.float64
ONWARD = 1.0 - 1e-12
"""A discount that counts as none over the length of a trip."""


def network(links: list[tuple[int, int, float]], demand: dict[tuple[int, int], float], **kwargs: Any) -> RoadNetwork:
    """Nodes on a line; the external cost of link l is l + 1."""
    n = max(max(a, b) for a, b, _ in links) + 1
    trips = torch.zeros(n, n, dtype=F64)
    for pair, count in demand.items():
        trips[pair] = count
    places = torch.arange(2.0 * n, dtype=F64).view(n, 2)
    ends, time = torch.tensor([link[:2] for link in links]), torch.tensor([link[2] for link in links], dtype=F64)
    return RoadNetwork(ends, time, torch.arange(1.0, len(links) + 1.0, dtype=F64), trips, places, **kwargs)


def random_tolls(problem: TollDesignProblem, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return problem.max_toll * (0.1 + 0.8 * torch.rand(problem.leader_dim, generator=rng, dtype=F64))


def answer(problem: TollDesignProblem, x: Tensor, tau: float | None = None) -> SoftOptimum:
    return solve_soft(problem.follower_mdp(x), problem.tau if tau is None else tau, tol=1e-13)


def trip_at(problem: TollDesignProblem, x: Tensor) -> Trip:
    return problem.trip(x, answer(problem, x).pi)


def path_sums(problem: TollDesignProblem, x: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """V, ``[C, N]``, and the flow, ``[L]``, of a logit choice among all paths, by (I - M)^{-1} in numpy."""
    net, tau = problem.network, problem.tau
    tail, head = net.links.numpy().T
    weight = np.exp(-(net.time + x).numpy() / tau)
    values, flow = [], np.zeros(net.n_links)
    for c, trips in enumerate(net.demand.T[problem.destinations].numpy()):
        end = int(problem.destinations[c])
        live = tail != end
        M = np.zeros((net.n_nodes, net.n_nodes))
        np.add.at(M, (tail[live], head[live]), weight[live])
        reach = np.linalg.inv(np.eye(net.n_nodes) - M)
        Z = reach[:, end]  # the sum over all paths to the destination of exp(-cost / tau)
        values.append(tau * np.log(Z))
        chosen = np.where(live, weight * Z[head] / Z[tail], 0.0)
        P = np.zeros_like(M)
        np.add.at(P, (tail, head), chosen)
        visits = np.linalg.solve((np.eye(net.n_nodes) - P).T, trips / net.demand.numpy().sum())
        flow += visits[tail] * chosen
    return np.array(values), flow


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("gamma", [0.0, 0.999])
def test_three_links_side_by_side_are_a_logit(gamma: float, tau: float) -> None:
    roads = network([(0, 1, 3.0), (0, 1, 3.5), (0, 1, 4.5)], {(0, 1): 7.0})
    problem = TollDesignProblem(roads, gamma=gamma, tau=tau, revenue_weight=0.25)
    x = torch.tensor([1.0, 0.3, 0.0], dtype=F64)
    cost = torch.tensor([4.0, 3.8, 4.5], dtype=F64)
    share = torch.softmax(-cost / tau, -1)
    found = answer(problem, x)
    torch.testing.assert_close(found.pi[0, 0], share, rtol=0.0, atol=1e-12)
    assert float(found.V[0, 0]) == pytest.approx(float(tau * torch.logsumexp(-cost / tau, -1)), abs=1e-12)
    trip = trip_at(problem, x)
    torch.testing.assert_close(trip.flow, share, rtol=0.0, atol=1e-12)
    assert trip.external_cost == pytest.approx(float(share @ torch.tensor([1.0, 2.0, 3.0], dtype=F64)), abs=1e-12)
    assert trip.toll == pytest.approx(float(share @ x), abs=1e-12)
    assert trip.time == pytest.approx(float(share @ roads.time), abs=1e-12)
    expected = 0.25 * trip.toll - trip.external_cost
    assert float(problem.leader_return(x, found.pi)) == pytest.approx(expected, abs=1e-12)


def test_braess_is_a_logit_among_its_three_paths() -> None:
    links = [(0, 1, 1.0), (0, 2, 5.0), (1, 3, 5.0), (1, 2, 1.0), (2, 3, 1.5)]
    problem = TollDesignProblem(network(links, {(0, 3): 1.0}), gamma=ONWARD, tau=1.0)
    x = torch.tensor([0.2, 0.0, 0.1, 2.5, 0.0], dtype=F64)
    paths = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 1], [1, 0, 0, 1, 1]], dtype=F64)
    share = torch.softmax(-paths @ (problem.network.time + x), -1)
    torch.testing.assert_close(trip_at(problem, x).flow, share @ paths, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("tau", [0.2, 0.5, 1.0])
def test_a_city_is_a_logit_among_all_paths(tau: float) -> None:
    problem = TollDesignProblem(random_city(12, 3), gamma=ONWARD, tau=tau)
    x = random_tolls(problem)
    V, flow = path_sums(problem, x)
    found = answer(problem, x)
    np.testing.assert_allclose(found.V, V, atol=1e-9)
    np.testing.assert_allclose(problem.trip(x, found.pi).flow, flow, atol=1e-9)
    assert residual(problem.follower_mdp(x), found.V, tau) < 1e-10


def test_without_tolls_and_entropy_it_is_the_shortest_path() -> None:
    problem = TollDesignProblem(random_city(25, 0), gamma=ONWARD, tau=0.0)
    net = problem.network
    graph = csr_matrix((net.time.numpy(), tuple(net.links.numpy().T)), shape=(25, 25))
    shortest = dijkstra(graph)
    np.testing.assert_allclose(-answer(problem, problem.start_x()).V.numpy().T, shortest, atol=1e-9)
    mean = float((net.demand.numpy() * shortest).sum() / net.demand.sum())
    assert trip_at(problem, problem.start_x()).time == pytest.approx(mean, abs=1e-9)
    soft = TollDesignProblem(net, gamma=ONWARD, tau=0.5)
    assert trip_at(soft, soft.start_x()).time > mean


@pytest.mark.parametrize("tau", [0.3, 0.6])
@pytest.mark.parametrize("revenue_weight", [0.0, 0.3, -0.2])
def test_the_hypergradient_is_the_gradient(revenue_weight: float, tau: float) -> None:
    """Masks, terminal states and contexts at once; zones 0 and 1 carry no through traffic."""
    city = random_city(9, 1)
    demand = torch.zeros(4, 4, dtype=F64)
    demand[0, 1], demand[1, 2], demand[3, 2], demand[2, 0] = 1.0, 2.0, 3.0, 1.5
    roads = RoadNetwork(city.links, city.time, city.external_cost, demand, city.coordinates, first_through=2)
    problem = TollDesignProblem(roads, tau=tau, revenue_weight=revenue_weight)
    assert problem.follower_mdp(problem.start_x()).mask is not None
    x = random_tolls(problem)
    numerical = numerical_gradient(lambda z: problem.leader_return(z, answer(problem, z).pi), x, h=1e-2 * tau)
    assert_gradient(autograd(lambda z: soft_leader_return(problem, z, tau)[0], x), numerical)


def test_the_leader_s_return_is_a_trip_s_without_discount() -> None:
    problem = TollDesignProblem(random_city(10, 2), gamma=ONWARD, revenue_weight=0.4)
    x = random_tolls(problem)
    trip, pi = trip_at(problem, x), answer(problem, x).pi
    assert float(problem.leader_return(x, pi)) == pytest.approx(0.4 * trip.toll - trip.external_cost, abs=1e-9)
    assert trip.toll == pytest.approx(float(trip.flow @ x), abs=1e-12)
    discounted = TollDesignProblem(problem.network, gamma=0.9, revenue_weight=0.4)
    assert float(discounted.leader_return(x, pi)) > 0.4 * trip.toll - trip.external_cost + 0.05


def test_nobody_drives_through_a_zone_that_carries_no_through_traffic() -> None:
    links = [(2, 0, 1.0), (0, 3, 1.0), (2, 1, 3.0), (1, 3, 3.0), (2, 4, 5.0), (4, 3, 5.0)]
    demand = {(2, 3): 1.0, (2, 0): 1.0, (0, 3): 1.0}
    flows = {}
    for first in (0, 1, 2):
        problem = TollDesignProblem(network(links, demand, first_through=first), gamma=ONWARD, tau=0.1)
        flows[first] = trip_at(problem, problem.start_x()).flow
    third = 1.0 / 3.0
    torch.testing.assert_close(flows[0], torch.tensor([2, 2, 0, 0, 0, 0], dtype=F64) * third, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(flows[1], torch.tensor([1, 1, 1, 1, 0, 0], dtype=F64) * third, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(flows[2], torch.tensor([1, 1, 0, 0, 1, 1], dtype=F64) * third, rtol=0.0, atol=1e-9)


def test_links_into_dead_ends_are_missing_actions() -> None:
    """Node 2 has no way out; node 1, a destination, has none either. Who tries to go there stays."""
    problem = TollDesignProblem(network([(0, 2, 0.1), (0, 1, 5.0)], {(0, 1): 1.0}))
    mdp = problem.follower_mdp(problem.start_x())
    assert mdp.mask is not None
    assert mdp.mask[0].tolist() == [[False, True], [True, False], [True, False]]
    assert mdp.P[0].argmax(-1).tolist() == [[0, 1], [1, 1], [2, 2]]
    assert mdp.r[0, 0, 0] == -10.0
    assert trip_at(problem, problem.start_x()).flow.tolist() == [0.0, 1.0]


def test_waiting_is_worse_than_going_on() -> None:
    """Whatever gamma, at the dearest tolls too: what the simulator answers a missing action with is never the best."""
    for gamma in (0.0, 0.5, 0.999):
        problem = TollDesignProblem(random_city(10, 0), gamma=gamma, tau=0.0)
        for x in (problem.start_x(), torch.full_like(problem.start_x(), problem.max_toll)):
            mdp = problem.follower_mdp(x)
            V = answer(problem, x).V
            waits = ~mdp.mask & ~mdp.terminal.unsqueeze(-1)  # type: ignore[union-attr,operator]
            assert bool(waits.any())
            staying = mdp.r + gamma * V.unsqueeze(-1)
            assert bool((staying < V.unsqueeze(-1))[waits].all())


def test_the_kernel_averages_to_the_model() -> None:
    problem = TollDesignProblem(random_city(10, 0), revenue_weight=0.5)
    assert np.mean(TIME_FACTORS) == pytest.approx(1.0, abs=1e-15)
    x = random_tolls(problem)
    kernel, mdp = problem.kernel(x), problem.follower_mdp(x)
    torch.testing.assert_close((kernel.draw * kernel.r_follower).sum(-1), mdp.r, rtol=0.0, atol=1e-12)
    torch.testing.assert_close((kernel.draw * kernel.r_leader).sum(-1), problem.leader_reward(x), rtol=0.0, atol=1e-12)
    torch.testing.assert_close((kernel.draw.unsqueeze(-1) * kernel.P).sum(-2), mdp.P, rtol=0.0, atol=1e-12)
    rows = torch.stack([x, problem.start_x()])
    for one, both in ((kernel, 0), (problem.kernel(problem.start_x()), 1)):
        many = problem.kernel(rows)
        assert torch.equal(many.r_follower[both], one.r_follower)
        assert torch.equal(many.r_leader[both], one.r_leader)


def test_driving_in_circles_must_not_pay() -> None:
    """Three links of a minute each way between 0 and 1: the spectral radius is 3 exp(-1/tau), 1 at tau = 1 / log 3."""
    links = [(0, 1, 1.0), (1, 0, 1.0)] * 3 + [(1, 2, 1.0)]
    roads, critical = network(links, {(0, 2): 1.0}), 1.0 / np.log(3.0)
    TollDesignProblem(roads, tau=0.999 * critical)
    with pytest.raises(ValueError, match=r"^tau: expected .* does not pay, .* \(the spectral radius .* is 1\.00"):
        TollDesignProblem(roads, tau=1.001 * critical)
    with pytest.raises(ValueError, match=r"^tau: expected .* does not pay"):
        TollDesignProblem(network([(0, 1, 0.0), (1, 0, 0.0), (1, 2, 1.0)], {(0, 2): 1.0}), tau=0.1)


def test_a_network_too_large_is_refused_with_its_size() -> None:
    n, zones = 2000, 10
    links = torch.tensor([(i, (i + step) % n) for i in range(n) for step in (1, 2, 3)])
    demand = torch.ones(zones, zones, dtype=F64).fill_diagonal_(0.0)
    ones = torch.ones(3 * n, dtype=F64)
    roads = RoadNetwork(links, ones, ones, demand, torch.zeros(n, 2, dtype=F64))
    with pytest.raises(
        ValueError, match=rf"^network: expected at most {MAX_ENTRIES} .* got 10 x 2000 x 3 x 2000 = 120000000"
    ):
        TollDesignProblem(roads)


def test_an_origin_without_a_way_is_named() -> None:
    roads = network([(0, 1, 1.0), (1, 0, 1.0), (2, 0, 1.0)], {(0, 1): 1.0, (1, 2): 1.0})
    with pytest.raises(ValueError, match=r"^network: expected a way for every trip, got none from node 1 to node 2"):
        TollDesignProblem(roads)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gamma", 1.0), ("tau", -0.1), ("max_toll", 0.0), ("max_toll", float("inf")), ("revenue_weight", 1.5)],
)
def test_wrong_arguments_are_named(name: str, value: float) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        TollDesignProblem(random_city(8, 0), **arguments)
