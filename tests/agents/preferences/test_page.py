"""The page's server: what it tells, what it writes, what it refuses."""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bilevel_gym.agents.preferences.files import FileLabeller, PreferenceLog, read_preferences
from bilevel_gym.agents.preferences.page import LONGEST_ANSWER, PageServer, main

from .questions import SIGNATURE, H, asked, pair, served

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    asked(tmp_path / "asked.prefs", 3)
    return tmp_path / "asked.prefs"


@pytest.fixture
def server(path: Path) -> Iterator[PageServer]:
    with served(path) as running:
        yield running


def get(server: PageServer, address: str) -> Any:
    with urllib.request.urlopen(server.url + address, timeout=5) as response:
        return json.load(response)


def post(server: PageServer, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + "answer", data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def give(server: PageServer, label: str, before: str = "") -> Any:
    """Answer what the page shows."""
    shown = get(server, "query" + before)["query"]
    status, state = post(server, {"id": shown["id"], "check": shown["check"], "label": label})
    assert status == 200
    return state


def refusal(server: PageServer, address: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, address)
    return caught.value.code, json.load(caught.value)["error"]


def labels(path: Path) -> dict[int, str]:
    return dict(read_preferences(path).labels)


# --- asking and answering ---------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(server: PageServer) -> None:
    with urllib.request.urlopen(server.url, timeout=5) as response:
        text = response.read().decode()
        policy = response.headers["Content-Security-Policy"]
    assert text.startswith("<!doctype html>")
    assert re.findall(r"(?:https?:)?//[a-z]|@import|\burl\(", text) == []
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert server.server_address[0] == "127.0.0.1"


def test_the_oldest_open_query_is_shown_with_its_pictures(server: PageServer) -> None:
    told = get(server, "query")
    shown = told["query"]
    assert (told["env"], told["file"], told["answered"], told["open"]) == ("Disc-v0", "asked.prefs", 0, 3)
    assert told["next"] == {"id": 0, "check": shown["check"]}
    assert (shown["id"], shown["label"], shown["kind"], shown["length"]) == (0, None, "pictures", H)
    assert shown["right"]["steps"] == 5
    for side, segment in (("left", pair(0).left), ("right", pair(0).right)):
        address = f"{server.url}pictures?id=0&check={shown['check']}&side={side}"
        with urllib.request.urlopen(address, timeout=5) as response:
            images = np.frombuffer(response.read(), np.uint8).reshape(shown[side]["shape"])
        assert segment.pictures is not None
        np.testing.assert_array_equal(images, segment.pictures[: shown[side]["steps"]])


def test_answers_are_in_the_file_at_once_and_reach_the_trainer(server: PageServer, path: Path) -> None:
    trainer = FileLabeller(path, SIGNATURE)
    for number, label in enumerate(("left", "equal", "skip")):
        state = give(server, label)
        assert (state["answered"], state["open"]) == (number + 1, 2 - number)
        assert labels(path)[number] == label
        assert [(a.id, a.label) for a in trainer.answers()] == [(number, label)]
    assert get(server, "query")["query"] is None
    assert get(server, "state")["next"] is None


def test_queries_that_a_trainer_appends_meanwhile_are_found(server: PageServer, path: Path) -> None:
    for _ in range(3):
        give(server, "right")
    trainer = PreferenceLog(path)
    trainer.ask(7, pair(7))
    assert get(server, "state")["next"]["id"] == 7
    trainer.answer(7, "left")  # and answers of others
    assert get(server, "state")["next"] is None
    assert get(server, "query?before=last")["query"]["label"] == "left"


def test_going_back_follows_the_order_of_answering(server: PageServer, path: Path) -> None:
    PreferenceLog(path).answer(2, "left")  # the last one is answered first
    assert give(server, "equal")["answered"] == 2
    assert get(server, "query?before=1")["query"]["id"] == 0  # 1 is open: the last answered
    assert get(server, "query?before=0")["query"]["id"] == 2
    assert refusal(server, "query?before=2") == (404, "Nothing was answered before this.")
    give(server, "right", "?before=last")
    assert labels(path) == {2: "left", 0: "right"}
    assert get(server, "query")["query"]["id"] == 1


def test_a_restart_goes_on_where_it_was(path: Path) -> None:
    with served(path) as server:
        give(server, "left")
        port = server.server_port
    with served(path, port) as server:  # at the same address
        assert get(server, "query")["query"]["id"] == 1
        assert get(server, "state")["answered"] == 1


# --- what is refused --------------------------------------------------------------------------------------------------


def test_malformed_answers_are_refused_and_write_nothing(server: PageServer, path: Path) -> None:
    before = path.read_bytes()
    check = get(server, "query")["query"]["check"]
    right = {"id": 0, "check": check, "label": "left"}
    for body, status, text in (
        (b"{", 400, "got no JSON"),
        (b"\xff", 400, "got no JSON"),
        ([], 400, r"got \[\]"),
        ({"check": check, "label": "left"}, 400, 'expected {"id": number'),
        (right | {"id": "0"}, 400, 'expected {"id": number'),
        (right | {"id": True}, 400, 'expected {"id": number'),
        (right | {"check": None}, 400, 'expected {"id": number'),
        (right | {"label": "both"}, 400, "label: expected one of left, right, equal, skip, got 'both'"),
        (right | {"label": None}, 400, "label: expected one of"),
        (right | {"label": ["left"]}, 400, "label: expected one of"),
        (right | {"id": 9}, 404, "There is no question 9 in the file"),
        (right | {"check": "00000000"}, 409, "Question 0 has changed"),
        (right | {"x": "x" * (LONGEST_ANSWER - 50)}, 413, "expected an answer of at most"),
    ):
        got, told = post(server, body)
        assert got == status, body
        assert re.search(text, told["error"])
    assert path.read_bytes() == before
    assert post(server, right)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),  # what a form or a page elsewhere may send unasked
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Host": "evil.example"}, 403),  # a name that was made to point here
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_a_page_elsewhere_cannot_answer(path: Path, server: PageServer, headers: dict[str, str], status: int) -> None:
    check = get(server, "query")["query"]["check"]
    headers = {name: text.format(port=server.server_port) for name, text in headers.items()}
    assert post(server, {"id": 0, "check": check, "label": "left"}, **headers)[0] == status
    assert labels(path) == ({0: "left"} if status == 200 else {})


