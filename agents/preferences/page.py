"""A web page on which a person answers the queries of a preference file: two segments side by side as animations.

    python -m bilevel_gym.agents.preferences.page FILE [--port N] [--no-browser]

It opens the file as a trainer does (``files.PreferenceLog``), shows the oldest open query, appends each answer at once and reads
what trainers append meanwhile. The file holds all state: nothing is lost by a reload or a restart.

    GET   /                                  the page
    GET   /state                             environment, file, numbers of answered and open queries, the oldest open query
    GET   /query[?before=N]                  that and the oldest open query; or the one answered before N (``last``: the last)
    GET   /pictures?id=N&check=C&side=left   its pictures: bytes, [steps, height, width, channels]
    POST  /answer {"id", "check", "label"}   append an answer; ``check`` shows that it belongs to the query on the page

Errors are returned as ``{"error": text}``. The server is the standard library's: one person, one file and five addresses need no
framework. It listens on 127.0.0.1 only, and no other page can read from it or answer for the person: a request must name this
host, which a foreign name that resolves to it does not; answers must be ``application/json``, which browsers send to another site
only with its consent, which this one never gives; and no page may frame it.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .files import PreferenceLog
from .labels import check_label
from .views import pictures, view

HOST, PORT, JSON = "127.0.0.1", 8731, "application/json"
LONGEST_ANSWER = 4096
"""Maximum size of an answer in bytes."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class RefusedError(Exception):
    """A request that cannot be answered, with the HTTP status and the reason."""


def refuse_unless(condition: bool, status: HTTPStatus, message: str) -> None:
    """Raise :class:`RefusedError` unless ``condition`` holds."""
    if not condition:
        raise RefusedError(status, message)


