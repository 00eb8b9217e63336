"""Texts of several windows: how classification merges them, held against transformers' own logits window by window."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers
from harness import checkpoint, pipeline_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit import Pipeline
from pipeline_kit.builtin.tasks.common.merge import window_weights
from pipeline_kit.builtin.tokenizers.encode import SpanLayout
from pipeline_kit.builtin.tokenizers.encode import windows as windows_of
from pipeline_kit.contract.types import Encoding, Example
from pipeline_kit.errors import ConfigError
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.testing import WordTokenizer, WordTokenizerConfig

Merge = Literal["mean", "max"]
MERGES: tuple[Merge, ...] = ("mean", "max")
TOLERANCE = 1e-5
LENGTH, OVERLAP = 24, 6
LONG: tuple[Example, ...] = (
    "It was a terrible film, and the plot was so dull that I never want to see it again! " * 3,
    "What a long day. I love it and I hate it, 🙂 so it is what it is: עברית e\u0301. " * 4,
    {"text": "Is it good?", "text_pair": "I hate this movie, but the food was not bad at all. " * 5},
    {"text": "We are waiting for a Hugging Face course in Paris. " * 6, "text_pair": "so what"},
)
SHORT: tuple[Example, ...] = ("I love this.", "a", {"text": "good", "text_pair": "bad"}, "not bad at all, a long day")


@dataclass(frozen=True, eq=False)
class Case:
    """A kind of checkpoint."""

    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.architecture, *(f"{key}={value}" for key, value in self.options.items())])


THREE = ("BAD", "MIXED", "GOOD")
CASES = (
    Case("bert"),
    Case("distilbert", {"labels": THREE, "problem_type": "multi_label_classification"}),
    Case("mpnet", {"labels": ("LABEL_0",), "problem_type": "regression"}),
    Case("xlnet", {"labels": THREE}),
)


SPLIT = {"overflow": "window", "max_length": LENGTH, "overlap": OVERLAP}


@functools.cache
def pipe_of(case: Case, merge: Merge | None = None) -> Pipeline:
    """A pipeline that splits texts and merges by a rule; None: one that cuts them."""
    options = {"max_length": LENGTH} if merge is None else SPLIT
    folder = checkpoint(case.architecture, **case.options)
    merged: dict[str, Any] = {} if merge is None else {"merge": merge}
    return pipeline_of(
        "text-classification", folder, tokenizer=options, model={"linear": "eager"}, top_k=None, **merged
    )


def labels_of(case: Case) -> Sequence[str]:
    found: Sequence[str] = case.options.get("labels", ("NEGATIVE", "POSITIVE"))
    return found


def function(case: Case) -> Any:
    problem, labels = case.options.get("problem_type"), labels_of(case)
    if problem == "regression":
        return lambda logits: logits
    if problem == "multi_label_classification" or len(labels) == 1:
        return torch.sigmoid
    return lambda logits: torch.softmax(logits, dim=-1)


def by_hand(case: Case, network: Any, tokenizer: Any, example: Example, merge: Merge) -> tuple[list[float], int]:
    """Merge the raw logits of each window; the windows are those that transformers' own tokenizer gives."""
    texts = [example] if isinstance(example, str) else [example["text"], example["text_pair"]]
    long = max(range(len(texts)), key=lambda i: len(tokenizer(texts[i], add_special_tokens=False)["input_ids"]))
    rows = tokenizer(
        *texts,
        truncation="only_first" if long == 0 else "only_second",
        max_length=LENGTH,
        stride=OVERLAP,
        return_overflowing_tokens=True,
    )
    given = {name: rows[name] for name in ("input_ids", "token_type_ids") if name in rows}
    with torch.inference_mode():
        found = [
            network(**{name: torch.tensor([ids[i]]) for name, ids in given.items()}).logits[0]
            for i in range(len(rows["input_ids"]))
        ]
    logits = torch.stack(found).double()
    counts = [rows.sequence_ids(i).count(long) for i in range(len(logits))]
    # A token that two windows share counts half in each of them.
    shared = [OVERLAP / 2 * ((i > 0) + (i + 1 < len(counts))) for i in range(len(counts))]
    weights = torch.tensor([count - share for count, share in zip(counts, shared, strict=True)]).double()[:, None]
    scores = function(case)
    mean = (scores(logits) * weights).sum(0) / weights.sum()
    merged = mean if merge == "mean" else scores(logits).amax(0)
    return merged.tolist(), len(logits)