def test_a_page_elsewhere_cannot_read(server: PageServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.request("GET", "/query", headers={"Host": "evil.example"})
    response = connection.getresponse()
    assert (response.status, b"query" in response.read()) == (403, False)
    connection.close()
    connection.request("OPTIONS", "/answer", headers={"Origin": "http://evil.example"})  # "may I?": no
    response = connection.getresponse()
    assert response.status == 501
    assert response.getheader("Access-Control-Allow-Origin") is None
    connection.close()


def test_an_answer_without_its_length_is_refused(server: PageServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.putrequest("POST", "/answer")
    connection.putheader("Content-Type", "application/json")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


def test_addresses_that_are_none(server: PageServer) -> None:
    check = get(server, "query")["query"]["check"]
    for address, status in (
        ("nothing", 404),
        ("query?before=x", 400),
        ("pictures", 400),
        (f"pictures?id=99&check={check}&side=left", 404),
        ("pictures?id=0&check=0&side=left", 409),
        (f"pictures?id=0&check={check}&side=top", 404),
    ):
        assert refusal(server, address)[0] == status, address


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_torn_end_is_moved_away_before_an_answer_is_written(server: PageServer, path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"Q\xff" + bytes(50))  # a trainer died while it was writing
    torn = path.stat().st_size
    give(server, "left")
    assert labels(path) == {0: "left"}  # behind the torn bytes, it could not be read
    assert path.stat().st_size < torn
    assert path.with_name("asked.prefs.cut").read_bytes() == b"Q\xff" + bytes(50)


def test_a_file_that_is_gone_is_said_and_not_begun_anew(server: PageServer, path: Path) -> None:
    check = get(server, "query")["query"]["check"]
    kept = path.read_bytes()
    path.unlink()
    status, told = post(server, {"id": 0, "check": check, "label": "left"})
    assert (status, "The file cannot be read" in told["error"]) == (503, True)
    assert not path.exists()
    path.write_bytes(kept)
    assert post(server, {"id": 0, "check": check, "label": "left"})[0] == 200


@pytest.mark.parametrize("in_place", [False, True])
def test_answers_do_not_go_to_a_file_that_replaced_this_one(server: PageServer, path: Path, in_place: bool) -> None:
    shown = get(server, "query")["query"]
    other = path.with_name("other")
    log = PreferenceLog(other, SIGNATURE)
    for number in range(6):
        log.ask(number, pair(number + 10))  # other questions under the same numbers
    if in_place:
        path.write_bytes(other.read_bytes())
    else:
        other.replace(path)
    new = path.read_bytes()
    status, told = post(server, {"id": 0, "check": shown["check"], "label": "left"})
    assert (status, "was replaced" in told["error"]) == (409, True)
    assert path.read_bytes() == new
    give(server, "right")
    assert labels(path) == {0: "right"}


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong(
    path: Path, server: PageServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("something else", encoding="utf-8")
    for arguments, text in (
        ([str(tmp_path / "none")], "expected a preference file, got .*none, which does not exist"),
        ([str(tmp_path / "text")], "expected a preference file, got .*text, which is not one"),
        ([str(path), "--port", str(server.server_port)], f"port {server.server_port} is taken"),
    ):
        assert main([*arguments, "--no-browser"]) == 2
        said = capsys.readouterr()
        assert re.search(text, said.err)
        assert said.out == ""
    with pytest.raises(SystemExit):
        main([str(path), "--port", "70000"])
    assert "expected a number from 0 to 65535, got 70000" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(path: Path) -> None:
    command = [sys.executable, "-m", "bilevel_gym.agents.preferences.page", str(path), "--port", "0", "--no-browser"]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=dict(os.environ), preexec_fn=heed, **piped)
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        found = re.fullmatch(r"Disc-v0: 3 questions open, 0 answered\. Label at (http://127\.0\.0\.1:\d+/)\n", first)
        assert found is not None, first
        with urllib.request.urlopen(found[1] + "state", timeout=30) as response:
            assert json.load(response)["open"] == 3
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


# --- the example ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_example_asks_and_then_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame")
    path, example = tmp_path / "cart_pole.prefs", EXAMPLES / "label_cart_pole.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(path)])
    runpy.run_path(str(example), run_name="__main__")
    assert f"python -m bilevel_gym.agents.preferences.page {path}" in capsys.readouterr().out
    with served(path) as server:
        told = get(server, "query")
        assert (told["env"], told["open"], told["query"]["kind"]) == ("CartPole-v1", 20, "pictures")
        for label in ("left", "skip", "equal", "right"):
            give(server, label)
    runpy.run_path(str(example), run_name="__main__")
    out = capsys.readouterr().out
    assert "4 answers, 1 of them skipped; 16 questions are open." in out
    assert "A reward fitted to them: cross entropy" in out
