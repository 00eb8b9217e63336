"""An S3 server of this process for tests: moto, with buckets whose versions show every write."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from pipeline_kit.files.storage.objects import forget_stores

CANARY = "canary0secret1of2the3tests"
"""What the variables hold as a secret: it must appear nowhere."""


class S3Server:
    """A server on this machine."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else there is a line for each request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.address = f"http://{host}:{port}"
        self._backend: Any = s3_backends["123456789012"]["aws"]

    def bucket(self, name: str) -> str:
        """Make a bucket that keeps versions; return its URL."""
        self._backend.create_bucket(name, "us-east-1")
        self._backend.buckets[name].versioning_status = "Enabled"
        return f"s3://{name}"

    def versions(self, name: str) -> dict[str, int]:
        """Return how often each key of a bucket was written, marks of deletion included."""
        keys = self._backend.buckets[name].keys
        return {str(key): len(keys.getlist(key)) for key in list(keys)}

    def contents(self, name: str) -> dict[str, bytes]:
        """Return what is in a bucket."""
        keys = self._backend.buckets[name].keys
        return {str(key): keys[key].value for key in keys if hasattr(keys[key], "value")}

    def close(self) -> None:
        self._server.stop()


@contextmanager
def s3_variables(address: str, **more: str) -> Iterator[None]:
    """Set the variables that lead to a server; stores that were known before are forgotten, also at the end."""
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": f"id-{CANARY}",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_REGION": "us-east-1",
        **more,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        forget_stores()
        yield
    forget_stores()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server, with the variables that lead to it."""
    server = S3Server()
    try:
        with s3_variables(server.address):
            yield server
    finally:
        server.close()
