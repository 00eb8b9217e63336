"""Parquet: typed columns, the same bytes for the same rows, nothing rounded or dropped to fit."""

from __future__ import annotations

import gc
import io
import json
import math
import time
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import builtins, layout_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.files.write.base import OutputConfig, UnwritableRowsError
from pipeline_kit.files.write.formats import ShardFormat, shard_format, stream_format
from pipeline_kit.files.write.layout import Layout

QUIET = settings(deadline=None, derandomize=True, max_examples=60)
LAYOUT = layout_of("classification", carry=["text", "stars"])
LABELS = [{"label": "x", "score": 0.1}, {"label": "y", "score": 0.9}]


def made(layout: Layout = LAYOUT, **options: Any) -> ShardFormat:
    return shard_format(OutputConfig(format="parquet", **options), layout)


def encoded(rows: list[Any], layout: Layout = LAYOUT, schema: Any = None, **options: Any) -> bytes:
    shards = made(layout, **options)
    return shards.encode(rows, schema or shards.schema(rows))[".parquet"]


def read(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def row(text: Any = "a", stars: Any = 3, **more: Any) -> dict[str, Any]:
    return {"id": "7", "text": text, "stars": stars, "label": "P", "score": 0.25, **more}


def filled(item: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(("labels", "truncated", "truncated_chars", "windows")) | item


def test_columns_have_types_whether_the_rows_show_them_or_not() -> None:
    rows = [row(), row(None, None, labels=LABELS, truncated=4)]
    table = read(encoded(rows))
    assert {name: str(kind) for name, kind in zip(table.column_names, table.schema.types, strict=True)} == {
        "id": "string",
        "text": "string",
        "stars": "int64",
        "label": "string",
        "score": "double",
        "labels": "list<element: struct<label: string, score: double>>",
        "truncated": "int64",
        "truncated_chars": "int64",
        "windows": "int64",
    }
    assert table.to_pylist() == [filled(item) for item in rows]
    assert read(encoded([row(labels=LABELS)])).schema == read(encoded([row(label=None)])).schema


def test_vectors_are_lists_of_float32() -> None:
    layout = layout_of("pooling")
    table = read(encoded([{"id": "a", "embedding": [0.5, 1, 0.1]}], layout))
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32()))
    assert table["embedding"].to_pylist()[0] == pytest.approx([0.5, 1, 0.1])
    ragged = layout_of("features")
    rows: list[dict[str, Any]] = [
        {"id": "a", "tokens": ["x", "y"], "vectors": [[1.0, 2.0], [3.0, 4.0]]},
        {"id": "b", "tokens": [], "vectors": []},
    ]
    table = read(encoded(rows, ragged))
    assert str(table.schema.field("vectors").type) == "list<element: list<element: float>>"
    assert table["vectors"].to_pylist() == [item["vectors"] for item in rows]


@pytest.mark.parametrize("name", [spec.name for spec in builtins().specs("postprocessor")])
def test_every_task_has_a_file_without_rows_and_one_of_nulls(name: str) -> None:
    layout = layout_of(name)
    empty, one = read(encoded([], layout)), read(encoded([{"id": "a"}], layout))
    assert (empty.num_rows, one.num_rows) == (0, 1)
    assert empty.schema == one.schema
    assert all(value is None for key, value in one.to_pylist()[0].items() if key != "id")


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_the_same_rows_give_the_same_bytes_at_any_time(monkeypatch: pytest.MonkeyPatch, compression: Any) -> None:
    rows = [row(f"text {place % 7}", place, labels=LABELS) for place in range(3_000)]
    data = encoded(rows, compression=compression)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert encoded(json.loads(json.dumps(rows)), compression=compression) == data
    meta = pq.read_metadata(io.BytesIO(data))
    assert meta.created_by == f"parquet-cpp-arrow version {pa.__version__}"
    assert set(meta.metadata) == {b"ARROW:schema"}
    assert {meta.row_group(0).column(i).compression for i in range(meta.num_columns)} == {compression.upper()}
    assert meta.num_row_groups == 1


def test_later_shards_have_the_schema_of_the_first_however_it_was_kept() -> None:
    shards = made()
    schema = json.loads(json.dumps(shards.schema([row()]), sort_keys=True))
    first, later = shards.encode([row()], schema)[".parquet"], shards.encode([row(5, None), row({"a": [1]})], schema)
    assert read(later[".parquet"]).schema == read(first).schema
    assert read(later[".parquet"])["text"].to_pylist() == ["5", '{"a": [1]}']


