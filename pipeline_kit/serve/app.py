"""The ASGI app: who may ask, which pipeline answers, and what becomes of every error."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sys
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from random import getrandbits
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Match, Mount
from starlette.routing import Route as StarletteRoute

from pipeline_kit.contract.options import parse_options
from pipeline_kit.errors import ConfigError, Fault, StageError, closest_match, for_message
from pipeline_kit.runtime.config import ServeConfig
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.serve.dialects.base import Call, Dialect, Reply, Route, decoded, load_dialects
from pipeline_kit.serve.refused import Refused
from pipeline_kit.serve.served import Account, ServedPipeline
from pipeline_kit.serve.state import ServerState

LEFT = 499
"""What the log has as the status of a request whose client left before the answer."""

LOCAL = ("localhost", "127.0.0.1", "::1")
_REQUEST_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def serve_app(pipelines: Pipeline | Mapping[str, Pipeline], **options: Any) -> Starlette:
    """Return an ASGI app that answers with pipelines, for a server of your own: ``uvicorn.run(pk.serve_app(pipe))``.

    :param pipelines: one, or several by name, of which the first answers at ``/`` too.
    :param options: those of the group ``serve``, such as ``max_inputs=64``. What concerns the server alone, such as
        its port, has no effect. The ``Host`` of a request is not checked: that server knows which it may have.
    :raises ConfigError: for an option that is not there, or a value that is not allowed.
    :raises UsageError: if the extra ``serve`` is not installed.
    """
    faults: list[Fault] = []
    config = parse_options(ServeConfig, options, "serve", faults, hint="see: pipeline-kit show serve")
    if config is None:
        raise ConfigError(faults)
    named = {"default": pipelines} if isinstance(pipelines, Pipeline) else dict(pipelines)
    return ServeApp(ServerState(named, config), check_host=False).asgi()


class ServeApp:
    """The routes of all dialects around the state of a server.

    :param check_host: whether the ``Host`` of a request has to be this machine, where the server listens on it alone.
    """

    def __init__(self, state: ServerState, *, check_host: bool = True) -> None:
        self.state, self.config = state, state.config
        self.check_host = check_host and state.config.host in LOCAL
        self.dialects = load_dialects(state.registry)
        self.routes = [(dialect, route) for dialect in self.dialects.values() for route in dialect.routes()]

    def asgi(self) -> Starlette:
        """Build the app."""
        own: list[BaseRoute] = [
            StarletteRoute(route.path, _Endpoint(self, dialect, route), methods=[route.method])
            for dialect, route in self.routes
        ]
        mounted = "/pipelines/{pipeline}"  # by itself it is the ``/`` of that pipeline
        bare = [
            StarletteRoute(mounted, _Endpoint(self, dialect, route), methods=[route.method])
            for dialect, route in self.routes
            if route.path == "/"
        ]
        nowhere = Route("", _nothing, method="")
        known = [*bare, *own]
        unknown = StarletteRoute("/{rest:path}", _Endpoint(self, self.dialects["native"], nowhere, known), methods=None)
        middleware = []
        if self.config.cors_origins:
            cors: Any = {
                "allow_origins": self.config.cors_origins,
                "allow_methods": ["GET", "POST"],
                "allow_headers": ["*"],
            }
            middleware.append(Middleware(CORSMiddleware, **cors))
        routes = [*bare, Mount(mounted, routes=[*own, unknown]), *own, unknown]
        return Starlette(routes=routes, middleware=middleware, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await asyncio.gather(*(served.warm_up() for served in self.state.served.values()))
        yield
        for served in self.state.served.values():
            await asyncio.to_thread(served.batcher.close)

    def check(self, headers: Mapping[str, str], route: Route) -> None:
        """Check who asks.

        :raises Refused: 401 without the key, 403 for a page of another site, or another name of this machine.
        """
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if self.check_host and name.strip("[]").lower() not in LOCAL:
            raise Refused(
                403, f"the Host '{for_message(host, 80)}' is not this server; it listens on {self.config.host}"
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self.config.cors_origins and origin.partition("://")[2] != host:
            raise Refused(403, f"pages of '{for_message(origin, 80)}' may not ask; allow it with serve.cors_origins")
        if self.state.key is not None and not route.open and not self._has_key(headers.get("authorization", "")):
            raise Refused(401, "send the server's API key as: Authorization: Bearer KEY")

    def _has_key(self, header: str) -> bool:
        """Compare in constant time; a browser sends it as the password of Basic."""
        assert self.state.key is not None
        scheme, _, text = header.partition(" ")
        value = text.encode("latin-1")  # the bytes that were sent
        if scheme.lower() == "basic":
            with suppress(ValueError):
                value = b64decode(value).partition(b":")[2]
        return hmac.compare_digest(value.strip(), self.state.key)

    def choose(self, dialect: Dialect, body: Any, path: Mapping[str, str]) -> ServedPipeline:
        """Return the pipeline that a request asks for.

        :raises Refused: 404 if there is none of that name.
        """
        if (name := path.get("pipeline")) is None:
            name = dialect.pipeline_name(body, path)
            if name is None or len(self.state.served) == 1:
                return self.state.default
        return self.state.named(name)

    def fitting(self, pipeline: ServedPipeline) -> list[str]:
        """List the routes that fit a pipeline and ask it for something."""
        return [route.path for _, route in self.routes if route.body is not None and route.misfit(pipeline) is None]


async def _nothing(call: Call) -> None:
    """Answer where there is no route."""


class _Endpoint:
    """One route as an ASGI app; with `others` the place where all requests come that no route takes."""

    def __init__(self, app: ServeApp, dialect: Dialect, route: Route, others: Sequence[BaseRoute] = ()) -> None:
        self.app, self.dialect, self.route, self.others = app, dialect, route, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        start = time.perf_counter()
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        state, account = self.app.state, Account(self.app.config.deadline)
        call = Call(state.default, None, headers, scope.get("path_params", {}), state, account)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{getrandbits(64):016x}"
        watcher: asyncio.Task[None] | None = None
        # What is in flight is waited for at the end; an open route is not, or a probe would keep the server alive.
        counted = 0 if self.route.open else 1
        state.in_flight += counted
        try:
            try:
                call.body = await self._body(scope, receive, call)
                watcher = asyncio.create_task(_cancel_when_left(receive, account, asyncio.current_task()))
                reply = await self._answer(call)
            except Exception as error:
                reply = self._failure(error, request_id)
            status = await self._send(send, reply, request_id, account)
        except asyncio.CancelledError:
            status = LEFT
            if not account.left:
                status = await self._send(send, self._failure(_ended(), request_id), request_id, account)
        finally:
            state.in_flight -= counted
            if watcher is not None:
                watcher.cancel()
        self._note(scope, call, status, time.perf_counter() - start, request_id)

    async def _body(self, scope: Scope, receive: Receive, call: Call) -> Any:
        config, headers = self.app.config, call.headers
        self.app.check(headers, self.route)
        if self.others:
            self._refuse_unknown(scope)
        if self.app.state.draining and not self.route.open:
            raise Refused(503, "this server is about to end; ask another one", retry_after=1)
        if self.route.body is None:
            return None
        if self.app.state.in_flight > self.app.state.most_in_flight:
            raise self.app.state.crowded()
        if headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "the body is compressed; send it as it is")
        length = headers.get("content-length", "0")
        large = f"the body is larger than serve.max_body_bytes={config.max_body_bytes:,}; send fewer inputs at a time"
        if length.isdecimal() and int(length[:20]) > config.max_body_bytes:
            raise Refused(413, large)
        data = bytearray()
        try:
            async with asyncio.timeout(config.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        call.account.left = True
                        raise asyncio.CancelledError
                    data += message.get("body", b"")
                    if len(data) > config.max_body_bytes:
                        raise Refused(413, large)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refused(408, f"the body did not come within serve.read_timeout={config.read_timeout:g} s") from None
        return decoded(self.route, bytes(data))

    def _refuse_unknown(self, scope: Scope) -> None:
        path = scope["path"]
        for other in self.others:
            if other.matches(scope)[0] is Match.PARTIAL:
                raise Refused(405, f"{for_message(path, 80)} does not take {for_message(scope['method'], 20)}")
        known = [route.path for _, route in self.app.routes]
        near = closest_match(path.removeprefix(scope.get("root_path", "")), known)
        hint = f" Did you mean {near}?" if near else ""
        raise Refused(404, f"there is no route {for_message(path, 80)}.{hint} See /openapi.json")

    async def _answer(self, call: Call) -> Reply:
        call.pipeline = self.app.choose(self.dialect, call.body, call.path)
        misfit = self.route.misfit(call.pipeline)
        if misfit is not None:
            raise Refused(404, f"{misfit}; routes that fit: {', '.join(self.app.fitting(call.pipeline))}")
        found = await self.route.handler(call)
        if not isinstance(found, Reply):
            return Reply(msgspec.json.encode(found))
        if isinstance(found.content, bytes):
            return found
        # What fails before the first piece is an error with a status.
        first = await anext(found.content, b"")
        return replace(found, content=_chained(first, found.content))

    def _failure(self, error: Exception, request_id: str) -> Reply:
        if not isinstance(error, Refused):
            kind = "" if isinstance(error, StageError) else f"{type(error).__name__}: "
            _log(f"error: request {request_id}: {kind}{for_message(str(error), 1000)}")
            error = Refused(500, f"a stage broke; the server's log has the request {request_id}")
        headers = {}
        if error.retry_after is not None:
            headers["retry-after"] = str(error.retry_after)
        if error.status == 401:
            # Basic alone: with two schemes in a line Chromium does not ask its user for the key.
            headers["www-authenticate"] = 'Basic realm="pipeline-kit"'
        if error.status in (408, 413):  # what is left of the body is not read
            headers["connection"] = "close"
        return Reply(msgspec.json.encode(self.dialect.error(error)), headers=headers, status=error.status)

    async def _send(self, send: Send, reply: Reply, request_id: str, account: Account) -> int:
        headers = {"content-type": reply.media_type, "x-request-id": request_id, **reply.headers}
        if self.app.state.draining:
            headers["connection"] = "close"
        if isinstance(reply.content, bytes):
            headers["content-length"] = str(len(reply.content))
        raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        if isinstance(reply.content, bytes):
            await send({"type": "http.response.body", "body": reply.content})
            return reply.status
        status = reply.status
        try:
            async for piece in reply.content:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (Exception, asyncio.CancelledError) as error:  # the status has been sent: the error is the last event
            if account.left:
                raise
            failure = self._failure(error if isinstance(error, Exception) else _ended(), request_id)
            assert isinstance(failure.content, bytes)
            status = failure.status
            await send({"type": "http.response.body", "body": b"data: " + failure.content + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return status

    def _note(self, scope: Scope, call: Call, status: int, seconds: float, request_id: str) -> None:
        """Count the request, and write its line in the log."""
        name, metrics, log = call.pipeline.name, self.app.state.metrics, self.app.config.log
        metrics.requests.labels(name, self.route.path, str(status)).inc()
        metrics.request_seconds.labels(name).observe(seconds)
        if status in (401, 403, 408, 413, 503, 504):
            metrics.rejected.labels(name, str(status)).inc()
        if log == "none" or (self.route.open and status == 200):
            return
        facts = {
            "id": request_id,
            "pipeline": name,
            "method": scope["method"],
            "route": for_message(scope["path"], 200),
            "status": status,
            "rows": call.account.rows,
            "tokens": call.account.tokens,
            "waited_ms": None if call.account.waited is None else round(call.account.waited * 1e3, 2),
            "ms": round(seconds * 1e3, 2),
            **({"texts": call.account.texts} if call.account.texts is not None else {}),
        }
        if log == "json":
            line = json.dumps({"time": round(time.time(), 3), **facts}, ensure_ascii=True)
        else:
            line = " ".join(
                f"{key}={json.dumps(v) if key == 'texts' else v}" for key, v in facts.items() if v is not None
            )
        _log(line)


def _log(line: str) -> None:
    with suppress(OSError, ValueError):  # without a stderr nobody reads it
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _ended() -> Refused:
    """Return the error of a request that is cancelled though its client has not left: the server ends now."""
    return Refused(503, "the server ended before this was done; ask another one", retry_after=1)


async def _cancel_when_left(receive: Receive, account: Account, task: asyncio.Task[Any] | None) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    account.left = True
    if task is not None:
        task.cancel()


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
