"""What every test shares: no network but loopback, no installed plugins unless a test asks for them."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run, and none fails for taking long: machines are shared.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["PIPELINE_KIT_PLUGINS"] = ""

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    host = address[0] if isinstance(address, tuple) else "127.0.0.1"
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"a test tried to reach {host}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine."""
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sync return at once: only a loss of power would show the difference. Calls can be counted still."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
