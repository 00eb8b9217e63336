"""Entities: tags to spans, spans against spans, in seqeval's manner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.builtin.tasks.entities.labels import spans_of_tags, split_tag
from pipeline_kit.builtin.tasks.entities.metrics import SpanEvaluator
from pipeline_kit.builtin.tasks.options import EntitiesConfig
from pipeline_kit.contract.evaluator import EvaluationContext
from pipeline_kit.errors import InputError, UsageError

sklearn_metrics = pytest.importorskip("sklearn.metrics")
FAST = settings(max_examples=60, deadline=None, derandomize=True)
NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def spans(how: Any = "first", **more: Any) -> SpanEvaluator:
    return SpanEvaluator(
        EvaluationContext("token-classification", NAMES, options=EntitiesConfig(aggregation=how), **more)
    )


def found(*entities: tuple[int, int, str]) -> list[dict[str, Any]]:
    return [{"entities": [{"start": start, "end": end, "label": label} for start, end, label in entities]}]


def words_of(tags: list[str], kinds: tuple[str, ...] = ("PER", "LOC", "MISC")) -> list[tuple[int, int, str]]:
    """Spans in words, from tags of words of one letter."""
    cut = [("", "O") if tag == "O" else split_tag(tag, kinds) for tag in tags]
    return [(start // 2, end // 2 + 1, label) for start, end, label in spans_of_tags(["x"] * len(tags), cut)]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("I-PER I-PER O I-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),  # IOB1
        ("I-PER B-PER I-PER", [(0, 1, "PER"), (1, 3, "PER")]),
        ("B-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("S-PER S-PER B-LOC I-LOC E-LOC", [(0, 1, "PER"), (1, 2, "PER"), (2, 5, "LOC")]),  # IOBES
        ("U-PER B-LOC L-LOC I-LOC", [(0, 1, "PER"), (1, 3, "LOC"), (3, 4, "LOC")]),  # BILOU
        ("E-PER E-PER", [(0, 1, "PER"), (1, 2, "PER")]),
        ("PER PER O LOC", [(0, 2, "PER"), (3, 4, "LOC")]),  # no prefixes
        ("E-mail E-mail", [(0, 2, "E-mail")]),
        ("O O", []),
        ("", []),
    ],
)
def test_tags_of_every_scheme(tags: str, expected: list[tuple[int, int, str]]) -> None:
    assert words_of(tags.split()) == expected


def conlleval(tags: list[str]) -> list[tuple[int, int, str]]:
    """The published rule in other words: cut before each tag that starts a chunk, drop what is outside."""
    runs: list[list[int]] = []
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        before, _, kind_before = (tags[i - 1] if i else "O").partition("-")
        if tag != "O":
            if runs and runs[-1][-1] == i - 1 and prefix in "IE" and before in "BI" and kind == kind_before:
                runs[-1].append(i)
            else:
                runs.append([i])
    return [(run[0], run[-1] + 1, tags[run[0]].partition("-")[2]) for run in runs]


TAGS = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))])


@FAST
@given(st.lists(TAGS, max_size=12))
def test_tags_against_conlleval(tags: list[str]) -> None:
    assert words_of(tags) == conlleval(tags)


def test_the_published_example_of_seqeval() -> None:
    # https://github.com/chakki-works/seqeval#usage: micro 0.50, macro 0.50, MISC 0, PER 1
    evaluator = spans()
    rows = [
        ("O O O B-MISC I-MISC I-MISC O", "O O B-MISC I-MISC I-MISC I-MISC O"),
        ("B-PER I-PER O", "B-PER I-PER O"),
    ]
    for gold, predicted in rows:
        words = {"words": ["x"] * len(gold.split())}
        entities = [(start * 2, end * 2 - 1, label) for start, end, label in words_of(predicted.split())]
        evaluator.add(evaluator.read(gold.split(), words), found(*entities))
    values = evaluator.metrics().values
    for average in ("micro", "macro"):
        assert [values[f"{average}_{name}"] for name in ("precision", "recall", "f1")] == [0.5, 0.5, 0.5]
    assert values["per_label"]["MISC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert values["per_label"]["PER"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    assert values["rows_right"] == 0.5


SPANS = st.sets(st.tuples(st.integers(0, 3), st.integers(4, 6), st.sampled_from(["PER", "LOC"])), max_size=4)


@FAST
@given(st.lists(st.tuples(SPANS, SPANS), min_size=1, max_size=6))
def test_spans_against_scikit_learn(rows: list[tuple[Any, Any]]) -> None:
    """Every span of either side is a sample, its label a column: that is what exact matching means."""
    evaluator = spans()
    keys, both = set(), []
    for number, (gold, predicted) in enumerate(rows):
        listed = [{"start": start, "end": end, "label": label} for start, end, label in gold]
        evaluator.add(evaluator.read(listed, {"text": "abcdefgh"}), found(*predicted))
        keys |= {(number, *span[:2]) for span in gold | predicted}
    values = evaluator.metrics().values
    if not keys:
        assert values == {"rows_right": 1.0}
        return
    kinds = [kind for kind in ("PER", "LOC") if any(span[2] == kind for row in rows for span in row[0] | row[1])]
    for side in (0, 1):
        both.append(np.array([[(*key[1:], kind) in rows[key[0]][side] for kind in kinds] for key in sorted(keys)]))
    if len(kinds) == 1:
        both = [np.hstack([side, np.zeros_like(side)]) for side in both]
    for average in ("micro", "macro"):
        scores = sklearn_metrics.precision_recall_fscore_support(
            *both, labels=list(range(len(kinds))), average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), scores[:3], strict=True):
            assert values[f"{average}_{name}"] == pytest.approx(value)


def test_spans_and_tags_mean_the_same() -> None:
    words = ["Sarah", "Smith", "in", "New", "York"]
    example = {"words": words}
    expected = [(0, 11, "PER"), (15, 23, "LOC")]
    for tags in (
        ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"],
        [1, 2, 0, 3, 4],
        '["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]',
    ):
        assert spans().read(tags, example) == expected
    listed = [{"start": 14, "end": 23, "label": "LOC"}, {"start": 0, "end": 12, "label": "PER", "text": "Sarah Smith"}]
    assert spans().read(listed, {"text": " ".join(words), "words": ""}) == expected
    assert spans().read(listed, {"words": '["Sarah", "Smith", "in", "New", "York"]'}) == expected
    assert spans().read([], {"text": "x"}) == []
    mapped = spans(labels_map={"PERSON": "PER", "GPE": "LOC"})
    assert mapped.read(["B-PERSON", "E-PERSON", "O", "B-GPE", "I-GPE"], example) == expected


@pytest.mark.parametrize(
    ("gold", "example", "problem"),
    [
        ("PER", {"text": "x"}, "is not a list"),
        (["B-PER"], {"text": "x"}, "needs the field 'words'"),
        (["B-PER"], {"words": ["a", "b"]}, "1 tags for 2 words"),
        (["B-PRE"], {"words": ["a"]}, "'PRE' is none of the checkpoint's: PER, LOC, MISC. Did you mean 'PER'"),
        ([None], {"words": ["a"]}, "empty"),
        (["O"], {"words": "a"}, "'words'"),
        ([{"start": 0, "end": 1}], {"text": "x"}, "span 0 needs start, end and label; it has: start, end"),
        ([{"start": 0, "end": 2, "label": "PER"}], {"text": "x"}, "from 0 to 2, and the text has 1 characters"),
        ([{"start": 1, "end": 1, "label": "PER"}], {"text": "xy"}, "from 1 to 1"),
        ([{"start": True, "end": 1, "label": "PER"}], {"text": "xy"}, "from True to 1"),
        ([{"start": 0, "end": 1, "label": "PER", "text": "é"}], {"text": "xé"}, "says 'é', but from 0 to 1 stands 'x'"),
        ([{"start": 0, "end": 1, "label": "B-PER"}], {"text": "xy"}, "'B-PER' is none"),
        ([{"start": 0, "end": 1, "label": "PER"}] * 2, {"text": "xy"}, "there twice"),
        ([{"start": 0, "end": 1, "label": "PER"}], {}, "need the field 'text'"),
        ([{"start": 0, "end": 1, "label": "PER"}, "B-PER"], {"text": "xy"}, "span 1 needs"),
    ],
)
def test_labels_that_are_none(gold: Any, example: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        spans().read(gold, example)
    assert problem in str(caught.value)


def test_tokens_are_no_entities_and_simple_may_cut_words() -> None:
    with pytest.raises(UsageError, match="aggregation=none gives tokens"):
        spans("none")
    for how, noted in (("simple", True), ("first", False)):
        evaluator = spans(how)
        evaluator.add(evaluator.read(["B-PER"], {"words": ["Sarah"]}), found((0, 5, "PER")))
        assert any("aggregation=simple may end an entity" in note for note in evaluator.metrics().notes) is noted


def test_labels_on_one_side_only() -> None:
    evaluator = spans()
    evaluator.add(evaluator.read([{"start": 0, "end": 1, "label": "PER"}], {"text": "xy"}), found((0, 1, "LOC")))
    values, notes = evaluator.metrics().values, evaluator.metrics().notes
    assert (values["micro_f1"], values["macro_f1"], values["rows_right"]) == (0.0, 0.0, 0.0)
    assert values["per_label"]["LOC"]["support"] == 0
    assert notes == ("predicted, but never in the file, so 0 in the macro means: LOC",)