@contextmanager
def refusing(status: HTTPStatus, said: str = "") -> Iterator[None]:
    """Turn an error from a bad file or value into a :class:`RefusedError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RefusedError(status, f"{said}{error}") from error


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"expected the number of a question, got {text[:80]!r}") from None


class PageServer(ThreadingHTTPServer):
    """A server of the page of one preference file; one thread at a time uses the file, under ``lock``.

    Args:
        path: the file.
        port: the port; 0 for any free one.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is no preference file.
        OSError: the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows two servers could then share a port

    def __init__(self, path: str | Path, port: int = PORT) -> None:
        self._log = PreferenceLog(path)
        self.lock = threading.Lock()
        self.page = (resources.files(__package__) / "page.html").read_bytes()
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless the browser closed the connection."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    # --- the file -------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Read what others appended; open the file again if it was replaced."""
        with refusing(HTTPStatus.SERVICE_UNAVAILABLE, "The file cannot be read. "):
            if self._log.replaced:
                self._log = PreferenceLog(self._log.path)
            self._log.refresh()

    def _check(self, number: int) -> str:
        """Return a query's checksum, which tells it from another query of the same number."""
        return f"{self._log.contents.places[number][2]:08x}"

    def state(self) -> dict[str, Any]:
        """Return the environment, the file, the numbers of answered and open queries, and the oldest open query or None."""
        self._follow()
        contents = self._log.contents
        pending = list(contents.pending)
        return {
            "env": contents.signature.env,
            "file": self._log.path.name,
            "answered": len(contents.pairs) - len(pending),
            "open": len(pending),
            "next": {"id": pending[0], "check": self._check(pending[0])} if pending else None,
        }

    def query(self, before: str | None = None) -> dict[str, Any]:
        """Return :meth:`state` and, as ``query``, the query to show: the oldest open one, or None.

        Args:
            before: the number of a query, to return the one answered before it; ``last`` for the last answered one.

        Raises:
            RefusedError: no query was answered before that one.
        """
        state, contents = self.state(), self._log.contents
        shown = state["next"]
        if before is not None:
            order = [number for number in contents.labels if number in contents.pairs]
            last = before == "last" or _number(before) not in order
            place = len(order) if last else order.index(_number(before))
            refuse_unless(place > 0, HTTPStatus.NOT_FOUND, "Nothing was answered before this.")
            shown = {"id": order[place - 1], "check": self._check(order[place - 1])}
        if shown is not None:
            number = shown["id"]
            shown = shown | {"label": contents.labels.get(number)} | view(self._log.pair(number))
        return state | {"query": shown}

    def pictures(self, number: int, check: str, side: str) -> bytes:
        """Return the pictures of one side of a query, as bytes.

        Raises:
            RefusedError: the query, side or picture does not exist.
        """
        self._require(number, check)
        both = pictures(self._log.pair(number))
        if both is None or side not in ("left", "right"):
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is no such picture.")
        return both[side == "right"].tobytes()

    def answer(self, number: int, check: str, label: object) -> dict[str, Any]:
        """Append an answer, which replaces an earlier one to the same query, and return :meth:`state`.

        Raises:
            RefusedError: the query does not exist, the label is invalid, or the file cannot be written.
        """
        with refusing(HTTPStatus.BAD_REQUEST):
            known = check_label(label)
        self._follow()
        self._require(number, check)
        with refusing(HTTPStatus.SERVICE_UNAVAILABLE, "The answer was not saved. "):
            self._log.answer(number, known)
        return self.state()

    def _require(self, number: int, check: str) -> None:
        known = number in self._log.contents.pairs
        refuse_unless(known, HTTPStatus.NOT_FOUND, f"There is no question {number} in the file.")
        same = check == self._check(number)
        refuse_unless(same, HTTPStatus.CONFLICT, f"Question {number} has changed, since the file was replaced.")


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 30  # seconds to wait for a browser that stops in the middle of a request

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        number, check, side = (asked.get(name, "") for name in ("id", "check", "side"))
        places: dict[str, tuple[str, Callable[[], Any] | None]] = {
            "/": ("text/html; charset=utf-8", lambda: self.server.page),
            "/state": (JSON, self.server.state),
            "/query": (JSON, lambda: self.server.query(asked.get("before"))),
            "/pictures": ("application/octet-stream", lambda: self.server.pictures(_number(number), check, side)),
        }
        self._answer(*places.get(url.path, (JSON, None)))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        known = int(length) if length.isascii() and length.isdigit() else -1
        body = self.rfile.read(min(max(known, 0), 16 * LONGEST_ANSWER))  # or the browser may not see the reason
        self._answer(JSON, partial(self._post, known, body) if urlsplit(self.path).path == "/answer" else None)

    def _post(self, length: int, body: bytes) -> dict[str, Any]:
        text = f"expected an {JSON} answer, got {self.headers.get('Content-Type')}"
        refuse_unless(self.headers.get_content_type() == JSON, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)
        refuse_unless(length >= 0, HTTPStatus.LENGTH_REQUIRED, "expected an answer with its Content-Length")
        text = f"expected an answer of at most {LONGEST_ANSWER} bytes, got {length}"
        refuse_unless(length <= LONGEST_ANSWER, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        expected = 'expected {"id": number, "check": text, "label": text}'
        with refusing(HTTPStatus.BAD_REQUEST, f"{expected}, got no JSON: "):
            given = json.loads(body)
        number, check = (given.get("id"), given.get("check")) if isinstance(given, dict) else (None, None)
        if type(number) is not int or not isinstance(check, str):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{expected}, got {body.decode(errors='replace')[:200]}")
        return self.server.answer(number, check, given.get("label"))

    def _answer(self, kind: str, make: Callable[[], Any] | None) -> None:
        """Send the result of ``make``, called under the lock, or why it failed; ``make`` is None for an unknown address."""
        status = HTTPStatus.OK
        try:
            # Another page can neither name this host nor claim to be this page.
            port = self.server.server_port
            own = {f"{name}:{port}" for name in (HOST, "localhost")} | ({HOST, "localhost"} if port == 80 else set())
            host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
            text = f"expected a request to {HOST}:{port}, got one to {host[:80]!r}"
            refuse_unless(host.lower() in own, HTTPStatus.FORBIDDEN, text)
            text = f"expected a request from this page, got one from {str(origin)[:80]!r}"
            refuse_unless(origin is None or origin.lower() == f"http://{host.lower()}", HTTPStatus.FORBIDDEN, text)
            if make is None:
                raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing at this address.")
            with self.server.lock:
                made = make()
        except RefusedError as error:
            status, made, kind = error.args[0], {"error": error.args[1]}, JSON
        body = made if isinstance(made, bytes) else json.dumps(made, allow_nan=False).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests: the page shows what matters."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted; return the exit status."""
    described = "Answer the queries of a preference file on a page in the browser."
    parser = argparse.ArgumentParser("python -m bilevel_gym.agents.preferences.page", description=described)
    parser.add_argument("file", help="the preference file of a trainer")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on; 0: any free port (default: {PORT})")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser, only print the address")
    given = parser.parse_args(argv)
    if not 0 <= given.port <= 65535:
        parser.error(f"--port: expected a number from 0 to 65535, got {given.port}")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            server = PageServer(given.file, given.port)
    except (OSError, ValueError) as error:
        taken = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES) and not error.filename
        where = f"port {given.port} is taken or not allowed: choose another with --port, or 0 for any free one"
        print(where if taken else error, file=sys.stderr)
        return 2
    for warning in said:
        print(warning.message, file=sys.stderr)
    state = server.state()
    print(f"{state['env']}: {state['open']} questions open, {state['answered']} answered. Label at {server.url}")
    print("Every answer is saved at once; stop with Ctrl-C.", flush=True)
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
