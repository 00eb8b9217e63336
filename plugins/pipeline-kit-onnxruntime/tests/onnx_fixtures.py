"""What the tests share: one cache of graphs for the whole run, since an export takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline_kit.builtin.tokenizers.configs import HfTokenizerConfig
from pipeline_kit.builtin.tokenizers.hf import HfTokenizer
from pipeline_kit.checkpoint import CheckpointConfig, resolve_checkpoint
from pipeline_kit.stages import StageContext
from pipeline_kit.testing import tiny_checkpoint
from pipeline_kit.testing.checkpoints import ARCHITECTURES
from pipeline_kit.types import Device

MakeContext = Callable[..., StageContext]
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache; ``PK_ONNXRUNTIME_TEST_CACHE`` names one that outlives the run."""
    kept = os.environ.get("PK_ONNXRUNTIME_TEST_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test out of the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))


@pytest.fixture(scope="session")
def make_context(tmp_path_factory: pytest.TempPathFactory) -> MakeContext:
    """Give the context for a tiny checkpoint of one layer; the same arguments give the same folder."""
    made: dict[Any, StageContext] = {}

    def make(architecture: str, head: str = "sequence-classification", **options: Any) -> StageContext:
        key = (architecture, head, *options.items())
        if key not in made:
            one_layer = {name: 1 for name in LAYERS if name in ARCHITECTURES[architecture].sizes}
            folder = tmp_path_factory.mktemp("model")
            tiny_checkpoint(folder, architecture, head=head, **{**one_layer, **options})
            found = resolve_checkpoint(CheckpointConfig(path=str(folder)))
            context = StageContext(found, Device(), head)
            made[key] = replace(context, tokenizer=HfTokenizer(HfTokenizerConfig(), context))
        return made[key]

    return make
