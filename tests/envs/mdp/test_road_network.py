"""Road networks: the city, and files in the TNTP format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from bilevel_gym.envs.mdp import RoadNetwork, random_city, read_tntp

BRAESS_NET = """<NUMBER OF ZONES> 2 \t
<NUMBER OF NODES> 4
<FIRST THRU NODE> 3
<NUMBER OF LINKS> 5
<ORIGINAL HEADER>~ Init node Term node Capacity Length Free Flow Time ;
<END OF METADATA>

~ \tinit_node\tterm_node\tcapacity\tlength\tfree_flow_time\tb\tpower\tspeed\ttoll\tlink_type\t;
\t1\t3\t1\t10\t1.5\t0.15\t4\t0\t0\t1\t;
\t1\t4\t1\t11\t5e1\t0.15\t4\t0\t0\t1\t;
\t3\t2\t1\t12\t50\t0.15\t4\t0\t0\t1;
\t3\t4\t1\t13\t10\t0.15\t4\t0\t0\t1 ;
~ a comment
\t4\t2\t1\t14\t1\t0.15\t4\t0\t0\t1\t;
"""
BRAESS_TRIPS = """<NUMBER OF ZONES> 2
<TOTAL OD FLOW> 9.0
<END OF METADATA>


Origin \t1
    1 :      4.0;     2 :      5.5;
Origin  2
    1 :      0.0;
    1 :      3.5;
"""
BRAESS_NODES = "Node\tX\tY\t;\n1\t0\t0.5\t;\n2\t2\t0.5\t;\n4\t1\t-1e0\t;\n3\t1\t1\t;\n"


def write(folder: Path, net: str = BRAESS_NET, trips: str | None = None, nodes: str | None = None) -> Path:
    for kind, text in (("net", net), ("trips", trips), ("node", nodes)):
        if text is not None:
            (folder / f"Braess_{kind}.tntp").write_text(text, encoding="latin-1")
    return folder / "Braess_net.tntp"


def test_a_tntp_network_is_read_whole(tmp_path: Path) -> None:
    network = read_tntp(write(tmp_path, trips=BRAESS_TRIPS, nodes=BRAESS_NODES))
    assert network.links.tolist() == [[0, 2], [0, 3], [2, 1], [2, 3], [3, 1]]
    assert network.time.tolist() == [1.5, 50.0, 50.0, 10.0, 1.0]
    assert network.external_cost.tolist() == [10.0, 11.0, 12.0, 13.0, 14.0]
    assert network.demand.tolist() == [[0.0, 5.5], [3.5, 0.0]]
    assert network.coordinates.tolist() == [[0.0, 0.5], [2.0, 0.5], [1.0, 1.0], [1.0, -1.0]]
    assert network.first_through == 2


def test_a_tntp_network_alone(tmp_path: Path) -> None:
    """One trip between every two zones, nodes on a circle; the unit of time and the external cost are the caller's."""
    network = read_tntp(write(tmp_path), minutes=0.6, trips="uniform", external_cost=[5.0, 4.0, 3.0, 2.0, 1.0])
    assert network.demand.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    torch.testing.assert_close(network.time, 0.6 * torch.tensor([1.5, 50.0, 50.0, 10.0, 1.0], dtype=torch.float64))
    assert network.external_cost.tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    np.testing.assert_allclose(network.coordinates.norm(dim=-1), 1.0)


