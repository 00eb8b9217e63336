"""The classification postprocessor: scores by hand, thresholds, windows, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.builtin.tasks.classification.stage import Classification, score_function
from pipeline_kit.builtin.tasks.options import ClassificationConfig
from pipeline_kit.contract.types import Encoding, ModelOutput, Result
from pipeline_kit.errors import ConfigError
from pipeline_kit.runtime.padding import PaddingPolicy, collate
from pipeline_kit.testing import tiny_stage_context

LABELS = ("neg", "mid", "pos")
Windows = Sequence[Sequence[float]]


def classify(
    windows: Sequence[Windows],
    *,
    tokens: Sequence[Sequence[int]] | None = None,
    labels: Sequence[str] = LABELS,
    checkpoint: dict[str, Any] | None = None,
    **options: Any,
) -> list[Result]:
    """Classify examples given as the logits of their windows; `tokens` counts each window's tokens."""
    stage = Classification(ClassificationConfig(**options), tiny_stage_context(labels=labels, config=checkpoint))
    counts = tokens or [[4] * len(example) for example in windows]
    encodings = [[Encoding([1] * n) for n in row] for row in counts]
    flat = [encoding for row in encodings for encoding in row]
    batch = collate(flat, PaddingPolicy("longest"), "cpu")
    logits = torch.tensor([row for example in windows for row in example])
    scores = iter(stage.reduce(ModelOutput({"logits": logits}), batch)["scores"].numpy())
    outputs = [[{"scores": next(scores)} for _ in example] for example in windows]
    return stage(["text"] * len(windows), encodings, outputs)


@pytest.mark.parametrize(
    ("problem_type", "labels", "expected"),
    [
        (None, 1, "sigmoid"),
        (None, 2, "softmax"),
        ("single_label_classification", 1, "sigmoid"),
        ("single_label_classification", 3, "softmax"),
        ("multi_label_classification", 3, "sigmoid"),
        ("regression", 1, "none"),
        ("regression", 3, "none"),
    ],
)
def test_auto_decides_by_problem_type_and_label_count(problem_type: str | None, labels: int, expected: str) -> None:
    assert score_function({"problem_type": problem_type}, labels) == expected
    assert score_function({} if problem_type is None else {"problem_type": problem_type}, labels) == expected


def test_softmax_by_hand() -> None:
    [result] = classify([[[0.0, math.log(2.0), 0.0]]])
    assert result == {"label": "mid", "score": pytest.approx(0.5)}
    assert type(result["score"]) is float


def test_sigmoid_by_hand() -> None:
    [result] = classify([[[0.0, -1.0, math.log(3.0)]]], checkpoint={"problem_type": "multi_label_classification"})
    assert result == {"label": "pos", "score": pytest.approx(0.75)}


def test_regression_gives_the_raw_value() -> None:
    [result] = classify([[[-3.25]]], labels=["LABEL_0"], checkpoint={"problem_type": "regression"})
    assert result == {"label": "LABEL_0", "score": -3.25}


def test_one_label_gives_a_sigmoid() -> None:
    assert classify([[[0.0]]], labels=["spam"]) == [{"label": "spam", "score": 0.5}]


def test_the_function_asked_for_wins_over_the_checkpoint() -> None:
    logits = [[[1.5, -2.0, 0.25]]]
    multi = {"problem_type": "multi_label_classification"}
    assert classify(logits, function="none")[0]["score"] == 1.5
    soft = classify(logits, function="softmax", checkpoint=multi, top_k=None)[0]["labels"]
    assert sum(item["score"] for item in soft) == pytest.approx(1.0)


def test_top_k_lists_the_best_first_and_ties_in_label_order() -> None:
    [result] = classify([[[1.0, 2.0, 1.0]]], function="none", top_k=None)
    assert result["labels"] == [
        {"label": "mid", "score": 2.0},
        {"label": "neg", "score": 1.0},
        {"label": "pos", "score": 1.0},
    ]
    [result] = classify([[[1.0, 1.0, 1.0]]], function="none", top_k=2)
    assert result["label"] == "neg"
    assert [item["label"] for item in result["labels"]] == ["neg", "mid"]


def test_ties_of_many_labels_keep_the_label_order() -> None:
    labels = [f"label {i}" for i in range(40)]
    [result] = classify([[[float(i % 2) for i in range(40)]]], labels=labels, function="none", top_k=None)
    assert [item["label"] for item in result["labels"]] == labels[1::2] + labels[::2]


