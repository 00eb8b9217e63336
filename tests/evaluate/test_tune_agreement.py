"""How results are held against those of float32, for the results of every task."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.evaluate.likeness import compare_results, is_varied
from pipeline_kit.tune.trial import AccuracyLimits

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
RESULTS = st.lists(st.dictionaries(st.sampled_from(("label", "score", "labels", "masks", "x")), VALUES), max_size=4)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(RESULTS)
def test_results_agree_with_themselves_whatever_they_hold(results: list[dict[str, Any]]) -> None:
    found = compare_results(results, deepcopy(results))
    assert (found.agreement, found.not_finite, found.rows) == (1.0, 0, len(results))
    assert not any(found.differences.values())
    is_varied(results)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=6), st.data())
def test_each_other_label_is_one_row_less(labels: list[str], data: st.DataObject) -> None:
    wrong = data.draw(st.sets(st.integers(0, len(labels) - 1)))
    mine = [{"label": label, "score": 0.5} for label in labels]
    other = [{"label": label + "?" * (i in wrong), "score": 0.75} for i, label in enumerate(labels)]
    found = compare_results(mine, other)
    assert found.agreement == pytest.approx(1 - len(wrong) / len(labels))
    assert found.differences == {"score": 0.25}


def best(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"label": label, "score": score} for label, score in pairs]


@pytest.mark.parametrize(
    ("mine", "theirs", "agreement", "differences"),
    [
        # lower places of a ranked list may change; numbers are compared by name
        (
            {"labels": best(("a", 0.6), ("b", 0.3), ("c", 0.1))},
            {"labels": best(("a", 0.5), ("c", 0.3), ("b", 0.2))},
            1.0,
            {"labels.score": 0.2},
        ),
        (
            {"labels": best(("a", 0.6), ("b", 0.4))},
            {"labels": best(("b", 0.5), ("a", 0.5))},
            0.0,
            {"labels.score": 0.1},
        ),
        ({"ranking": [{"index": 2, "score": 1.0}]}, {"ranking": [{"index": 1, "score": 1.0}]}, 0.0, {}),
        (
            {"masks": [best(("a", 0.5), ("b", 0.1))]},
            {"masks": [best(("a", 0.5), ("z", 0.1))]},
            1.0,
            {"masks.score": 0.0},
        ),
        ({"masks": [best(("a", 0.5))]}, {"masks": [best(("a", 0.5)), best(("a", 0.5))]}, 0.0, {}),
        # entities all count, also the last, even where their scores happen to fall
        (
            {"entities": best(("PER", 0.9), ("LOC", 0.8))},
            {"entities": best(("PER", 0.9), ("ORG", 0.8))},
            0.0,
            {"entities.score": 0.0},
        ),
        ({"entities": best(("PER", 0.9))}, {"entities": []}, 0.0, {}),
        ({"entities": []}, {"entities": []}, 1.0, {}),
        # whole numbers are places in the text, not quantities
        ({"answer": "x", "start": 3, "score": 0.5}, {"answer": "x", "start": 4, "score": 0.5}, 0.0, {"score": 0.0}),
        ({"choice": 1, "scores": [0.5, 0.5]}, {"choice": 1, "scores": [0.25, 0.75]}, 1.0, {"scores": 0.25}),
        ({"text": "one"}, {"text": "One"}, 0.0, {}),
        ({"text": "one"}, {"words": "one"}, 0.0, {}),
        ({"flag": True}, {"flag": 1}, 0.0, {}),
        ({"score": 1.0}, {"score": 1}, 1.0, {"score": 0.0}),
        (
            {"labels": ["A", "B"], "logits": [4.0, 3.0]},
            {"labels": ["A", "B"], "logits": [4.0, 2.5]},
            1.0,
            {"logits": 0.5},
        ),
    ],
)
def test_what_counts_as_the_same_answer(
    mine: dict[str, Any], theirs: dict[str, Any], agreement: float, differences: dict[str, float]
) -> None:
    found = compare_results([mine], [theirs], {"answers", "labels", "masks", "ranking"})
    assert found.agreement == agreement
    assert found.differences == pytest.approx(differences)


def test_vectors_agree_by_their_cosine() -> None:
    near = compare_results([{"embedding": [1.0, 0.0]}], [{"embedding": [2.0, 0.02]}])
    assert (near.agreement, near.differences) == (1.0, {"embedding": 1.0})
    assert near.smallest_cosine == pytest.approx(0.99995)
    far = compare_results([{"vectors": [[1.0, 0.0], [1.0, 0.0]]}], [{"vectors": [[1.0, 0.0], [0.0, 1.0]]}])
    assert (far.agreement, far.smallest_cosine) == (0.0, 0.0)
    assert compare_results([{"vectors": [[1.0, 0.0]]}], [{"vectors": [[1.0]]}]).agreement == 0.0
    zeros = compare_results([{"embedding": [0.0, 0.0]}] * 2, [{"embedding": [0.0, 0.0]}, {"embedding": [1.0, 0.0]}])
    assert zeros.agreement == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_never_passes(bad: float) -> None:
    for mine, theirs in (({"score": 0.5}, {"score": bad}), ({"embedding": [0.5, 0.1]}, {"embedding": [0.5, bad]})):
        found = compare_results(
            [{"label": "a", **mine}] * 200, [{"label": "a", **mine}] * 199 + [{"label": "a", **theirs}]
        )
        assert found.not_finite == 1
        assert AccuracyLimits(None, 0.0).why_not(found) == "1 numbers are not finite"


def test_labels_that_never_change_say_nothing() -> None:
    same = [{"label": "a", "score": 0.1 * i, "truncated": i} for i in range(5)]
    assert not is_varied(same)
    assert not is_varied([])
    assert not is_varied([{"labels": best(("a", 0.5))}, {"labels": best(("a", 0.7))}])
    assert is_varied([*same, {"label": "b", "score": 0.1}])
    assert is_varied([{"embedding": [0.5, 0.25]}])
    quality = compare_results([{"label": "a", "score": 0.5}], [{"label": "a", "score": 0.6}])
    assert AccuracyLimits(None, 0.99).why_not(quality) is None
    assert "a difference of 0.1 is over 0.01" in str(AccuracyLimits(None, 0.99, varied=False).why_not(quality))
    assert AccuracyLimits(0.2, 0.99, varied=False).why_not(quality) is None