def by_label(result: Mapping[str, Any], labels: Sequence[str]) -> list[float]:
    found = {item["label"]: item["score"] for item in result["labels"]}
    return [found[label] for label in labels]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merged_scores_are_those_made_by_hand_of_each_windows_logits(case: Case) -> None:
    labels, folder = labels_of(case), checkpoint(case.architecture, **case.options)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first = []
    for merge in MERGES:
        results = pipe_of(case, merge)(list(LONG))
        for example, result in zip(LONG, results, strict=True):
            expected, windows = by_hand(case, network, tokenizer, example, merge)
            assert windows > 2
            assert result["windows"] == windows
            assert "truncated" not in result
            np.testing.assert_allclose(by_label(result, labels), expected, atol=TOLERANCE, rtol=TOLERANCE)
            best = labels[int(np.argmax(expected))]
            assert (result["label"], result["score"]) == (best, pytest.approx(max(expected), abs=TOLERANCE))
        first.append(by_label(results[0], labels))
    # The checkpoints are of use only if the rules give clearly different scores on them.
    assert np.abs(np.subtract(first[0], first[1])).max() > 0.01


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_text_that_fits_has_the_very_answer_it_has_without_windows(case: Case, merge: Merge) -> None:
    alone = [pipe_of(case)([text])[0] for text in SHORT]
    split = pipe_of(case, merge)
    assert [split([text])[0] for text in SHORT] == alone
    assert all("windows" not in result for result in alone)
    mixed = replace(split, batching=BatchingPolicy(False, None, 1))([*LONG[:2], *SHORT, *LONG[2:]])
    assert mixed[2 : 2 + len(SHORT)] == alone


PLAIN = checkpoint(labels=THREE)
CUT, WINDOWS = {"max_length": LENGTH}, {"max_length": LENGTH, "overflow": "window"}


def plain(tokenizer: Mapping[str, Any], **postprocessor: Any) -> Pipeline:
    model = {"linear": "eager"}
    return pipeline_of(
        "text-classification", PLAIN, tokenizer=tokenizer, model=model, **{"top_k": None, **postprocessor}
    )


def test_a_text_that_is_cut_says_so_and_one_in_windows_says_how_many() -> None:
    [cut] = plain(CUT)([LONG[0]])
    [split] = plain(WINDOWS)([LONG[0]])
    assert set(cut) == {"label", "score", "labels", "truncated"}
    assert set(split) == {"label", "score", "labels", "windows"}
    tokens = transformers.AutoTokenizer.from_pretrained(PLAIN)(LONG[0])["input_ids"]
    assert cut["truncated"] == len(tokens) - LENGTH


def test_the_end_of_a_long_text_counts() -> None:
    text, other = "I love it. " * 40, "I love it. " * 40 + "What a terrible, dull movie!" * 5
    cut = plain(CUT)
    assert cut(text)["score"] == cut(other)["score"]
    for merge in MERGES:
        pipe = plain({**WINDOWS, "overlap": 2}, merge=merge)
        assert abs(pipe(text)["score"] - pipe(other)["score"]) > 1e-4


def test_thresholds_hold_for_the_merged_scores() -> None:
    [result] = plain(WINDOWS, thresholds={label: 1.0 for label in THREE})([LONG[0]])
    assert result["label"] is None
    assert result["labels"] == []
    assert result["windows"] > 2


