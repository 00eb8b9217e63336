"""Vectors beside the rows: .npy, row by row in the same order."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline_kit.contract.options import parse_options
from pipeline_kit.errors import ConfigError, Fault
from pipeline_kit.files.write.base import OutputConfig, UnwritableRowsError
from pipeline_kit.files.write.formats import ShardFormat, shard_format
from pipeline_kit.files.write.layout import Layout

EMBEDDING = Layout.of(["embedding"], "pooling", carry=["text"])
ROWS = [{"id": f"r{place}", "text": "t", "embedding": [place + 0.5, -1.0, 0.1]} for place in range(4)]


def made(vectors: Any, layout: Layout = EMBEDDING, format: Any = "jsonl") -> ShardFormat:
    return shard_format(OutputConfig(format=format, vectors=vectors), layout)


def test_npy() -> None:
    shards = made("npy")
    files = shards.encode(ROWS, shards.schema(ROWS))
    assert files.keys() == {".jsonl", ".npy"}
    array = np.load(io.BytesIO(files[".npy"]), allow_pickle=False)
    assert array.dtype == np.float32
    assert array.tolist() == np.asarray([row["embedding"] for row in ROWS], np.float32).tolist()
    lines = [json.loads(line) for line in files[".jsonl"].splitlines()]
    assert lines == [{"id": f"r{place}", "text": "t"} for place in range(4)]


def test_parquet_beside_npy_has_the_ids() -> None:
    shards = made("npy", format="parquet")
    files = shards.encode(ROWS, shards.schema(ROWS))
    assert files.keys() == {".parquet", ".npy"}
    table = pq.read_table(io.BytesIO(files[".parquet"]))
    assert table["id"].to_pylist() == ["r0", "r1", "r2", "r3"]
    assert "embedding" not in table.column_names


def test_the_same_rows_give_the_same_bytes() -> None:
    schema = made("npy").schema(ROWS)
    runs = {tuple(made("npy").encode(json.loads(json.dumps(ROWS)), schema).items()) for _ in range(20)}
    assert len(runs) == 1


def test_a_shard_without_rows_has_the_width_of_the_first() -> None:
    shards = made("npy")
    files = shards.encode([], shards.schema([{"id": 1, "text": "t", "embedding": [1.0, 2.0]}]))
    assert np.load(io.BytesIO(files[".npy"])).shape == (0, 2)
    assert shards.encode([], shards.schema([]))


def test_rows_whose_vectors_do_not_fit_are_named_with_all_others() -> None:
    bad: list[Any] = [
        [1.0, 2.0],
        None,
        "text",
        [1.0, 2.0, "3"],
        [1.0, float("nan"), 2.0],
        [1e39, 0, 0],
        [True, 0, 0],
        3.0,
    ]
    rows: list[Any] = [*ROWS, *({"id": "x", "text": "t", "embedding": value} for value in bad), {**ROWS[0], "extra": 1}]
    shards = made("npy", format="parquet")
    schema = shards.schema(rows)
    with pytest.raises(UnwritableRowsError) as caught:
        shards.encode(rows, schema)
    assert [failure.index for failure in caught.value.failures] == list(range(4, len(rows)))
    assert caught.value.failures[0].message == "column 'embedding': a vector has 2 numbers, the ones before it 3"
    assert shards.encode(rows[:4], schema) == made("npy", format="parquet").encode(ROWS, schema)


@pytest.mark.parametrize(
    ("gives", "postprocessor", "message"),
    [
        (["label"], "classification", "'npy' is for vectors, and the results have none: label, score, labels"),
        (["text"], "mine", "the results have none: text"),
        (["tokens", "vectors"], "features", "'vectors' has one a token.\n  leave it at inline; output.format=parquet"),
        (["embedding", "logits"], "mine", "one matrix, and the results have embedding and logits"),
    ],
)
def test_what_cannot_work_is_found_out_before_any_work(gives: list[str], postprocessor: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made("npy", Layout.of(gives, postprocessor))
    assert str(caught.value).startswith("output.vectors: ")
    assert message in str(caught.value)


def test_vectors_of_a_plugin_go_by_their_key() -> None:
    shards = made("npy", Layout.of(["embedding"], "mine"))
    files = shards.encode([{"id": 1, "embedding": [1, 2], "norm": 2.2}], shards.schema([]))
    assert json.loads(files[".jsonl"]) == {"id": 1, "norm": 2.2}


def test_options() -> None:
    faults: list[Fault] = []
    options = parse_options(OutputConfig, {"types": {"stars": "float64"}, "rows_per_shard": 3}, "output", faults)
    assert (options, faults) == (OutputConfig(types={"stars": "float64"}, rows_per_shard=3), [])
    wrong = {"format": "parqet", "vectors": "np", "rows_per_shard": 0, "compression": "gzip", "types": {"a": "date"}}
    assert parse_options(OutputConfig, wrong, "output", faults) is None
    assert [fault.key for fault in faults] == [f"output.{key}" if key != "types" else "output.types.a" for key in wrong]
