"""Which trip table and which places belong to a network's file, by their names."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import bilevel_gym  # noqa: F401  (registers the environments)
from bilevel_gym.envs.mdp import TollDesignProblem, random_city, read_tntp
from tests.envs.mdp.test_road_network import BRAESS_NET, BRAESS_NODES, BRAESS_TRIPS

OTHER_TRIPS = BRAESS_TRIPS.replace("5.5", "77.0")


def files(folder: Path, *names: str) -> Path:
    """Files by their names: of the first the network, then trip tables, and of those with node in it the places."""
    for i, name in enumerate(names):
        text = BRAESS_NET if i == 0 else BRAESS_NODES if "ode" in name or "oord" in name else BRAESS_TRIPS
        (folder / name).write_text(text, encoding="ascii")
    return folder / names[0]


@pytest.mark.parametrize(
    "names",
    [
        ("City_Net.tntp", "City_Trips.tntp", "City_Node.tntp"),
        ("X_net.tntp", "X_trips_am.tntp", "X_nodes.tntp"),
        ("Goldcoast_network_2016_01.tntp", "Goldcoast_trips_2016_01.tntp", "Goldcoast_nodes_2016_01.tntp"),
        ("Hessen_net.tntp", "Hessen_od.tntp", "Hessen_node.tntp"),
        ("Town.tntp", "Town_trips.tntp", "Town_node.tntp"),
        ("net.tntp", "trips.tntp", "nodes.tntp"),
        ("berlin-mitte-center_net.tntp", "berlin-mitte-center_trips.tntp", "berlin-mitte-center_node.tntp"),
        ("BraessNet.TNTP", "BraessTrips.tntp", "BraessNode.tntp"),
        ("Austin_links.tntp", "Austin_demand.tntp", "Austin_coordinates.tntp"),
        ("Z\u00fcrich 2020 Network.tntp", "Z\u00fcrich 2020 Trips.tntp", "Z\u00fcrich 2020 Nodes.tntp"),
    ],
)
def test_files_beside_a_network_are_found(tmp_path: Path, names: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = read_tntp(files(tmp_path, *names))
    assert network.demand.tolist() == [[0.0, 5.5], [3.5, 0.0]]
    assert network.coordinates.tolist() == [[0.0, 0.5], [2.0, 0.5], [1.0, 1.0], [1.0, -1.0]]


def test_the_day_of_the_network_is_taken(tmp_path: Path) -> None:
    net = files(tmp_path, "G_network_2016_01.tntp", "G_trips_2016_01.tntp")
    (tmp_path / "G_trips_2016_02.tntp").write_text(OTHER_TRIPS, encoding="ascii")
    assert read_tntp(net).demand[0, 1] == 5.5


@pytest.mark.parametrize(
    "names",
    [
        ("G_network_2016_01.tntp", "G_trips_2016_02.tntp"),
        ("X_net.tntp", "X_trips_am.tntp", "X_trips_pm.tntp"),
        ("X_net_monday.tntp", "X_trips_tuesday.tntp"),
        ("City_Net.tntp", "City_Center_Trips.tntp", "City_Center_Net.tntp"),
        ("Town.tntp", "Town_trips.tntp", "Town_od.tntp"),
        ("Hessen-Asymmetric_net.tntp", "Hessen_od.tntp"),
    ],
)
def test_a_trip_table_that_may_be_another_networks_is_asked_for(tmp_path: Path, names: tuple[str, ...]) -> None:
    net = files(tmp_path, *names)
    with pytest.raises(
        ValueError, match=rf"^trips: expected the path of the trip table of {names[0]}, got None.*{names[1]}"
    ):
        read_tntp(net)
    assert read_tntp(net, trips=tmp_path / names[1]).demand[0, 1] == 5.5
    assert read_tntp(net, trips="uniform").demand.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_a_network_without_its_demand_is_said(tmp_path: Path) -> None:
    net = files(tmp_path, "City_net.tntp", "Village_trips.tntp")
    with pytest.warns(UserWarning, match=r"^trips: no trip table was found beside City_net.tntp"):
        network = read_tntp(net)
    assert network.demand.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_places_that_may_be_another_networks_are_said(tmp_path: Path) -> None:
    net = files(tmp_path, "X_net.tntp", "X_trips.tntp", "X_nodes_old.tntp", "X_nodes_new.tntp")
    with pytest.warns(
        UserWarning, match=r"^nodes: none of 'X_nodes_new.tntp', 'X_nodes_old.tntp' belongs to X_net.tntp"
    ):
        read_tntp(net)


@pytest.mark.skipif("BILEVEL_GYM_TNTP" not in os.environ, reason="needs the published networks")
def test_published_networks_bring_their_demand() -> None:
    for net in sorted(Path(os.environ["BILEVEL_GYM_TNTP"]).glob("*/*_net.tntp")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            demand = read_tntp(net).demand
        assert len(demand.unique()) > 2 or "Braess" in net.name


# --- the unit of a file's times -----------------------------------------------------------------------------------------


def square(folder: Path, time: float) -> Path:
    """Four zones, every two of them joined both ways by a link of so long."""
    pairs = [(a, b) for a in range(1, 5) for b in range(1, 5) if a != b]
    head = "<NUMBER OF ZONES> 4\n<NUMBER OF NODES> 4\n<FIRST THRU NODE> 1\n<NUMBER OF LINKS> 12\n<END OF METADATA>\n"
    (folder / "net.tntp").write_text(head + "\n".join(f"{a} {b} 1 1 {time} ;" for a, b in pairs), encoding="ascii")
    (folder / "day.tntp").write_text("<NUMBER OF ZONES> 4\n<END OF METADATA>\nOrigin 1\n 2 : 7.0 ;", encoding="ascii")
    return folder / "net.tntp"


def test_the_unit_of_times_is_an_argument_of_the_environment(tmp_path: Path) -> None:
    net = square(tmp_path, 0.2)
    env = gym.make("bilevel_gym/TollDesign-v0", network=str(net), minutes=60.0, trips=str(tmp_path / "day.tntp"))
    network = env.unwrapped.problem.network  # type: ignore[attr-defined]
    torch.testing.assert_close(network.time, torch.full((12,), 12.0, dtype=torch.float64))
    assert network.demand[0, 1] == network.demand.sum() == 7.0


def test_a_temperature_too_high_for_a_files_unit_says_what_can_be_done(tmp_path: Path) -> None:
    """In a file in hours, at tau = 0.5, the driver goes round and round: the spectral radius is 2 exp(-0.2/0.5)."""
    net = square(tmp_path, 0.2)
    told = r"^tau: expected .* got 0.5 minutes, where the median link takes 0.2 .*is 1\.341 .*minutes=60"
    with pytest.raises(ValueError, match=told) as said:
        TollDesignProblem(net, trips="uniform")
    suggested = float(str(said.value).split("such as tau=")[1].split(",")[0])
    assert suggested == 0.25  # 2 exp(-0.2/0.25) < 1
    TollDesignProblem(net, trips="uniform", tau=suggested)
    TollDesignProblem(net, trips="uniform", minutes=60.0)


@pytest.mark.parametrize(("name", "value"), [("minutes", 60.0), ("trips", "a"), ("nodes", "a"), ("minutes", None)])
def test_arguments_of_a_file_need_one(name: str, value: object) -> None:
    for network in (None, random_city(8)):
        with pytest.raises(ValueError, match=f"^{name}: expected .* where network is no file, got "):
            TollDesignProblem(network, **{name: value})  # type: ignore[arg-type]