def test_a_very_long_text() -> None:
    result = plain(WINDOWS)("I love this movie and I hate it. " * 3000)
    assert result["windows"] > 2000
    assert sum(item["score"] for item in result["labels"]) == pytest.approx(1, abs=1e-5)


def test_a_rule_that_is_not_there_is_refused() -> None:
    for wrong, said in (
        ("meen", r"postprocessor\.merge: 'meen'.*Did you mean 'mean'"),
        ("first", r"postprocessor\.merge"),
    ):
        with pytest.raises(ConfigError, match=said):
            plain({}, merge=wrong)


# The weights of windows.


def windows(*spans: tuple[int, int]) -> list[Encoding]:
    return [
        Encoding([1] * (end - begin + 2), window=i, token_span=(begin, end)) for i, (begin, end) in enumerate(spans)
    ]


def test_weights_by_hand() -> None:
    assert window_weights(windows((0, 7))).tolist() == [1]
    assert window_weights([Encoding([1, 2, 3])]).tolist() == [1]
    assert window_weights(windows((0, 5), (5, 10), (10, 12))).tolist() == [5, 5, 2]
    assert window_weights(windows((0, 6), (4, 10))).tolist() == [5, 5]
    # The last window repeats four tokens for the sake of one more.
    assert window_weights(windows((0, 6), (2, 7))).tolist() == [4, 3]
    # Tokens 4 and 5 are in all three.
    assert window_weights(windows((0, 6), (2, 8), (4, 9))) == pytest.approx([2 + 2 / 2 + 2 / 3, 5 / 3 + 1, 8 / 3])
    # A plugin's windows may leave a gap.
    assert window_weights(windows((0, 3), (5, 9))).tolist() == [3, 4]


def test_without_spans_windows_weigh_as_much_as_they_have_tokens() -> None:
    assert window_weights([Encoding([1] * 4), Encoding([1] * 3, window=1)]).tolist() == [4, 3]
    assert window_weights([Encoding([1] * 4, token_span=(0, 2)), Encoding([1] * 3, window=1)]).tolist() == [4, 3]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_weights_add_up_to_the_tokens_of_the_text(count: int, room: int, data: Any) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    spans = [part for _, part in windows_of(SpanLayout(count + 2, (1,), (count,)), room + 2, overlap)]
    weights = window_weights(windows(*spans))
    if len(spans) == 1:
        assert weights.tolist() == [1]
        return
    holders = [sum(begin <= token < end for begin, end in spans) for token in range(count)]
    expected = [sum(1 / holders[token] for token in range(begin, end)) for begin, end in spans]
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    assert weights.sum() == pytest.approx(count)


@pytest.mark.parametrize("name", ["hf", "tokenizers_json"])
@pytest.mark.parametrize("example", LONG, ids=range(len(LONG)))
def test_a_span_says_which_tokens_of_the_text_a_window_holds(name: str, example: Example) -> None:
    tokenizer = plain({"name": name, **SPLIT}).tokenizer
    texts = [example] if isinstance(example, str) else [example["text"], example["text_pair"]]
    backend = transformers.AutoTokenizer.from_pretrained(PLAIN)
    ids = max((backend(text, add_special_tokens=False)["input_ids"] for text in texts), key=len)
    found = tokenizer.encode([example])
    assert len(found) > 2
    for window in found:
        assert window.token_span is not None
        begin, end = window.token_span
        held = ids[begin:end]
        assert any(list(window.input_ids[i : i + len(held)]) == held for i in range(len(window.input_ids)))
    assert found[0].token_span[0] == 0  # type: ignore[index]
    assert found[-1].token_span[1] == len(ids)  # type: ignore[index]
    assert tokenizer.encode(["short"])[0].token_span is None


def test_the_word_tokenizer_fills_spans_too() -> None:
    words = WordTokenizer(WordTokenizerConfig(max_length=6, overflow="window", overlap=1))
    assert [e.token_span for e in words.encode(["a b c d e f g h"])] == [(0, 4), (3, 7), (6, 8)]
    assert words.encode(["a b"])[0].token_span is None
