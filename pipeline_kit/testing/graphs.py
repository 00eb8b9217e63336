"""What the tests of a model that runs exported graphs share: small checkpoints, and ``model=hf`` to compare with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from pipeline_kit.builtin.models.configs import HfModelConfig
from pipeline_kit.builtin.models.hf import HfModel
from pipeline_kit.builtin.tokenizers.configs import HfTokenizerConfig
from pipeline_kit.builtin.tokenizers.hf import HfTokenizer
from pipeline_kit.checkpoint import CheckpointConfig, resolve_checkpoint
from pipeline_kit.outputs import split_rows
from pipeline_kit.padding import PaddingPolicy, collate
from pipeline_kit.stages import Model, StageContext
from pipeline_kit.testing.checkpoints import ARCHITECTURES, tiny_checkpoint
from pipeline_kit.types import Device, Example

__all__ = ["GRAPH_CASES", "GRAPH_HEADS", "GRAPH_TEXTS", "GraphContexts", "assert_answers_of_hf", "start_python"]

GRAPH_HEADS = (
    "sequence-classification",
    "base",
    "token-classification",
    "question-answering",
    "masked-lm",
    "multiple-choice",
)
"""The heads of ``model=hf``, the most used one first."""

GRAPH_CASES: tuple[tuple[str, str], ...] = (
    *((name, GRAPH_HEADS[0]) for name in ("albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "gpt2")),
    *((name, GRAPH_HEADS[0]) for name in ("llama", "modernbert", "mpnet", "t5", "xlm-roberta", "xlnet")),
    ("bert", "base"),
    ("t5", "base"),
    ("roberta", "token-classification"),
    ("distilbert", "question-answering"),
    ("roberta", "question-answering"),
    ("modernbert", "masked-lm"),
    ("xlm-roberta", "masked-lm"),
    ("bert", "multiple-choice"),
    ("distilbert", "multiple-choice"),
)
"""Architectures and heads that differ in what their graphs take and give."""

GRAPH_TEXTS: tuple[Example, ...] = (
    "good",
    "bad and very dull day again",
    "ok",
    {"text": "good one", "text_pair": "bad"},
    "a b c d e f g h i j k l m",
    "good " * 90,
)
"""Texts of many lengths, one of them cut, and a pair."""

_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")


class GraphContexts:
    """Makes contexts for tiny checkpoints of one layer; the same arguments give the same one."""

    def __init__(self, folder: Path) -> None:
        """Write the checkpoints below `folder`."""
        self._folder = folder
        self._made: dict[Any, StageContext] = {}

    def __call__(self, architecture: str, head: str = GRAPH_HEADS[0], **options: Any) -> StageContext:
        """Give the context, with a tokenizer.

        :param options: for :func:`~pipeline_kit.testing.tiny_checkpoint`.
        :raises ValueError: if transformers has no such head of this architecture.
        """
        key = (architecture, head, *options.items())
        if key not in self._made:
            one_layer = {name: 1 for name in _LAYERS if name in ARCHITECTURES[architecture].sizes}
            folder = Path(mkdtemp(dir=self._folder))
            tiny_checkpoint(folder, architecture, head=head, **{**one_layer, **options})
            context = StageContext(resolve_checkpoint(CheckpointConfig(path=str(folder))), Device(), head)
            self._made[key] = replace(context, tokenizer=HfTokenizer(HfTokenizerConfig(), context))
        return self._made[key]


def assert_answers_of_hf(
    stage: Model, context: StageContext, tolerance: float, texts: Sequence[Example] = GRAPH_TEXTS
) -> None:
    """Compare `stage` with ``model=hf``: the texts together, padded on each side that it supports, and each alone."""
    theirs = HfModel(HfModelConfig(), context)
    tokenizer = context.tokenizer
    assert tokenizer is not None
    assert stage.supported_sides == theirs.supported_sides
    encodings = tokenizer.encode(texts)
    together = [(side, encodings) for side in sorted(theirs.supported_sides)]
    for side, some in [*together, *(("right", [encoding]) for encoding in encodings)]:
        batch = collate(some, PaddingPolicy("longest", side, tokenizer.pad_token_id or 0), "cpu")
        found, expected = stage.forward(batch), theirs.forward(batch)
        assert set(found.tensors) == set(expected.tensors)
        assert found.per_token == expected.per_token
        for mine, other in zip(split_rows(found, batch), split_rows(expected, batch), strict=True):
            for name, value in other.items():
                np.testing.assert_allclose(mine[name], value, rtol=0, atol=tolerance)


def start_python(program: str, *arguments: str, cache: Path) -> subprocess.Popen[str]:
    """Start a process that sees the modules of this one and keeps its graphs below `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