def test_a_label_below_its_threshold_is_neither_chosen_nor_listed() -> None:
    rows = [[[5.0, 4.0, 1.0]], [[5.0, 3.0, 1.0]]]
    first, second = classify(rows, function="none", top_k=None, thresholds={"neg": 5.5, "mid": 4.0})
    assert first["label"] == "mid"
    assert [item["label"] for item in first["labels"]] == ["mid", "pos"]
    assert second == {"label": "pos", "score": 1.0, "labels": [{"label": "pos", "score": 1.0}]}


def test_no_label_reaching_its_threshold_keeps_every_key() -> None:
    everything = {label: 0.9 for label in LABELS}
    [result] = classify([[[0.0, math.log(2.0), 0.0]]], thresholds=everything, top_k=None)
    assert result == {"label": None, "score": pytest.approx(0.5), "labels": []}
    [result] = classify([[[0.0, math.log(2.0), 0.0]]], thresholds=everything)
    assert result == {"label": None, "score": pytest.approx(0.5)}


def test_a_score_equal_to_its_threshold_reaches_it() -> None:
    score = float(np.float32(0.9))
    assert score < 0.9
    [result] = classify([[[0.9]]], labels=["a"], function="none", thresholds={"a": 0.9})
    assert result == {"label": "a", "score": score}


def test_thresholds_of_unknown_labels_and_out_of_range_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        classify([[[0.0, 0.0, 0.0]]], thresholds={"positive": 0.5, "mid": 1.5, "neg": 0.5})
    unknown, beyond = caught.value.faults
    assert unknown.key == "postprocessor.thresholds.positive"
    assert unknown.allowed == LABELS
    assert beyond.key == "postprocessor.thresholds.mid"
    assert "1.5" in str(beyond)


def test_the_closest_label_is_suggested() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'pos'"):
        classify([[[0.0, 0.0, 0.0]]], thresholds={"poss": 0.5})


def test_raw_scores_may_have_any_threshold() -> None:
    assert classify([[[7.0, 9.0, 0.0]]], function="none", thresholds={"mid": 10.0})[0]["label"] == "neg"


def test_windows_are_merged_by_tokens_or_by_the_largest_score() -> None:
    windows = [[[4.0, 0.0, 1.0], [0.0, 8.0, 1.0]], [[9.0, 0.0, 0.0]]]
    tokens = [[3, 1], [5]]
    mean, alone = classify(windows, tokens=tokens, function="none", top_k=None)
    assert {item["label"]: item["score"] for item in mean["labels"]} == {"neg": 3.0, "mid": 2.0, "pos": 1.0}
    assert alone["score"] == 9.0
    largest, alone = classify(windows, tokens=tokens, function="none", top_k=None, merge="max")
    assert {item["label"]: item["score"] for item in largest["labels"]} == {"neg": 4.0, "mid": 8.0, "pos": 1.0}
    assert alone["score"] == 9.0


def test_merged_scores_near_the_largest_float_do_not_overflow() -> None:
    big = 3e38
    [result] = classify([[[big, 0.0, 0.0], [big, 0.0, 0.0]]], function="none", tokens=[[500, 500]])
    assert result["score"] == pytest.approx(big)


logits = st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3)


@settings(max_examples=60)
@given(st.lists(logits, min_size=1, max_size=8), st.sampled_from(["softmax", "sigmoid"]), st.randoms())
def test_scores_are_probabilities_and_rows_do_not_depend_on_their_order(
    rows: list[list[float]], function: str, random: Any
) -> None:
    results = classify([[row] for row in rows], function=function, top_k=None)
    json.dumps(results, allow_nan=False)
    for result in results:
        scores = [item["score"] for item in result["labels"]]
        assert all(0 <= score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
        assert result["labels"][0] == {"label": result["label"], "score": result["score"]}
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = classify([[rows[i]] for i in order], function=function, top_k=None)
    for result, place in zip(shuffled, order, strict=True):
        expected = {item["label"]: item["score"] for item in results[place]["labels"]}
        assert {item["label"]: item["score"] for item in result["labels"]} == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40)
@given(st.lists(logits, min_size=2, max_size=4), st.sampled_from(["mean", "max"]))
def test_a_merged_score_lies_between_those_of_its_windows(rows: list[list[float]], merge: str) -> None:
    [result] = classify([rows], function="softmax", top_k=None, merge=merge)
    scores = np.array([torch.softmax(torch.tensor(row), -1).tolist() for row in rows])
    for item in result["labels"]:
        column = scores[:, LABELS.index(item["label"])]
        assert column.min() - 1e-6 <= item["score"] <= column.max() + 1e-6
