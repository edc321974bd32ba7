"""A page on which a person answers the queries of a preference file: two segments side by side as moving pictures.

    python -m bilevel_gym.agents.preferences.page FILE [--port N] [--no-browser]

It opens the file as a trainer does (``files.PreferenceLog``), shows the oldest open query, appends each answer at once and
follows what trainers append meanwhile. The file is all its state: a reload or a restart loses nothing.

    GET   /                                  the page
    GET   /state                             the world, the file, how many queries are answered and open, the oldest open one
    GET   /query[?before=N]                  that and the oldest open query; or the one answered before N (``last``: the last)
    GET   /pictures?id=N&check=C&side=left   its pictures: bytes, [steps, height, width, channels]
    POST  /answer {"id", "check", "label"}   append an answer; ``check`` tells that the query is the one that was shown

What cannot be done is answered as ``{"error": text}``. The server is the standard library's: one person, one file and five
addresses need no framework. It listens on 127.0.0.1 alone, and no page from elsewhere can read from it or answer for the person:
a request has to name this host, which one through a foreign name that leads here does not; answers have to be
``application/json``, which browsers send to another site only if it agrees, and this one never does; and no page may frame it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import threading
import warnings
import webbrowser
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .files import PreferenceLog
from .labels import Pair, check_label
from .views import pictures, view

HOST, PORT, JSON = "127.0.0.1", 8731, "application/json"
LONGEST_ANSWER = 4096
"""Bytes of an answer beyond which it is refused."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class RefusedError(Exception):
    """A request that cannot be answered, and why."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Questions:
    """What the page asks of a preference file and writes to it; for one thread at a time.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no preference file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        self._log = PreferenceLog(self.path)
        self._held: tuple[str, Pair] | None = None

    def _follow(self) -> None:
        """Read what others appended; a file that was replaced by another is opened anew."""
        try:
            if self._log.replaced:
                self._open()
            self._log.refresh()
        except (OSError, ValueError) as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"The file cannot be read. {error}") from error

    def _check(self, number: int) -> str:
        """What tells a query from another of the same number: its checksum."""
        return f"{self._log.contents.places[number][2]:08x}"

    def state(self) -> dict[str, Any]:
        """The world, the file, how many queries are answered and open, and the oldest open one or None."""
        self._follow()
        contents = self._log.contents
        pending = list(contents.pending)
        return {
            "env": contents.signature.env,
            "file": self.path.name,
            "answered": len(contents.pairs) - len(pending),
            "open": len(pending),
            "next": {"id": pending[0], "check": self._check(pending[0])} if pending else None,
        }

    def query(self, before: str | None = None) -> dict[str, Any]:
        """:meth:`state` and, as ``query``, what to show: the oldest open query, or None.

        Args:
            before: the number of a query, for the one that was answered before it; ``last`` for the last answered.

        Raises:
            RefusedError: nothing was answered before that.
        """
        state = self.state()
        contents = self._log.contents
        if before is None:
            if state["next"] is None:
                return state | {"query": None}
            number = state["next"]["id"]
        else:
            order = [number for number in contents.labels if number in contents.pairs]
            last = before == "last" or _number(before) not in order
            place = len(order) if last else order.index(_number(before))
            if place == 0:
                raise RefusedError(HTTPStatus.NOT_FOUND, "Nothing was answered before this.")
            number = order[place - 1]
        shown = view(self._pair(number))
        return state | {
            "query": {"id": number, "check": self._check(number), "label": contents.labels.get(number)} | shown
        }

    def pictures(self, number: int, check: str, side: str) -> bytes:
        """The pictures of one side of a query, as bytes.

        Raises:
            RefusedError: no such query, side or picture.
        """
        self._require(number, check)
        both = pictures(self._pair(number))
        if both is None or side not in ("left", "right"):
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is no such picture.")
        return both[side == "right"].tobytes()

    def answer(self, number: int, check: str, label: object) -> dict[str, Any]:
        """Append an answer, which replaces an earlier one, and return :meth:`state`.

        Raises:
            RefusedError: no such query, no label, or a file that cannot be written to.
        """
        try:
            known = check_label(label)
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error
        self._follow()
        self._require(number, check)
        try:
            self._log.answer(number, known)
        except (OSError, ValueError) as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"The answer was not saved. {error}") from error
        return self.state()

    def _require(self, number: int, check: str) -> None:
        if number not in self._log.contents.pairs:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"There is no question {number} in the file.")
        if check != self._check(number):
            raise RefusedError(HTTPStatus.CONFLICT, f"Question {number} is another by now: the file was replaced.")

    def _pair(self, number: int) -> Pair:
        check = self._check(number)
        if self._held is None or self._held[0] != check:
            self._held = check, self._log.pair(number)
        return self._held[1]


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"expected the number of a question, got {text[:80]!r}") from None