@pytest.mark.parametrize("stars", [4.5, 3.0, "5", True, [1], 2**63])
def test_a_value_of_another_type_is_refused_and_not_changed(stars: Any) -> None:
    shards = made()
    schema = shards.schema([row()])
    with pytest.raises(
        UnwritableRowsError, match=r"row 1 .*column 'stars': .* does not fit the type int64, .*output\.types"
    ) as caught:
        shards.encode([row(), row(stars=stars), row(), row(stars=stars, score="x")], schema)
    assert [failure.index for failure in caught.value.failures] == [1, 3]


def test_a_type_that_the_user_sets_takes_both() -> None:
    layout = layout_of("classification", carry=["text", "stars"], kinds={"stars": "float64"})
    assert read(encoded([row(stars=3), row(stars=4.5)], layout))["stars"].to_pylist() == [3.0, 4.5]


def test_refusals_of_all_columns_are_told_at_once() -> None:
    rows = [
        row(),
        row("\ud800"),
        row(score=float("inf")),
        row(),
        row(labels=[{"label": "x", "colour": 1}]),
        row(extra=1),
    ]
    with pytest.raises(UnwritableRowsError) as caught:
        encoded(rows)
    messages = {failure.index: failure.message for failure in caught.value.failures}
    assert messages.keys() == {1, 2, 4, 5}
    assert "lone surrogate" in messages[1]
    assert "column 'score': holds a number that is not finite" in messages[2]
    assert "column 'labels'" in messages[4]
    assert "'extra' is not a column" in messages[5]
    good = [item for place, item in enumerate(rows) if place not in messages]
    assert read(encoded(good)).num_rows == 2


def test_nan_of_the_input_is_carried_and_of_a_result_is_refused() -> None:
    table = read(encoded([row(stars=float("nan"))]))
    assert str(table["stars"].to_pylist()[0]) == "nan"
    for value in ([1e39], [float("nan")], [1.0, float("-inf")]):
        with pytest.raises(UnwritableRowsError, match="'embedding': holds a number that is not finite"):
            encoded([{"id": 1, "embedding": value}], layout_of("pooling"))


def test_nothing_is_written_once_writing_failed() -> None:
    """A footer would go to a descriptor that is closed, or that is another file's by then."""
    format = stream_format("parquet", LAYOUT)
    schema = format.schema([row()])

    def written(failing: int) -> int:
        calls = 0

        def write(data: bytes) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError("full")

        with suppress(OSError), format.stream(write, schema) as append:
            append([row()])
        gc.collect()
        return calls

    count = written(0)
    assert count > 5
    assert [written(failing) for failing in range(1, count + 1)] == list(range(1, count + 1))

    parts: list[bytes] = []
    with suppress(KeyboardInterrupt), format.stream(parts.append, schema) as append:
        append([row()])
        before = len(parts)
        raise KeyboardInterrupt
    gc.collect()
    assert len(parts) == before > 0


def test_names_of_columns_may_be_anything() -> None:
    names = ["a.b", "", "日本", "list", 'q"', "=x"]
    layout = layout_of("generated_text", carry=names)
    item = {"id": 1, **{name: f"value {name}" for name in names}, "text": "t"}
    table = read(encoded([item], layout))
    assert table.column_names[1:7] == names
    assert table.to_pylist()[0] == dict.fromkeys(table.column_names) | item


carried = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers())


@QUIET
@given(st.lists(carried, min_size=1, max_size=6))
def test_what_is_carried_comes_back(values: list[Any]) -> None:
    values = [v.encode("utf-8", "ignore").decode() if isinstance(v, str) else v for v in values]
    shards = made()
    rows = [row(stars=value) for value in values]
    schema = shards.schema(rows)
    refused = frozenset[int]()
    try:
        shards.encode(rows, schema)
    except UnwritableRowsError as error:
        refused = frozenset(failure.index for failure in error.failures)
    # An integer that float64 cannot hold, infinity that JSON cannot say: refused, never changed.
    big = {place for place, value in enumerate(values) if isinstance(value, int) and abs(value) > 2**53}
    assert refused <= big | {place for place, value in enumerate(values) if value in (math.inf, -math.inf)}
    table = read(shards.encode([item for place, item in enumerate(rows) if place not in refused], schema)[".parquet"])
    values = [value for place, value in enumerate(values) if place not in refused]
    found = table["stars"].to_pylist()
    if table.schema.field("stars").type == pa.string():
        found = [v if isinstance(w, str) or v is None else json.loads(v) for v, w in zip(found, values, strict=True)]
    assert found == values
