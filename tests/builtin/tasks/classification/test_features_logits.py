"""The features and logits postprocessors, by hand and behind the tiny stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.builtin.tasks.classification.stage import Logits
from pipeline_kit.builtin.tasks.embedding.features import Features
from pipeline_kit.builtin.tasks.options import FeaturesConfig, LogitsConfig
from pipeline_kit.contract.types import Encoding, Result, RowOutput
from pipeline_kit.errors import ExampleError, StageError
from pipeline_kit.testing import WordTokenizer, WordTokenizerConfig, tiny_stage_context


def features(windows: Sequence[Encoding], rows: Sequence[Any], **options: Any) -> Result:
    stage = Features(FeaturesConfig(**options), tiny_stage_context())
    outputs: list[RowOutput] = [{"last_hidden_state": np.asarray(row, dtype=np.float32)} for row in rows]
    [result] = stage(["text"], [windows], [outputs])
    json.dumps(result, allow_nan=False)
    return result


def words(max_length: int | None = 64, overlap: int = 1) -> WordTokenizer:
    return WordTokenizer(WordTokenizerConfig(max_length=max_length, overflow="window", overlap=overlap))


def test_tokens_and_vectors_by_hand() -> None:
    windows = words().encode(["good day"])
    rows = [[[0.0, 0.5], [1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]]
    assert features(windows, rows) == {"tokens": ["[CLS]", "good", "day", "[SEP]"], "vectors": rows[0]}
    without = features(windows, rows, special_tokens=False)
    assert without == {"tokens": ["good", "day"], "vectors": rows[0][1:3]}
    assert type(without["vectors"][0][0]) is float


def test_an_empty_text_has_no_vectors_but_special_ones() -> None:
    windows = words().encode([""])
    assert features(windows, [[[0.0], [1.0]]])["tokens"] == ["[CLS]", "[SEP]"]
    assert features(windows, [[[0.0], [1.0]]], special_tokens=False) == {"tokens": [], "vectors": []}


def test_a_token_that_windows_share_appears_once_with_its_first_vector() -> None:
    windows = words(max_length=5, overlap=1).encode(["a b c d e"])
    assert [w.tokens for w in windows] == [["[CLS]", "a", "b", "c", "[SEP]"], ["[CLS]", "c", "d", "e", "[SEP]"]]
    rows = [[[float(10 * w + i)] for i in range(5)] for w in range(2)]
    result = features(windows, rows, special_tokens=False)
    assert result == {"tokens": ["a", "b", "c", "d", "e"], "vectors": [[1.0], [2.0], [3.0], [12.0], [13.0]]}
    framed = features(windows, rows)
    assert framed["tokens"] == ["[CLS]", "a", "b", "c", "[SEP]", "[CLS]", "d", "e", "[SEP]"]


def test_the_bytes_of_one_character_are_told_apart_by_their_number() -> None:

    def alike(count: int, window: int) -> Encoding:
        """Make tokens that have id and place in common."""
        zeros = [0] * count
        return Encoding([7] * count, None, zeros, [(0, 1)] * count, ["x"] * count, zeros, zeros, 0, window)

    rows = [[[1.0], [2.0]], [[1.0], [2.0], [3.0]]]
    assert features([alike(2, 0), alike(2, 1)], [rows[0], rows[0]])["vectors"] == [[1.0], [2.0]]
    assert features([alike(2, 0), alike(3, 1)], rows)["vectors"] == [[1.0], [2.0], [3.0]]
    three = [alike(2, 0), alike(2, 1), alike(3, 2)]
    assert features(three, [rows[0], rows[0], rows[1]])["vectors"] == [[1.0], [2.0], [3.0]]


def test_a_pair_that_each_window_repeats_appears_once() -> None:
    windows = words(max_length=6, overlap=0).encode([{"text": "a b c d", "text_pair": "a"}])
    assert len(windows) == 2
    result = features(windows, [np.zeros((len(w.input_ids), 1)) for w in windows], special_tokens=False)
    assert result["tokens"] == ["a", "b", "a", "c", "d"]


def test_a_token_of_the_text_is_not_taken_for_one_of_the_pair_at_the_same_place() -> None:
    windows = words(max_length=7, overlap=0).encode([{"text": "b c a", "text_pair": "d   a"}])
    assert [w.tokens[1:-1] for w in windows if w.tokens] == [["b", "c", "[SEP]", "d", "a"], ["a", "[SEP]", "d", "a"]]
    rows = [[[10.0 * w + i] for i in range(len(window.input_ids))] for w, window in enumerate(windows)]
    result = features(windows, rows, special_tokens=False)
    assert result == {"tokens": ["b", "c", "d", "a", "a"], "vectors": [[1.0], [2.0], [4.0], [5.0], [11.0]]}


@settings(max_examples=50)
@given(st.text(alphabet="ab .é漢", max_size=40), st.integers(5, 12), st.integers(0, 2))
def test_windows_give_the_tokens_of_the_whole_text(text: str, max_length: int, overlap: int) -> None:
    [whole] = words(max_length=None).encode([text])
    windows = words(max_length, overlap).encode([text])
    result = features(windows, [np.zeros((len(w.input_ids), 2)) for w in windows], special_tokens=False)
    assert whole.tokens is not None
    assert result["tokens"] == list(whole.tokens[1:-1])
    assert len(result["vectors"]) == len(result["tokens"])


def test_features_refuse_what_they_cannot_use() -> None:
    windows = words().encode(["good day"])
    with pytest.raises(StageError, match="3 vectors for 4 tokens"):
        features(windows, [np.zeros((3, 2))])
    with pytest.raises(ExampleError, match="finite"):
        features(windows, [np.full((4, 2), np.nan)])


def logits(rows: Sequence[Sequence[Sequence[float]]], tokens: Sequence[Sequence[int]] | None = None) -> list[Result]:
    stage = Logits(LogitsConfig(), tiny_stage_context(labels=["no", "yes"]))
    counts = tokens or [[3] * len(example) for example in rows]
    outputs = [[{"logits": np.asarray(row, dtype=np.float32)} for row in example] for example in rows]
    return stage(["text"] * len(rows), [[Encoding([1] * n) for n in row] for row in counts], outputs)


def test_logits_by_hand() -> None:
    results = logits([[[-1.5, 20.0]], [[0.0, 0.25]]])
    assert results == [{"labels": ["no", "yes"], "logits": row} for row in ([-1.5, 20.0], [0.0, 0.25])]
    assert type(results[0]["logits"][0]) is float


def test_logits_of_windows_are_their_mean_by_tokens() -> None:
    assert logits([[[4.0, 0.0], [0.0, 8.0]]], [[3, 1]])[0]["logits"] == [3.0, 2.0]