def test_files_elsewhere_and_links_without_length(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(BRAESS_TRIPS, encoding="ascii")
    (tmp_path / "a.txt").write_text(
        BRAESS_NET.replace("\t10\t1.5", "\t0\t1.5")
        .replace("\t11\t", "\t0\t").replace("\t12\t", "\t0\t").replace("\t13\t", "\t0\t").replace("\t14\t", "\t0\t"),
        encoding="ascii",
    )  # fmt: skip
    network = read_tntp(tmp_path / "a.txt", tmp_path / "b.txt")
    assert network.demand[0, 1] == 5.5
    assert torch.equal(network.external_cost, network.time)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_files_of_other_editors(tmp_path: Path, encoding: str) -> None:
    """A byte order mark, lines ended by two characters, a comment in another alphabet."""
    text = BRAESS_NET.replace("~ a comment", "~ \u00e0 la carte").replace("\n", "\r\n")
    (tmp_path / "Braess_net.tntp").write_bytes(text.encode(encoding))
    assert read_tntp(tmp_path / "Braess_net.tntp", trips="uniform").time.tolist() == [1.5, 50.0, 50.0, 10.0, 1.0]


def test_missing_files_are_named(tmp_path: Path) -> None:
    net = write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^net: no such file: .*nowhere"):
        read_tntp(tmp_path / "nowhere_net.tntp")
    with pytest.raises(FileNotFoundError, match=r"^trips: no such file"):
        read_tntp(net, trips=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"^nodes: no such file"):
        read_tntp(net, trips="uniform", nodes=tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("<END OF METADATA>", "", r"line 9: expected a line <KEY> value or <END OF METADATA>, got '1\\t3"),
        (BRAESS_NET[BRAESS_NET.index("<END") :], "", r"expected a line <END OF METADATA>, got none"),
        ("<NUMBER OF NODES> 4", "", r"expected a line <NUMBER OF NODES> with a number, got none"),
        ("NODES> 4", "NODES> four", r"line 2: expected <NUMBER OF NODES> with a whole number >= 1, got 'four'"),
        ("NODES> 4", "NODES> 0", r"line 2: expected <NUMBER OF NODES> with a whole number >= 1, got '0'"),
        ("ZONES> 2", "ZONES> 9", r"expected at most 4 zones, .*, got 9"),
        ("NODE> 3", "NODE> 7", r"expected a first through node of at most 5, got 7"),
        ("LINKS> 5", "LINKS> 6", r"expected 6 links, as <NUMBER OF LINKS> says, got 5"),
        ("\t1\t4\t1\t11", "\t1\t5\t1\t11", r"line 10: expected terminal node, a whole number in 1 to 4, got '5'"),
        ("\t1\t4\t1\t11", "\t0\t4\t1\t11", r"line 10: expected initial node, a whole number in 1 to 4, got '0'"),
        ("\t5e1\t0.15\t4\t0\t0\t1\t;", ";", r"line 10: expected initial node, .* free-flow time, got '1 4 1 11'"),
        ("5e1", "fast", r"line 10: free-flow time: expected a number in \[0, inf\), got 'fast'"),
        ("5e1", "-1", r"line 10: free-flow time: expected a number in \[0, inf\), got '-1'"),
        ("5e1", "nan", r"line 10: free-flow time: expected a number in \[0, inf\), got 'nan'"),
        ("\t1\t4\t1\t11", "\t4\t4\t1\t11", r"^links\[1\]: expected two different nodes in 0 to 3, got \(3, 3\)"),
    ],
)
def test_a_malformed_network_is_named(tmp_path: Path, old: str, new: str, error: str) -> None:
    assert old in BRAESS_NET
    with pytest.raises(ValueError, match=error):
        read_tntp(write(tmp_path, BRAESS_NET.replace(old, new, 1)), trips="uniform")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("ZONES> 2", "ZONES> 3", r"Braess_trips.tntp: expected 2 zones, as the network has, got 3"),
        ("Origin \t1", "", r"line 7: expected 'Origin o', then entries 'd : trips;', got '1 :      4.0'"),
        ("Origin  2", "Origin  3", r"line 8: expected an origin, a whole number in 1 to 2, got '3'"),
        ("2 :      5.5", "8 :      5.5", r"line 7: expected a destination, a whole number in 1 to 2, got '8'"),
        ("2 :      5.5", "2 :      many", r"line 7: trips: expected a number in \[0, inf\), got 'many'"),
        ("2 :      5.5", "2       5.5", r"line 7: expected 'Origin o', then entries 'd : trips;', got '2       5.5'"),
        (BRAESS_TRIPS[BRAESS_TRIPS.index("Origin") :], "", r"expected trips between zones, got none"),
    ],
)
def test_a_malformed_trip_table_is_named(tmp_path: Path, old: str, new: str, error: str) -> None:
    assert old in BRAESS_TRIPS
    with pytest.raises(ValueError, match=error):
        read_tntp(write(tmp_path, trips=BRAESS_TRIPS.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("4\t1\t-1e0\t;\n", "", r"Braess_node.tntp: expected the places of all 4 nodes, got none of node \[4\]"),
        ("4\t1", "5\t1", r"line 4: expected a node, a whole number in 1 to 4, got '5'"),
        ("-1e0", "north", r"line 4: a coordinate: expected a number in \(-inf, inf\), got 'north'"),
        ("\t-1e0", "", r"line 4: expected a node and its two coordinates, got '4 1'"),
    ],
)
def test_a_malformed_node_file_is_named(tmp_path: Path, old: str, new: str, error: str) -> None:
    assert old in BRAESS_NODES
    with pytest.raises(ValueError, match=error):
        read_tntp(write(tmp_path, nodes=BRAESS_NODES.replace(old, new, 1)), trips="uniform")


