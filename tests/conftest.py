"""What every test shares: no network but loopback, no installed plugins unless a test asks for them."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

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


_TORCH = find_spec("torch") is not None


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Let a stage that is built alone have one thread, as `Device` says: tiny tensors gain nothing from more."""
    if _TORCH:
        import torch

        torch.set_num_threads(1)


_NEEDS_TORCH = re.compile(r"^(?:import|from) (?:torch|transformers|pipeline_kit\.testing|model_helpers|parity)", re.M)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the files that need torch where it is not installed; the others skip what asks for a checkpoint.

    So composing, the registry, config, files and the inspecting commands are tested on a Python that has no torch yet.
    """
    return True if not _TORCH and collection_path.suffix == ".py" and _needs_torch(collection_path) else None


def _needs_torch(path: Path) -> bool:
    return _NEEDS_TORCH.search(path.read_text(encoding="utf-8")) is not None


APART = (
    *("test_plugins_shipped.py", "test_docs.py", "test_new_plugin.py", "test_cli_process.py"),
    *("test_job_workers.py", "test_life.py"),
)
"""Files of few tests that take long and share nothing."""


class _ByFile(LoadFileScheduling):  # type: ignore[misc]
    """Keep the tests of a file in one process, for what they share.

    The files with the most tests begin, so each test of a file in `APART` fills up what is left at the end.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.partition("::")[0].endswith(APART) else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Distribute tests over processes."""
    return _ByFile(config, log)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sync return at once: only a loss of power would show the difference. Calls can be counted still."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


FLAGS = [
    "--no-sandbox",  # Chromium refuses its sandbox to root, as which CI runs
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a headless Chromium; without one the test is skipped."""
    reason = "playwright is not installed: pip install 'pipeline-kit[test]'"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


_composed: dict[Any, dict[str, Any]] = {}


@pytest.fixture(scope="module")
def composed_once() -> Iterator[None]:
    """Let Hydra compose the same choices among the same stages once in this process, and return copies of it."""
    from pipeline_kit.compose import hydra

    compose = hydra.compose_container

    def copied(registry: Any, overrides: Sequence[str], name: str, folders: Sequence[Path], *more: Any) -> Any:
        if folders:  # what they hold may change
            return compose(registry, overrides, name, folders, *more)
        key = (*overrides, name, frozenset(registry.specs()), *registry.conf_packages)
        if key not in _composed:
            _composed[key] = compose(registry, overrides, name, folders, *more)
        return deepcopy(_composed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose_container", copied)
        yield


@pytest.fixture(scope="module", autouse=True)
def composed_once_where_something_else_is_tested(request: pytest.FixtureRequest) -> None:
    """Composing takes longer than most of what is done with a config."""
    if request.path.parent.name != "compose":
        request.getfixturevalue("composed_once")
