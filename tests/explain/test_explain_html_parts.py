"""Bars, heat maps, packed attention and comparisons, as data."""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import explain_traces as made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.explain.html import compare_config, compare_rows, to_html, token_marks
from pipeline_kit.explain.html_attention import AttentionView, TokenBudget, attention_view, batch_views
from pipeline_kit.explain.html_charts import bars, heat, shade, spark
from pipeline_kit.explain.html_rows import attribution_view, result_view, tensor_view
from pipeline_kit.explain.trace import Attribution


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_bars_stand_in_proportion(values: list[float]) -> None:
    drawn = bars([""] * len(values), values)
    for bar, value in zip(drawn.bars, values, strict=True):
        assert -0.01 <= bar.x <= 100.01
        assert bar.x + bar.width <= 100.02
        assert abs((bar.x if value >= 0 else bar.x + bar.width) - drawn.zero) < 0.03  # it begins at nought
    longest = max(range(len(values)), key=lambda i: abs(values[i]))
    assert drawn.bars[longest].width == max(bar.width for bar in drawn.bars)
    assert all(bar.best == (value == max(values)) for bar, value in zip(drawn.bars, values, strict=True))


def test_bars_of_shares_end_at_one_and_of_what_is_no_number_are_empty() -> None:
    assert [bar.width for bar in bars("ab", [0.25, 0.75]).bars] == [25, 75]
    assert [bar.width for bar in bars("ab", [4.0, math.nan]).bars] == [100, 0]
    assert [bar.value for bar in bars("ab", [math.inf, math.nan]).bars] == ["inf", "nan"]
    assert bars("", []).bars == ()


def test_heat_maps_shade_by_row_and_over_all() -> None:
    drawn = heat("norms", "norm", ["a", "b"], ["x", "y"], np.array([[1, 2], [3, np.nan]]))
    assert [[(c.value, c.shade, c.shade_all) for c in row.cells] for row in drawn.rows] == [
        [("1", 0, 0), ("2", 7, 4)],
        [("3", 0, 7), ("nan", -1, -1)],
    ]
    assert (drawn.rows[0].low, drawn.rows[0].high, drawn.dense) == ("1", "2", False)
    assert shade(5, 5, 5) == 0
    assert heat("", "", [], [], np.zeros((0, 0))).rows == ()
    assert spark(np.array([1.0, -1.0])).path == "M0.5 20.0V0.0M1.5 20.0V40.0"
    assert spark(np.arange(1000.0)).note == "every 3th number"


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((2,), "bars"),
        ((1, 2), "bars"),
        ((300,), "spark"),
        ((4, 2), "heat"),
        ((4,), "heat"),
        ((4, 5000), None),
        ((0,), None),
    ],
)
def test_a_tensor_gets_the_picture_of_its_shape(shape: tuple[int, ...], kind: str | None) -> None:
    values = np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape)
    view = tensor_view("t", "model", values, ["no", "yes"], ["a", "b", "c", "d"], shape[0] == 4)
    assert [name for name in ("bars", "heat", "spark") if getattr(view, name) is not None] == ([kind] if kind else [])
    if view.bars:
        assert [bar.label for bar in view.bars.bars] == ["no", "yes"]
    if view.heat and shape == (4, 2):
        assert [row.name for row in view.heat.rows] == ["no", "yes"]
        assert [cell.value for cell in view.heat.rows[0].cells] == ["\u22121", "\u22120.4286", "0.1429", "0.7143"]


def test_results_are_sorted_into_facts_tables_and_vectors() -> None:
    records = [{"label": "a", "score": 0.5}] * 60
    view = result_view(
        {"label": None, "labels": records, "embedding": [0.5] * 100, "scores": [0.1, 0.2], "deep": {"a": 1}}
    )
    assert view.facts == (("label", "none"), ("scores", "[0.1, 0.2]"), ("deep", '{"a": 1}'))
    assert (view.tables[0].columns, len(view.tables[0].rows), view.tables[0].left_out) == (("label", "score"), 50, 10)
    assert view.vectors[0][0] == "embedding"
    assert view.cut > 0


def unpack(view: AttentionView) -> dict[str, Any]:
    data = json.loads(view.data)
    most, kind = (65535, "<u2") if data["bits"] == 16 else (255, "u1")
    return {
        layer["name"]: (
            np.frombuffer(zlib.decompress(base64.b64decode(layer["data"])), kind).reshape(layer["shape"]) / most
        )
        ** 2
        for layer in data["layers"]
    }


def test_attention_comes_back_without_padding_and_to_its_rounding() -> None:
    trace = made.classification(side="left")
    weights = trace.batches[0].attentions["layer 2"][1]
    columns = np.flatnonzero(trace.batches[0].attention_mask[1])
    view = attention_view({"layer 2": weights}, columns, ["a"] * 7, TokenBudget(1))
    assert view.layers == (("layer 2", 2),)
    assert np.abs(unpack(view)["layer 2"] - weights[:, columns][:, :, columns]).max() <= 2e-5


