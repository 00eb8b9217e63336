"""The graph returns what ``model=hf`` returns, alone and in batches, padded on each side that it supports.

``PK_ONNXRUNTIME_MATRIX=1`` tries every architecture with every head, which takes a quarter of an hour.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from pk_onnxruntime import OnnxRuntimeConfig
from pk_onnxruntime.stage import OnnxRuntimeModel

from pipeline_kit.kit import CheckpointError
from pipeline_kit.testing import GRAPH_CASES, GRAPH_HEADS, GraphContexts, assert_answers_of_hf

pytest_plugins = ("onnx_fixtures",)

REFUSED = {"big_bird", "funnel", "longformer", "mbart"}
FURTHER = {"convbert": 5e-5, "squeezebert": 5e-5}  # random weights of theirs make more of the order of a sum
WITHOUT = {"mobilebert", "m2m_100", "mamba", "marian", "pegasus"}
ALIKE = {("albert", GRAPH_HEADS[0]), ("distilbert", GRAPH_HEADS[0]), ("gpt2", GRAPH_HEADS[0]), ("t5", GRAPH_HEADS[0])}
ALIKE |= {("modernbert", GRAPH_HEADS[0]), ("roberta", "token-classification")}
"""An export takes seconds: of these, other files export the architecture, and other cases the head."""
CASES = sorted(set(GRAPH_CASES) - ALIKE)
if os.environ.get("PK_ONNXRUNTIME_MATRIX"):
    from pipeline_kit.testing import ARCHITECTURES

    CASES = [(name, head) for name in sorted(set(ARCHITECTURES) - REFUSED - WITHOUT) for head in GRAPH_HEADS]


@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_the_answers_are_those_of_hf(architecture: str, head: str, make_context: GraphContexts) -> None:
    check(architecture, head, make_context)


def check(architecture: str, head: str, make_context: GraphContexts, **options: Any) -> None:
    try:
        context = make_context(architecture, head, **options)
    except ValueError:  # only in the matrix
        pytest.skip(f"transformers has no {head} of a {architecture}")
    ours = OnnxRuntimeModel(OnnxRuntimeConfig(), context)
    assert_answers_of_hf(ours, context, FURTHER.get(architecture, 1e-5))


def test_a_decoder_without_a_padding_token(make_context: GraphContexts) -> None:
    check("gpt2", GRAPH_HEADS[0], make_context, pad_token=False)


@pytest.mark.parametrize("architecture", ["big_bird", "mbart"])
def test_what_cannot_be_exported_is_refused(architecture: str, make_context: GraphContexts) -> None:
    """The message names the architecture and what to use instead; it is one line, not a trace."""
    with pytest.raises(CheckpointError) as caught:
        OnnxRuntimeModel(OnnxRuntimeConfig(), make_context(architecture))
    message = str(caught.value)
    assert f"is a {architecture}, which cannot be exported to ONNX with the head sequence-classification" in message
    assert message.endswith("Use model=hf")
    assert "\n" not in message
    assert len(message) < 600
