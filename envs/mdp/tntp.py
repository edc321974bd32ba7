"""Road networks from files in the TNTP text format of the Transportation Networks for Research collection.

A network's file (``*_net.tntp``) opens with lines ``<KEY> value`` up to ``<END OF METADATA>``; then comes a link a line, ended by
a semicolon: initial node, terminal node, capacity, length, free-flow time, and more. A ``*_trips.tntp`` file has ``Origin o``
followed by entries ``d : trips;``, a ``*_node.tntp`` file the place of a node a line. Nodes are numbered from 1, zones first;
nodes below ``<FIRST THRU NODE>`` carry no through traffic. Lines that start with ``~`` are comments.

Capacities, existing tolls and what else describes congestion are not read: times are the free-flow times.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .checks import check_number, require
from .road_network import RoadNetwork, on_a_circle

PathName = str | PathLike[str]
UNIFORM = "uniform"
"""In place of a trip table: one trip between every two zones."""
_KINDS = {
    "net": ("net", "network", "link", "links"),
    "trips": ("trip", "trips", "od", "demand"),
    "node": ("node", "nodes", "coord", "coords", "coordinates", "xy"),
}
"""Words in a file's name that say what it holds."""
_END = "<END OF METADATA>"


class _Reader:
    """The lines of one file, with its metadata; its errors name the file and the line."""

    def __init__(self, path: PathName, name: str, metadata: bool = True) -> None:
        require(isinstance(path, (str, PathLike)), name, "a file's path", repr(path))
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{name}: no such file: {str(self.path)!r}")
        text = self.path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        lines = ((i, line.strip()) for i, line in enumerate(text, 1))
        self.lines = [(i, line) for i, line in lines if line and not line.startswith("~")]
        self.metadata: dict[str, tuple[int, str]] = {}
        for k, (i, line) in enumerate(self.lines if metadata else []):
            found = re.match(r"<([^>]*)>\s*(\S*)", line)
            if found is None:
                raise self.error(i, f"a line <KEY> value or {_END}", line)
            if found[0].startswith(_END):
                self.lines = self.lines[k + 1 :]
                return
            self.metadata[found[1].strip().upper()] = (i, found[2])
        if metadata:
            raise ValueError(f"{self.path}: expected a line {_END}, got none")

    def error(self, line: int, expected: str, got: object) -> ValueError:
        """What is wrong with a line."""
        return ValueError(f"{self.path}, line {line}: expected {expected}, got {got!r}")

    def number(self, line: int, text: str, what: str, low: float = 0.0) -> float:
        """A finite number of a line."""
        try:
            return check_number(text, what, low=low, open_low=low == -math.inf, open_high=True, text=True)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {line}: {error}") from error

    def node(self, line: int, text: str, what: str, most: int) -> int:
        """A node of a line, counted from 0."""
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise self.error(line, f"{what}, a whole number in 1 to {most}", text)
        return int(text) - 1

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of the metadata."""
        if key not in self.metadata:
            if default is not None:
                return default
            raise ValueError(f"{self.path}: expected a line <{key}> with a number, got none")
        line, text = self.metadata[key]
        if not text.isdecimal() or int(text) < 1:
            raise self.error(line, f"<{key}> with a whole number >= 1", text)
        return int(text)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The number and the words of each line, up to its semicolon."""
        for i, line in self.lines:
            words = line.split(";")[0].split()
            if words:
                yield i, words


