"""The document: what of a trace is shown, under which names and within which limits, and where two traces part."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import explain_traces as made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.contract.stages import Panel
from pipeline_kit.explain import blocks as b
from pipeline_kit.explain.compare import apart, compare_config, compare_rows, token_pairs
from pipeline_kit.explain.document import document
from pipeline_kit.explain.formats import aligned, example_text, excerpt, invisible, number, numbers, seconds, visible
from pipeline_kit.explain.trace import SequenceTrace, Token, Trace
from pipeline_kit.explain.view import marked_tokens


def blocks_of(shown: b.Document, kind: type[Any], heading: str = "", side: int = 0) -> list[Any]:
    sections = shown.sides[side].sections
    found = [block for section in sections if heading in section.heading for block in section.blocks]
    return [block for block in found if isinstance(block, kind)]


def test_tensors_lose_their_padding_and_have_names() -> None:
    values = blocks_of(document(made.entities()), b.Values, "model")
    assert [(block.sequence, block.values.shape, block.labels, len(block.tokens)) for block in values] == [
        ("0w0", (6, 2), made.LABELS, 6),
        ("0w1", (5, 2), made.LABELS, 5),
    ]
    norms = blocks_of(document(made.classification(side="left")), b.Norms)
    assert [block.values.shape for block in norms] == [(3, 15), (3, 7)]
    shown = document(made.classification())
    assert blocks_of(shown, b.Values, "postprocessor") == []
    reduced = blocks_of(document(made.classification(), limits=b.PAGE), b.Values, "postprocessor")
    assert [block.origin for block in reduced] == ["reduced on the device"] * 2
    attention = blocks_of(shown, b.Attention)[1]
    assert attention.columns.tolist() == list(range(7))
    assert list(attention.maps) == ["layer 1", "layer 2"]


def test_what_is_beyond_the_limits_is_left_out_and_counted() -> None:
    texts = ("one two", "three four", "five six", *["seven"] * 5)
    shown = document(made.classification(*texts), limits=replace(b.PAGE, tokens=20))
    assert (len(shown.titles), shown.left_out) == (5, 3)
    windows = document(made.entities(), limits=replace(b.PAGE, tokens=8))
    assert [block.sequence for block in blocks_of(windows, b.TokenTable)] == ["0w0"]
    assert [block.sequence for block in blocks_of(windows, b.Values, "model")] == ["0w0"]
    assert "1 more sequences are left out" in blocks_of(windows, b.Text, "text")[-1].text
    grid = blocks_of(document(made.classification("a b", "c"), limits=replace(b.PAGE, cells=7)), b.Grid)[0]
    assert (len(grid.ids), grid.left_out) == (1, 1)
    row = replace(made.classification("a").rows[0], panels={"tokenizer": (Panel("p"),) * 10})
    trace = replace(made.classification("a"), rows=(row,))
    assert len(blocks_of(document(trace), Panel, "text")) == 8
    assert "2 more panels" in blocks_of(document(trace), b.Text, "text")[-1].text


def test_scores_mark_the_text_where_the_tokens_stand() -> None:
    one = marked_tokens("t", made.sequence("love  it"), [0.0, 1.0, -0.5, math.nan])
    assert (one.title, one.pieces) == ("t", (("love", 1.0), ("  ", None), ("it", -0.5)))
    pair = marked_tokens("", made.sequence("a b", "c."), [0.0, 1.0, 2.0, 0.0, 3.0, 0.0])
    assert pair.pieces == (("a", 1.0), (" ", None), ("b", 2.0), ("\n", None), ("c.", 3.0))
    assert pair.scores == (1.0, 2.0, 3.0)
    tokens = [Token(i, "t", start, end, sequence=0) for i, (start, end) in enumerate([(0, 2), (1, 3), (2, 3)])]
    over = replace(made.sequence("abcd"), tokens=tuple(tokens))
    assert marked_tokens("", over, [1.0, 2.0, 3.0]).pieces == (("ab", 1.0), ("c", 2.0), ("d", None))
    nowhere = replace(made.sequence("a"), tokens=(Token(1, "#1"), Token(2, "")))
    assert marked_tokens("", nowhere, [1.0, 2.0]).pieces == (("#1", 1.0), (" ", None), ("(empty)", 2.0))


@pytest.mark.parametrize(
    ("example", "result", "expected"),
    [
        ("Ann met Bo", {"entities": [{"label": "PER", "text": "Ann", "start": 0, "end": 3}]}, ("", "[Ann PER] met Bo")),
        (
            {"words": ["in", "Rome"]},
            {"x": [{"label": "LOC", "text": "Rome", "start": 3, "end": 7}]},
            ("words", "in [Rome LOC]"),
        ),
        (
            {"question": "Who?", "context": "It was Bo."},
            {"answer": "Bo", "start": 7, "end": 9, "answers": [{"answer": "was Bo", "start": 3, "end": 9}]},
            ("context", "It was [Bo answer]."),
        ),
        ("Ann", {"entities": [{"label": "PER", "text": "Ann", "start": 0, "end": 9}]}, None),
        ("Ann", {"start": 0, "end": 2, "text": "Ann"}, None),
        ("Ann", {"label": "A", "score": 0.5, "start": None, "end": "x"}, None),
    ],
)
def test_what_a_result_cut_out_of_its_text_is_marked_there(
    example: Any, result: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    trace = made.trace("", [replace(made.failure().rows[0], example=example, result=result, failure=None)], [])
    marked = blocks_of(document(trace), b.Marked, "result")
    shown = [
        (block.title, "".join(f"[{text} {mark}]" if mark else text for text, mark in block.pieces)) for block in marked
    ]
    assert shown == ([expected] if expected else [])


def test_the_same_trace_twice_differs_in_nothing() -> None:
    for trace in made.all_traces().values():
        found = compare_rows(trace, trace, 0)
        assert found.unlike == frozenset()
        assert found.marks == ({i: {} for i in found.marks[0]},) * 2
        assert not any(row[0] for panel in found.panels for row in panel.rows)
        assert not any(row[0] for row in compare_config(trace, trace).rows)


def test_what_differs_is_named_and_marked() -> None:
    def unlike(second: Trace) -> set[str]:
        found = compare_rows(one, second, 0)
        marked = any(row[0] == "≠" for panel in found.panels for row in panel.rows)
        assert marked == bool(found.unlike)
        return set(found.unlike)

    one = made.classification("I love it", heads=0)
    assert unlike(made.classification("I love it", heads=0, width=9)) == {"padding"}
    assert unlike(made.classification("I love it", heads=0, shift=1e-7)) == set()
    assert unlike(made.classification("I love it", heads=0, shift=1.0)) == {"logits", "result"}
    assert unlike(made.classification("I like it", heads=0)) == {"text", "tokens"}
    assert {"logits", "embedding", "result"} <= unlike(made.embedding())
    assert {"tokens", "result"} <= unlike(made.failure())
    config = compare_config(one, replace(one, config={"padding": {"name": "none"}, "task": None}))
    rows = {row[1]: row for row in config.rows}
    assert rows["padding.name"] == ("≠", "padding.name", "longest", "none")
    assert (rows["padding.side"][3], rows["task"][3]) == ("not there", "null")
    assert config.title == "config: 4 of 4 values differ"


def test_numbers_that_are_not_finite_are_compared_too() -> None:
    def run(values: Any) -> Trace:
        found = made.embedding()
        outputs = {"v": np.array([values] * len(found.batches[0].rows))}
        return replace(found, batches=(replace(found.batches[0], outputs=outputs),))

    one = [np.inf, -np.inf, np.nan, 1.0] * 4
    assert compare_rows(run(one), run(one), 0).unlike == set()
    assert compare_rows(run(one), run(one[::-1]), 0).unlike == {"v"}


def test_both_sides_carry_their_marks() -> None:
    shown = document(
        made.classification("I love Zürich"), made.classification("I love Bern", shift=2.0), names=("x", "y")
    )
    assert [(side.mark, side.name) for side in shown.sides] == [("A", "x"), ("B", "y")]
    tokens = [blocks_of(shown, b.TokenTable, side=side)[0] for side in (0, 1)]
    assert [block.column("differs")[3] for block in tokens] == ["not so in B", "not so in A"]
    assert tokens[0].differs == ("tokens",)
    assert blocks_of(shown, b.Values, "model")[0].differs
    assert [section.differs for section in shown.sides[0].sections if section.heading == "result"] == [True]
    assert [section.heading for section in shown.differences] == ["config", "row 0"]
    fewer = document(made.classification("a", "b"), made.classification("a"))
    assert ([len(side.sections) for side in fewer.sides], len(fewer.differences)) == ([14, 9], 2)


@settings(max_examples=30)
@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_tokens_that_are_not_marked_stand_in_the_same_order_on_both_sides(left: list[str], right: list[str]) -> None:
    one, two = made.sequence(" ".join(left)), made.sequence(" ".join(right))
    first, second = (made.trace("", [replace(made.failure().rows[0], sequences=(s,))], []) for s in (one, two))
    marks = [side[0] for side in compare_rows(first, second, 0).marks]
    kept = [
        [token.text for place, token in enumerate(found.tokens) if place not in side]
        for found, side in zip((one, two), marks, strict=True)
    ]
    assert kept[0] == kept[1]
    assert kept[0][0] == "[CLS]"


def test_tokens_stand_beside_their_like_and_ids_count() -> None:
    def sequence(*texts: str, id: int = 1) -> SequenceTrace:
        return SequenceTrace(0, 0, ("",), tuple(Token(id, text) for text in texts))

    pairs = token_pairs(sequence("a", "b", "c"), sequence("a", "x", "y", "c"))
    shown = [(one and one.text, two and two.text) for one, two in pairs]
    assert shown == [("a", "a"), ("b", "x"), (None, "y"), ("c", "c")]
    assert token_pairs(None, sequence("a"))[0][0] is None
    often = token_pairs(sequence(*"a" * 2048), sequence(*"az" * 1024))  # minutes, if every a is tried with every other
    assert [(one and one.text, two and two.text) for one, two in often[:2]] == [("a", "a"), ("a", "z")]
    first, second = (
        made.trace("", [replace(made.failure().rows[0], sequences=(sequence("a", id=id),))], []) for id in (7, 8)
    )
    assert compare_rows(first, second, 0).marks == ({0: {0: "id 8 in B"}}, {0: {0: "id 7 in A"}})


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        (1.0, 1.000001, False),
        (1.0, 1.001, True),
        (float("nan"), float("nan"), False),
        (1, True, True),
        ({"a": [1.0]}, {"a": [1.0000001]}, False),
        ({"a": 1}, {"b": 1}, True),
        ([1], [1, 2], True),
        (None, "x", True),
        (np.inf, np.inf, False),
    ],
)
def test_what_counts_as_a_difference(first: object, second: object, differ: bool) -> None:
    assert apart(first, second) is differ


def test_what_is_written_for_odd_values() -> None:
    assert [number(x) for x in (None, True, 3, 12345, -0.5, 1e-9, float("inf"), "a")] == [
        *("none", "yes", "3", "12\u202f345", "\u22120.5", "1e-09", "inf", "a")
    ]
    assert [aligned(x) for x in (None, True, 3, -0.5, 1e-9, 0.0, float("nan"), "a")] == [
        *("", "true", "3", "-0.5000", "1.0e-09", "0.0000", "nan", "a")
    ]
    assert numbers(np.arange(3), 2) == "0 1 … 1 more"
    assert [seconds(x) for x in (2, 0.0125, 3e-5)] == ["2.00 s", "12.50 ms", "30 µs"]
    assert visible("") == "(empty)"
    assert visible(" a\n\u200b") == "␣aU+000AU+200B"
    assert visible("x" * 81).endswith("… (81 characters)")
    assert invisible("a\tb") == ""
    assert invisible("\u202e" * 9).endswith("U+202E at 7 and 1 more")
    assert excerpt("a\n b", 10) == "a b"
    assert excerpt("word " * 100, 10) == "word word…"
    assert example_text({"question": "Why?", "labels": ["a"]}) == "Why? · ['a']"