def test_long_attention_keeps_the_largest_weights_within_the_room() -> None:
    draw = np.random.default_rng(1)
    maps = {f"{i}": draw.dirichlet(np.full(200, 0.05), (4, 200)).astype(np.float32) for i in range(2)}
    room = TokenBudget(2, 40_000)
    view = attention_view(maps, None, ["t"] * 200, room)
    assert "the largest 12 are here" in view.note
    assert room.weights == 40_000 - 12 * 1600
    for name, values in unpack(view).items():
        kept = values > 0
        assert kept.sum(axis=-1).max() <= 12
        assert np.abs(values - maps[name])[kept].max() <= 0.004
        least = np.sort(maps[name], axis=-1)[..., -12]
        assert (maps[name][kept] >= np.broadcast_to(least[..., None], maps[name].shape)[kept]).all()
    assert attention_view(maps, None, ["t"] * 200, TokenBudget(9, 40_000)).layers == ()


def test_the_page_of_512_tokens_and_144_heads_stays_under_five_megabytes() -> None:
    trace = made.classification(" ".join(f"w{i}" for i in range(510)), layers=12, heads=12)
    page = to_html(trace)
    assert len(page.encode()) < 5_000_000
    assert page.count("<button") == 512
    HTMLParser().feed(page)


def test_a_batch_shows_ids_tokens_and_padding_on_the_side_it_has() -> None:
    trace = made.classification("one two", "three", side="left", heads=0)
    rows = batch_views(trace)[0].rows
    assert [[cell.token for cell in row.cells] for row in rows] == [
        ["[CLS]", "one", "two", "[SEP]"],
        ["", "[CLS]", "three", "[SEP]"],
    ]
    assert [cell.mask for cell in rows[1].cells] == [0, 1, 1, 1]
    assert rows[0].cells[0].id == 101
    assert "1 of 2 rows are left out" in batch_views(trace, 7)[0].note


def test_attributions_shade_the_text_where_the_tokens_stand() -> None:
    found = made.sequence("love  it")
    view = attribution_view(Attribution("m", "t", 0, np.array([0.0, 1.0, -0.5, math.nan])), found)
    assert "".join(piece.text for piece in view.texts[0]) == "love  it"
    assert [(piece.text, piece.shade) for piece in view.texts[0] if piece.score] == [("love", "p4"), ("it", "n2")]
    assert view.error == "the method promises no sum"
    long = made.sequence(" ".join("abcdefg"[i % 7] for i in range(40)))
    assert attribution_view(Attribution("m", "t", 0, np.arange(42.0)), long).left_out == 18


def differing(first: Any, second: Any) -> set[str]:
    return {line.what for line in compare_rows(first, second, 0) if not line.same}


def test_the_same_trace_twice_differs_in_nothing() -> None:
    for trace in made.all_traces().values():
        assert differing(trace, trace) == set()
        assert all(line.same for line in compare_config(trace, trace))


def test_what_differs_is_named() -> None:
    one = made.classification("I love it", heads=0)
    assert differing(one, made.classification("I love it", heads=0, width=9)) == {"padding"}
    assert differing(one, made.classification("I love it", heads=0, shift=1e-7)) == set()
    assert differing(one, made.classification("I love it", heads=0, shift=1.0)) == {"logits", "result"}
    assert differing(one, made.classification("I like it", heads=0)) == {"text", "tokens", "ids"}
    assert "logits" in differing(one, made.embedding())
    assert "result" in differing(one, made.failure())
    lines = {
        line.what: line
        for line in compare_config(one, replace(one, config={"padding": {"name": "none"}, "task": None}))
    }
    assert (lines["padding.name"].same, lines["padding.name"].second) == (False, "none")
    assert (lines["padding.side"].second, lines["task"].second) == ("not there", "null")


@settings(max_examples=30)
@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_tokens_that_are_not_marked_stand_in_the_same_order_on_both_sides(left: list[str], right: list[str]) -> None:
    one, two = made.sequence(" ".join(left)), made.sequence(" ".join(right))
    rows = [replace(made.failure().rows[0], sequences=(found,)) for found in (one, two)]
    marks = [side[0] for side in token_marks(*rows)]
    kept = [
        [token.text for place, token in enumerate(found.tokens) if place not in side]
        for found, side in zip((one, two), marks, strict=True)
    ]
    assert kept[0] == kept[1]
    assert kept[0][0] == "[CLS]"


def test_an_id_that_another_vocabulary_gives_is_marked() -> None:
    one = made.failure().rows[0]
    found = made.sequence("a")
    other = replace(found, tokens=(*found.tokens[:1], replace(found.tokens[1], id=7), *found.tokens[2:]))
    marks = token_marks(replace(one, sequences=(found,)), replace(one, sequences=(other,)))
    assert marks == ({0: {1: "id 7 in B"}}, {0: {1: f"id {found.tokens[1].id} in A"}})