def _kind_and_place(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """What a file holds by the last word in its name that says so, and the other words of the name, in small letters."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", "_", path.stem)
    words = [word.lower() for word in re.split(r"[\W_]+", apart) if word]
    for i in reversed(range(len(words))):
        for kind, names in _KINDS.items():
            if words[i] in names:
                return kind, (*words[:i], *words[i + 1 :])
    return None, tuple(words)


def _beside(net: Path, kind: str) -> tuple[Path | None, list[Path]]:
    """The file of another kind that belongs to a network by its name, if there is one; and those that might.

    It is the one whose name has the same words, else the only one whose name has more words after them
    (``X_trips_am`` for ``X_net``). Those that might belong are the others whose names begin with the same word.
    """
    _, place = _kind_and_place(net)
    others = sorted(path for path in net.parent.iterdir() if path.suffix.lower() == net.suffix.lower() and path != net)
    named = [(path, *_kind_and_place(path)) for path in others if path.is_file()]
    networks = {words for _, found, words in named if found in ("net", None)}
    files = {path: words for path, found, words in named if found == kind}
    same = [path for path, words in files.items() if words == place]
    longer = [path for path, words in files.items() if words[: len(place)] == place and words not in networks]
    chosen = same or longer
    if len(chosen) == 1:
        return chosen[0], []
    return None, [path for path, words in files.items() if words[:1] == place[:1]]


def _read_links(reader: _Reader, n_nodes: int, n_links: int) -> NDArray[np.float64]:
    """Tail, head, length and time of each link, ``[L, 4]``."""
    rows = []
    for i, words in reader.rows():
        if len(words) < 5:
            raise reader.error(i, "initial node, terminal node, capacity, length, free-flow time", " ".join(words))
        ends = [reader.node(i, words[k], f"{what} node", n_nodes) for k, what in enumerate(("initial", "terminal"))]
        rows.append([*ends, reader.number(i, words[3], "length"), reader.number(i, words[4], "free-flow time")])
    require(len(rows) == n_links, str(reader.path), f"{n_links} links, as <NUMBER OF LINKS> says", f"{len(rows)}")
    return np.array(rows)


def _read_trips(path: PathName, n_zones: int) -> NDArray[np.float64]:
    """Trips between zones, ``[Z, Z]``; those within a zone are left out."""
    reader = _Reader(path, "trips")
    zones = reader.count("NUMBER OF ZONES", n_zones)
    require(zones == n_zones, str(reader.path), f"{n_zones} zones, as the network has", zones)
    demand, origin = np.zeros((n_zones, n_zones)), -1
    for i, line in reader.lines:
        start = re.match(r"origin\s+(\S+)\s*(.*)", line, re.IGNORECASE)
        if start is not None:
            origin, line = reader.node(i, start[1], "an origin", n_zones), start[2]
        for entry in filter(None, map(str.strip, line.split(";"))):
            to, colon, trips = (part.strip() for part in entry.partition(":"))
            if not colon or origin < 0:
                raise reader.error(i, "'Origin o', then entries 'd : trips;'", entry)
            demand[origin, reader.node(i, to, "a destination", n_zones)] += reader.number(i, trips, "trips")
    np.fill_diagonal(demand, 0.0)
    require(bool(demand.any()), str(reader.path), "trips between zones", "none")
    return demand


def _read_places(path: PathName, n_nodes: int) -> NDArray[np.float64]:
    """Coordinates of the nodes, ``[N, 2]``."""
    reader = _Reader(path, "nodes", metadata=False)
    places = np.full((n_nodes, 2), np.nan)
    for k, (i, words) in enumerate(reader.rows()):
        if k == 0 and not words[0].isdecimal():
            continue  # names of columns
        if len(words) < 3:
            raise reader.error(i, "a node and its two coordinates", " ".join(words))
        node = reader.node(i, words[0], "a node", n_nodes)
        places[node] = [reader.number(i, word, "a coordinate", low=-math.inf) for word in words[1:3]]
    missing = np.flatnonzero(np.isnan(places).any(1))
    require(
        len(missing) == 0, str(reader.path), f"the places of all {n_nodes} nodes", f"none of node {missing[:1] + 1}"
    )
    return places


def read_tntp(
    net: PathName,
    trips: PathName | None = None,
    nodes: PathName | None = None,
    minutes: float = 1.0,
    external_cost: Any = None,
) -> RoadNetwork:
    """A network from files in the TNTP format.

    Args:
        net: the network, ``*_net.tntp``.
        trips: the trip table; None takes the one beside the network whose name says that it belongs to it (``X_trips``,
            ``X_Trips``, ``X_od`` or ``X_trips_am`` to ``X_net``, ``X_trips_2016_01`` to ``X_network_2016_01``);
            ``"uniform"`` is one trip between every two zones.
        nodes: the places of the nodes; None takes the file beside the network whose name says that it belongs to it
            (``X_node``, ``X_nodes``, ``X_coordinates``), and where there is none, a circle. Only pictures read them.
        minutes: length of the file's unit of time (the format does not say), in minutes.
        external_cost: what one use of each link costs others, ``[L]`` in the file's order; None takes the links' lengths,
            for the format has no such thing, and their times where no link has a length.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not in the format, with the line and what was expected in it; a file cut short; trip
            tables beside the network of which none, or more than one, belongs to it by its name.

    Warns:
        UserWarning: there is no trip table beside the network: one trip between every two zones is taken. Or none, or more
            than one, of the files of nodes belongs to it by its name: the nodes are put on a circle.
    """
    scale = check_number(minutes, "minutes", low=0.0, open_low=True, open_high=True)
    reader = _Reader(net, "net")
    n_nodes, n_zones = reader.count("NUMBER OF NODES"), reader.count("NUMBER OF ZONES")
    first = reader.count("FIRST THRU NODE", 1)
    require(n_nodes <= 10**7, str(reader.path), "at most ten million nodes", n_nodes)
    require(n_zones <= n_nodes, str(reader.path), f"at most {n_nodes} zones, for there are as many nodes", n_zones)
    require(first <= n_nodes + 1, str(reader.path), f"a first through node of at most {n_nodes + 1}", first)
    links = _read_links(reader, n_nodes, reader.count("NUMBER OF LINKS"))
    tails_and_heads, (length, time) = links[:, :2].astype(np.int64), links[:, 2:].T
    if trips is None:
        trips, others = _beside(reader.path, "trips")
        if trips is None:
            name, beside = reader.path.name, ", ".join(repr(path.name) for path in others)
            require(not others, "trips", f"the path of the trip table of {name}", f"None, and beside it {beside}")
            warnings.warn(
                f"trips: no trip table was found beside {name}, so that one trip is taken between every two zones; give the "
                f"path of the table as trips=..., or trips={UNIFORM!r} if that is meant",
                stacklevel=2,
            )
            trips = UNIFORM
    if nodes is None:
        nodes, others = _beside(reader.path, "node")
        if others:
            beside = ", ".join(repr(path.name) for path in others)
            warnings.warn(
                f"nodes: none of {beside} belongs to {reader.path.name} by its name; pass the path of one", stacklevel=2
            )
    demand = 1.0 - np.eye(n_zones) if trips == UNIFORM else _read_trips(trips, n_zones)
    cost = (length if length.any() else time) if external_cost is None else external_cost
    return RoadNetwork(
        torch.from_numpy(tails_and_heads),
        torch.from_numpy(scale * time),
        cost,
        torch.from_numpy(demand),
        torch.from_numpy(on_a_circle(n_nodes) if nodes is None else _read_places(nodes, n_nodes)),
        first - 1,
    )
