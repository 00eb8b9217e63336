"""The graph gives what ``model=hf`` gives, alone and in batches, padded on each side that it supports.

``PK_ONNXRUNTIME_MATRIX=1`` tries every architecture with every head, which takes a quarter of an hour.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pk_onnxruntime import OnnxRuntimeConfig
from pk_onnxruntime.stage import OnnxRuntimeModel

from pipeline_kit.builtin.models.configs import HfModelConfig
from pipeline_kit.builtin.models.hf import HfModel
from pipeline_kit.errors import CheckpointError
from pipeline_kit.outputs import split_rows
from pipeline_kit.padding import PaddingPolicy, collate
from pipeline_kit.types import Example

if TYPE_CHECKING:
    from onnx_fixtures import MakeContext

pytest_plugins = ("onnx_fixtures",)

TEXTS: list[Example] = [
    "good",
    "bad and very dull day again",
    "ok",
    {"text": "good one", "text_pair": "bad"},
    "a b c d e f g h i j k l m",
    "good " * 90,
]

HEADS = (
    "sequence-classification",
    "base",
    "token-classification",
    "question-answering",
    "masked-lm",
    "multiple-choice",
)
REFUSED = {"big_bird", "funnel", "longformer", "mbart"}
FURTHER = {"convbert": 5e-5, "squeezebert": 5e-5}  # random weights of theirs make more of the order of a sum
WITHOUT = {"mobilebert", "m2m_100", "mamba", "marian", "pegasus"}
CASES = [
    *((name, HEADS[0]) for name in ("albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "gpt2", "llama")),
    *((name, HEADS[0]) for name in ("modernbert", "mpnet", "t5", "xlm-roberta", "xlnet")),
    ("bert", "base"),
    ("t5", "base"),
    ("roberta", "token-classification"),
    ("distilbert", "question-answering"),
    ("roberta", "question-answering"),
    ("modernbert", "masked-lm"),
    ("xlm-roberta", "masked-lm"),
    ("bert", "multiple-choice"),
    ("distilbert", "multiple-choice"),
]
if os.environ.get("PK_ONNXRUNTIME_MATRIX"):
    from pipeline_kit.testing.checkpoints import ARCHITECTURES

    CASES = [(name, head) for name in sorted(set(ARCHITECTURES) - REFUSED - WITHOUT) for head in HEADS]


@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_the_answers_are_those_of_hf(architecture: str, head: str, make_context: MakeContext) -> None:
    try:
        context = make_context(architecture, head)
    except ValueError:  # only in the matrix
        pytest.skip(f"transformers has no {head} of a {architecture}")
    theirs = HfModel(HfModelConfig(), context)
    ours = OnnxRuntimeModel(OnnxRuntimeConfig(), context)
    tokenizer = context.tokenizer
    assert tokenizer is not None
    assert ours.supported_sides == theirs.supported_sides
    encodings = tokenizer.encode(TEXTS)
    together = [(side, encodings) for side in sorted(theirs.supported_sides)]
    for side, some in [*together, *(("right", [encoding]) for encoding in encodings)]:
        batch = collate(some, PaddingPolicy("max_length", side, tokenizer.pad_token_id or 0, max_length=1), "cpu")
        found, expected = ours.forward(batch), theirs.forward(batch)
        assert set(found.tensors) == set(expected.tensors)
        assert found.per_token == expected.per_token
        for mine, other in zip(split_rows(found, batch), split_rows(expected, batch), strict=True):
            for name, value in other.items():
                np.testing.assert_allclose(mine[name], value, rtol=0, atol=FURTHER.get(architecture, 1e-5))


def test_a_decoder_without_a_padding_token(make_context: MakeContext) -> None:
    test_the_answers_are_those_of_hf("gpt2", HEADS[0], lambda *names: make_context(*names, pad_token=False))


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_what_cannot_be_exported_is_refused(architecture: str, make_context: MakeContext) -> None:
    """The message names the architecture and what to use instead; it is one line, not a trace."""
    with pytest.raises(CheckpointError) as caught:
        OnnxRuntimeModel(OnnxRuntimeConfig(), make_context(architecture))
    message = str(caught.value)
    assert f"is a {architecture}, which cannot be exported to ONNX with the head sequence-classification" in message
    assert message.endswith("Use model=hf")
    assert "\n" not in message
    assert len(message) < 600
