"""Servers for tests: on a real socket, in this process; and pipelines whose stages do what a test asks for."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import uvicorn

import pipeline_kit as pk
from pipeline_kit.runtime.pipeline import Pipeline

_TLS = ssl.create_default_context()
"""Without it each request reads the certificates of the machine anew, though none of ours is over TLS."""


@contextmanager
def running(pipelines: Pipeline | Mapping[str, Pipeline], **options: Any) -> Iterator[str]:
    """Serve pipelines on a free port of loopback; return the URL.

    :param options: of the group ``serve``.
    """
    app = pk.serve_app(pipelines, **{"log": "none", **options})
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        [port] = {socket.getsockname()[1] for one in server.servers for socket in one.sockets}
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def post(url: str, body: Any, **headers: str) -> httpx.Response:
    """Send JSON, or bytes as they are."""
    given: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    return httpx.post(url, headers=headers, timeout=60, verify=_TLS, **given)


def get(url: str, **headers: str) -> httpx.Response:
    """Ask for a page."""
    return httpx.get(url, headers=headers, timeout=60, verify=_TLS)


class GatedModel:
    """A model that runs a batch only when a test lets it, and notes the rows of each.

    :ivar batches: the number of rows of each batch that has begun.
    """

    def __init__(self, model: Any) -> None:
        self.__dict__["model"] = model
        self.__dict__["batches"] = []
        self.__dict__["gate"] = threading.Semaphore(0)
        self.__dict__["began"] = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, batch: Any) -> Any:
        """Wait, then run the model."""
        self.batches.append(len(batch.input_ids))
        self.began.release()
        assert self.gate.acquire(timeout=60), "the test did not open the gate"
        return self.model.forward(batch)

    def open(self, times: int = 10_000) -> None:
        """Let so many batches run."""
        self.gate.release(times)


def gated(pipe: Pipeline) -> tuple[Pipeline, GatedModel]:
    """Return a pipeline whose model waits for the test."""
    model = GatedModel(pipe.model)
    return replace(pipe, model=model), model  # type: ignore[arg-type]


def until(condition: Any, seconds: float = 30) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)
