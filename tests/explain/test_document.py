"""The document: what of a trace is shown, under which names and within which limits, and where two traces part."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from pipeline_kit.explain.trace import Attribution, SequenceTrace, Token, Trace


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


def attributed(text: str, scores: Sequence[float], error: float | None = None) -> list[Any]:
    trace = made.classification(text)
    found = Attribution("m", "t", 0, np.array(scores), error, "said")
    section = document(replace(trace, rows=(replace(trace.rows[0], attributions=(found,)),))).sides[0].sections
    return [block for part in section if part.heading == "attribution" for block in part.blocks]


def test_attributions_shade_the_text_where_the_tokens_stand() -> None:
    shaded, bars = attributed("love  it", [0.0, 1.0, -0.5, math.nan])
    assert shaded.title == "m: t, sequence 0"
    assert shaded.texts == ((("love", 1.0), ("  ", None), ("it", -0.5)),)
    assert (len(bars.rows), bars.note) == (4, "completeness error not defined; said")
    _, bars = attributed(" ".join("abcdefg"[i % 7] for i in range(40)), [*range(42)], 0.25)
    assert [row[1] for row in bars.rows] == list(range(18, 42))
    assert bars.note == "those with the largest scores, 24 of 42 tokens; completeness error 0.2500; said"


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
    shown = [(pair.first and pair.first.text, pair.second and pair.second.text, pair.same) for pair in pairs]
    assert shown == [("a", "a", True), ("b", "x", False), (None, "y", False), ("c", "c", True)]
    assert token_pairs(None, sequence("a"))[0].first is None
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
