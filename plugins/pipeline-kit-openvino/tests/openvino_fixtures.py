"""What the tests share: one cache of graphs for the whole run, since an export takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline_kit.testing import GraphContexts


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache; ``PK_OPENVINO_TEST_CACHE`` names one that outlives the run."""
    kept = os.environ.get("PK_OPENVINO_TEST_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test out of the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))


@pytest.fixture(scope="session")
def make_context(tmp_path_factory: pytest.TempPathFactory) -> GraphContexts:
    """Return contexts for tiny checkpoints."""
    return GraphContexts(tmp_path_factory.mktemp("models"))
