"""The conformance suites on every built-in stage and on the test kit's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from harness import checkpoint
from safetensors.torch import save_file

from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Device
from pipeline_kit.testing import (
    ModelConformance,
    PostprocessorConformance,
    TokenizerConformance,
    register,
)

# The test kit's own stages.


class TestWords(TokenizerConformance):
    stage = "words"
    register = register


class TestWordsInWindows(TokenizerConformance):
    stage = "words"
    register = staticmethod(register)
    options: ClassVar = {"max_length": 16, "overflow": "window", "overlap": 4, "padding_side": "left"}


class TestTiny(ModelConformance):
    stage = "tiny"
    register = register


# Built-in postprocessors.


class TestClassification(PostprocessorConformance):
    stage = "classification"


class TestClassificationOfAllLabels(PostprocessorConformance):
    stage = "classification"
    options: ClassVar = {"top_k": None, "function": "sigmoid", "thresholds": {"POSITIVE": 0.5}, "merge": "max"}


class TestPooling(PostprocessorConformance):
    stage = "pooling"


class TestFeatures(PostprocessorConformance):
    stage = "features"
    xfail: ClassVar = {"a_window_that_comes_twice_changes_nothing": "it lists the special tokens of each window"}


class TestFeaturesOfText(PostprocessorConformance):
    stage = "features"
    options: ClassVar = {"special_tokens": False}


class TestLogits(PostprocessorConformance):
    stage = "logits"


# Built-in tokenizers and models, on tiny checkpoints.


class OnCheckpoint:
    """Mixed into a suite: its stage is built on a tiny checkpoint."""

    architecture: ClassVar[str] = "bert"
    head: ClassVar[str] = "sequence-classification"

    def folder(self) -> Path:
        return checkpoint(self.architecture)

    def context(self, device: Device | None = None) -> StageContext:
        found = resolve_checkpoint(CheckpointConfig(path=str(self.folder())))
        return StageContext(found, device or Device(), self.head)


class TestHfTokenizer(OnCheckpoint, TokenizerConformance):
    stage = "hf"


class TestHfTokenizerOfDecoder(OnCheckpoint, TokenizerConformance):
    stage = "hf"
    architecture = "gpt2"


class TestHfTokenizerInWindows(OnCheckpoint, TokenizerConformance):
    stage = "hf"
    options: ClassVar = {"overflow": "window", "max_length": 16, "overlap": 4}


class TestTokenizersJson(OnCheckpoint, TokenizerConformance):
    stage = "tokenizers_json"


class TestHfModel(OnCheckpoint, ModelConformance):
    stage = "hf"


class TestHfModelWithoutHead(OnCheckpoint, ModelConformance):
    stage = "hf"
    head = "base"


class TestHfModelThatLeaksPadding(OnCheckpoint, ModelConformance):
    stage = "hf"
    architecture = "convbert"
    head = "base"


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return static embeddings of 40 tokens with a head for two labels."""
    folder = tmp_path_factory.mktemp("static")
    settings = {"model_type": "static", "vocab_size": 40, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}
    (folder / "config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    sizes = {"embeddings.weight": (40, 6), "classifier.weight": (2, 6), "classifier.bias": (2,)}
    weights = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


class TestStaticModel(OnCheckpoint, ModelConformance):
    stage = "static"

    @pytest.fixture(autouse=True)
    def _folder(self, static: Path) -> None:
        self.folder = lambda: static  # type: ignore[method-assign]


class TestStaticModelWithoutHead(TestStaticModel):
    head = "base"