class PageServer(ThreadingHTTPServer):
    """Serves the page of one preference file.

    Args:
        path: the file.
        port: where; 0 for any that is free.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no preference file.
        OSError: a port that is taken.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there, it would let two servers have one port

    def __init__(self, path: str | Path, port: int = PORT) -> None:
        self.questions = Questions(path)
        self.lock = threading.Lock()
        self.page = (resources.files(__package__) / "page.html").read_bytes()
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless it is that the browser went away."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 30  # seconds for a browser that stops in the middle of a request

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        number, check, side = (asked.get(name, "") for name in ("id", "check", "side"))
        questions = self.server.questions
        places: dict[str, tuple[str, Callable[[], Any]]] = {
            "/": ("text/html; charset=utf-8", lambda: self.server.page),
            "/state": (JSON, questions.state),
            "/query": (JSON, lambda: questions.query(asked.get("before"))),
            "/pictures": ("application/octet-stream", lambda: questions.pictures(_number(number), check, side)),
        }
        self._answer(*places.get(url.path, (JSON, self._nothing_here)))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        known = int(length) if length.isascii() and length.isdigit() else None
        body = self.rfile.read(min(known or 0, 16 * LONGEST_ANSWER))  # else the browser may miss why it is refused
        self._answer(JSON, lambda: self._post(known, body))

    def _nothing_here(self) -> bytes:
        raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing at this address.")

    def _post(self, length: int | None, body: bytes) -> dict[str, Any]:
        if urlsplit(self.path).path != "/answer":
            self._nothing_here()
        if self.headers.get_content_type() != JSON:
            got = self.headers.get("Content-Type")
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected an {JSON} answer, got {got}")
        if length is None:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected an answer with its Content-Length")
        if length > LONGEST_ANSWER:
            text = f"expected an answer of at most {LONGEST_ANSWER} bytes, got {length}"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        expected = 'expected {"id": number, "check": text, "label": text}'
        try:
            given = json.loads(body)
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{expected}, got no JSON: {error}") from error
        number, check = (given.get("id"), given.get("check")) if isinstance(given, dict) else (None, None)
        if type(number) is not int or not isinstance(check, str):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{expected}, got {body.decode(errors='replace')[:200]}")
        return self.server.questions.answer(number, check, given.get("label"))

    def _answer(self, kind: str, make: Callable[[], dict[str, Any] | bytes]) -> None:
        status = HTTPStatus.OK
        try:
            self._require_own_host()
            with self.server.lock:
                made = make()
        except RefusedError as error:
            status, made, kind = error.status, {"error": str(error)}, JSON
        body = made if isinstance(made, bytes) else json.dumps(made, allow_nan=False).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _require_own_host(self) -> None:
        port = self.server.server_port
        own = {f"{name}:{port}" for name in (HOST, "localhost")} | ({HOST, "localhost"} if port == 80 else set())
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host.lower() not in own:
            raise RefusedError(HTTPStatus.FORBIDDEN, f"expected a request to {HOST}:{port}, got one to {host[:80]!r}")
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            raise RefusedError(HTTPStatus.FORBIDDEN, f"expected a request from this page, got one from {origin[:80]!r}")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests: the page says what matters."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bilevel_gym.agents.preferences.page",
        description="Answer the queries of a preference file on a page in the browser.",
    )
    parser.add_argument("file", help="the preference file that a trainer asks in")
    parser.add_argument("--port", type=int, default=PORT, help=f"where to listen; 0: any free port (default: {PORT})")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser, only say the address")
    given = parser.parse_args(argv)
    if not 0 <= given.port <= 65535:
        parser.error(f"--port: expected a number from 0 to 65535, got {given.port}")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            server = PageServer(given.file, given.port)
    except (OSError, ValueError) as error:
        taken = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES) and not error.filename
        where = f"port {given.port} is taken or not allowed: name another with --port, or 0 for any that is free"
        print(where if taken else error, file=sys.stderr)
        return 2
    for warning in said:
        print(warning.message, file=sys.stderr)
    state = server.questions.state()
    print(f"{state['env']}: {state['open']} questions open, {state['answered']} answered. Label at {server.url}")
    print("Every answer is saved as it is given; Ctrl-C ends.", flush=True)
    if not given.no_browser:
        threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
