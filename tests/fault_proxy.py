"""A proxy before an HTTP server that spoils some of the requests, as networks and busy stores do."""

from __future__ import annotations

import http.client
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Event, Lock, Thread
from urllib.parse import SplitResult, urlsplit

FAULTS = ("503", "500", "cut", "lost", "lost503", "409", "torn", "stuck")
"""Three digits are answered without asking the server; ``echo`` behind them repeats the credentials in the answer. A
connection is cut before the server saw the request; an answer is lost after it was carried out, or replaced by a 503;
it is cut off; or it does not come within the time-out.
"""

Choose = Callable[[str, str, bool], str | None]
"""From a request's method, its path and whether it has a condition, to one of `FAULTS`; None: leave it alone."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy
    target: SplitResult

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that gave up are no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        conditional = bool(self.headers.get("If-None-Match") or self.headers.get("If-Match"))
        fault = self.server.proxy.choose(self.command, self.path, conditional)
        self.server.proxy.seen[fault or "none"] += 1
        self.server.proxy.requests.append((self.command, self.path))
        if fault == "cut":
            self.cut()
        elif fault is not None and fault[:3].isdigit():
            said = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
            said = f"There is none called {said} here" if fault.endswith("echo") else ""
            self.answer(int(fault[:3]), f"<Error><Code>SpoiltByTest</Code><Message>{said}</Message></Error>".encode())
        else:
            self.forward(body, fault)

    def forward(self, body: bytes, fault: str | None) -> None:
        server = http.client.HTTPConnection(self.server.target.hostname or "", self.server.target.port, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            data = answer.read()
        finally:
            server.close()
        if fault == "stuck":
            self.server.proxy.released.wait(30)
        if fault in ("lost", "stuck"):
            self.cut()
        elif fault == "lost503":
            self.answer(503, b"")
        else:
            self.answer(answer.status, data, answer.getheaders(), torn=fault == "torn")

    def answer(
        self, status: int, data: bytes, headers: list[tuple[str, str]] | None = None, *, torn: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers or []:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        sizes = [value for name, value in headers or [] if name.lower() == "content-length"]
        self.send_header("Content-Length", sizes[0] if sizes and not data else str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if torn else data)
        if torn:
            self.cut()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass


class FaultProxy:
    """Forwards requests; `choose` decides which are spoilt, and `seen` counts how."""

    def __init__(self, address: str, choose: Choose) -> None:
        self.choose = choose
        self.seen: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.released = Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy, self._server.target = self, urlsplit(address)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def fault_proxy(address: str, choose: Choose) -> Iterator[FaultProxy]:
    """Run a proxy."""
    proxy = FaultProxy(address, choose)
    try:
        yield proxy
    finally:
        proxy.close()


def share_of_requests(share: float, seed: int, faults: tuple[str, ...] = FAULTS[:-1]) -> Choose:
    """Spoil a share of all requests, each in one of the ways that fit it."""
    random, lock = Random(seed), Lock()

    def choose(method: str, path: str, conditional: bool) -> str | None:
        with lock:
            fault = random.choice(faults) if random.random() < share else None
        if fault == "409" and not conditional:
            fault = "503"
        if fault == "torn" and method != "GET":
            fault = "lost"
        return fault

    return choose


def once(fault: str, method: str, times: int = 1) -> Choose:
    """Spoil the first requests of a method."""
    left = [times]

    def choose(asked: str, path: str, conditional: bool) -> str | None:
        if asked != method or not left[0]:
            return None
        left[0] -= 1
        return fault

    return choose
