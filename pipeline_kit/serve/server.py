"""The process of ``pipeline-kit serve``: a port, an event loop, an end in which nothing accepted is lost."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline_kit.errors import UsageError, for_message
from pipeline_kit.runtime.config import ServeConfig
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.serve.app import LOCAL, ServeApp
from pipeline_kit.serve.state import KEY_VARIABLE, ServerState

KEEP_ALIVE = 75
"""Seconds that a connection may be idle: longer than the 60 s of common proxies, which else meet a closed one."""

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 98\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\n"
    b'{"error":{"message":"too many connections are open","type":"unavailable","code":503,"param":null}}'
)
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
MOST_HEADER_BYTES = 2**16
LAST_ANSWERS = 0.2
"""Seconds between the last answer and the end, in which clients that are about to send get their 503."""


def listen(config: ServeConfig) -> socket.socket:
    """Take the port; connections are accepted once the pipelines are loaded.

    :raises UsageError: if it cannot be had; says why.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"serve.host={for_message(config.host, 80)}: there is no such address: {error}") from error
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        why = "is in use; set another one, or serve.port=0 for a free one"
        if error.errno != errno.EADDRINUSE:
            why = f"cannot be listened on: {error.strerror}"
        raise UsageError(f"serve.host={config.host} serve.port={config.port}: {why}") from error
    return found


def serve(
    pipelines: Mapping[str, Pipeline],
    config: ServeConfig,
    port: socket.socket,
    announce: Callable[[str], None],
    say: Callable[[str], None],
) -> int:
    """Answer requests until a signal asks to end.

    :param announce: called with the URL when the server can answer.
    :param say: takes lines for people.
    :returns: 0, or 1 if work that had been accepted was cut off.
    """
    state = ServerState(pipelines, config)
    if config.host not in LOCAL and state.key is None:
        say(f"warning: anybody who reaches {config.host} may ask; set {KEY_VARIABLE} or serve.api_key")
    host, number = port.getsockname()[:2]
    url = f"http://[{host}]:{number}" if ":" in host else f"http://{host}:{number}"
    server = _Server(state, say, lambda: announce(url))
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[port]))
    return 1 if server.cut_off else 0


class _Server(uvicorn.Server):
    """uvicorn with signals of our own: it would close the listener first, and then end by the signal."""

    def __init__(self, state: ServerState, say: Callable[[str], None], announce: Callable[[], None]) -> None:
        protocol = type("Protocol", (_Protocol,), {"limits": state.config})
        super().__init__(
            uvicorn.Config(
                ServeApp(state).asgi(),
                http=protocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=1,
                lifespan="on",
            )
        )
        self._state, self._say, self._announce = state, say, announce
        self.cut_off = False
        self._drained: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and let the user know."""
        await super().startup(sockets)
        if self.started and not self._state.draining:
            self._announce()

    def _stop(self) -> None:
        if self._drained is not None:
            self._say("ended at once: a second signal")
            self._cut_off()
            return
        self._state.draining = True
        if self._state.in_flight:
            self._say(f"ending: {self._state.in_flight} requests are finished first, in serve.drain_timeout at most")
        self._drained = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Wait for what was accepted; the port stays open meanwhile, and says 503."""
        try:
            async with asyncio.timeout(self._state.config.drain_timeout):
                while self._state.in_flight:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._say(f"{self._state.in_flight} requests were cut off after serve.drain_timeout")
            self._cut_off()
        await asyncio.sleep(LAST_ANSWERS)
        self.should_exit = True

    def _cut_off(self) -> None:
        """End now; what is in flight is answered 503."""
        self.cut_off = self.cut_off or self._state.in_flight > 0
        for task in self.server_state.tasks:
            task.cancel()
        self.should_exit = True


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits to the time and the bytes of a header, and to the number of connections."""

    limits: ServeConfig
    _held = 0
    """Bytes that came since the last header or piece of a body was complete; the parser keeps them."""

    def connection_made(self, transport: Any) -> None:
        """Refuse one connection too many, else expect a header."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.max_connections:
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte of a further request."""
        if self._timer is None and getattr(self.cycle, "response_complete", True):
            self._expect_header()
        self._held += len(data)
        super().data_received(data)
        if self._held > MOST_HEADER_BYTES:
            if self._timer is not None:  # after a trailer the answer to its request may have begun
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Stop the clock: the body has one of its own."""
        self._held = 0
        self._forget()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that the parser keeps none of it."""
        self._held = 0
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._forget()
        super().connection_lost(exc)

    def _expect_header(self) -> None:
        self._timer = self.loop.call_later(self.limits.read_timeout, self.transport.close)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