@pytest.mark.parametrize("seed", range(10))
def test_a_city_is_connected_and_alike_both_ways(seed: int) -> None:
    city = random_city(25, seed)
    assert city.n_nodes == 25
    assert city.n_links >= 60
    matrix = torch.zeros(25, 25).index_put(tuple(city.links.T), torch.ones(city.n_links)).numpy()
    assert connected_components(matrix, connection="strong")[0] == 1
    there, back = city.links.chunk(2)
    assert torch.equal(there, back.flip(1))
    for values in (city.time, city.external_cost):
        assert torch.equal(*values.chunk(2))
    km = (city.coordinates[city.links[:, 0]] - city.coordinates[city.links[:, 1]]).norm(dim=-1)
    assert bool(((km / (city.time / 60) >= 30) & (km / (city.time / 60) <= 50 + 1e-9)).all())
    assert torch.equal(random_city(25, seed).time, city.time)
    assert not torch.equal(random_city(25, seed + 1).coordinates, city.coordinates)


GOOD: dict[str, Any] = {
    "links": [[0, 1], [1, 0]],
    "time": [1.0, 2.0],
    "external_cost": [0.0, 1.0],
    "demand": [[0.0, 1.0], [0.0, 0.0]],
    "coordinates": [[0.0, 0.0], [1.0, 0.0]],
}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("links", [[0.0, 1.0], [1.0, 0.0]], "links: expected whole numbers"),
        ("links", [0, 1], "links: expected whole numbers"),
        ("links", [[0, 1], [1, 2]], r"links\[1\]: expected two different nodes"),
        ("links", [[0, 1], [1, 1]], r"links\[1\]: expected two different nodes"),
        ("time", [1.0], "time: expected shape"),
        ("time", [1.0, -1.0], "time: expected numbers >= 0, got -1"),
        ("time", [1.0, float("inf")], "time: expected finite"),
        ("external_cost", [-0.5, 1.0], "external_cost: expected numbers >= 0"),
        ("demand", [[0.0, 0.0], [0.0, 0.0]], "demand: expected at least one trip"),
        ("demand", [[1.0, 1.0], [0.0, 0.0]], "demand: expected no trips from a node to itself"),
        ("demand", [[0.0, -1.0], [0.0, 0.0]], "demand: expected numbers >= 0"),
        ("demand", np.eye(3)[::-1].copy(), "demand: expected zones among the 2 nodes"),
        ("coordinates", [[0.0], [1.0]], "coordinates: expected shape"),
        ("first_through", 3, "first_through: expected a whole number in 0 to 2"),
    ],
)
def test_a_network_that_does_not_fit_is_named(name: str, value: object, error: str) -> None:
    RoadNetwork(**GOOD)
    with pytest.raises(ValueError, match=f"^{error}"):
        RoadNetwork(**GOOD | {name: value})


@pytest.mark.parametrize(("name", "value"), [("n_nodes", 7), ("n_nodes", 9.5), ("seed", -1), ("seed", 0.5)])
def test_wrong_arguments_of_a_city_are_named(name: str, value: object) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        random_city(**arguments)
