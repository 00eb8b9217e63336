"""Vectors beside the rows: .npy and safetensors, row by row in the same order."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pipeline_kit.contract.options import parse_options
from pipeline_kit.errors import ConfigError, Fault
from pipeline_kit.files.write.base import OutputConfig, ShardFormat, UnwritableRowsError
from pipeline_kit.files.write.formats import shard_format
from pipeline_kit.files.write.layout import Layout

QUIET = settings(deadline=None, derandomize=True, max_examples=40)
EMBEDDING = Layout.of(["embedding"], "pooling", carry=["text"])
TOKENS = Layout.of(["tokens", "vectors"], "features")
ROWS = [{"id": f"r{place}", "text": "t", "embedding": [place + 0.5, -1.0, 0.1]} for place in range(4)]


def made(vectors: Any, layout: Layout = EMBEDDING, format: Any = "jsonl") -> ShardFormat:
    return shard_format(OutputConfig(format=format, vectors=vectors), layout)


def tensors(data: bytes, folder: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    (folder / "x.safetensors").write_bytes(data)
    with safe_open(folder / "x.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_npy() -> None:
    shards = made("npy")
    files = shards.encode(ROWS, shards.schema(ROWS))
    assert files.keys() == {".jsonl", ".npy"}
    array = np.load(io.BytesIO(files[".npy"]), allow_pickle=False)
    assert array.dtype == np.float32
    assert array.tolist() == np.asarray([row["embedding"] for row in ROWS], np.float32).tolist()
    lines = [json.loads(line) for line in files[".jsonl"].splitlines()]
    assert lines == [{"id": f"r{place}", "text": "t"} for place in range(4)]


def test_safetensors_has_the_ids(tmp_path: Path) -> None:
    shards = made("safetensors", format="parquet")
    files = shards.encode(ROWS, shards.schema(ROWS))
    assert files.keys() == {".parquet", ".safetensors"}
    found, metadata = tensors(files[".safetensors"], tmp_path)
    assert found.keys() == {"embedding"}
    assert found["embedding"].dtype == np.float32
    assert found["embedding"].shape == (4, 3)
    assert metadata == {"ids": '["r0", "r1", "r2", "r3"]'}
    table = pq.read_table(io.BytesIO(files[".parquet"]))
    assert table["id"].to_pylist() == ["r0", "r1", "r2", "r3"]
    assert "embedding" not in table.column_names


@QUIET
@given(st.lists(st.integers(0, 4), max_size=5), st.integers(1, 3))
def test_ragged_vectors_are_found_by_their_offsets(tmp_path_factory: Any, counts: list[int], width: int) -> None:
    rows = [
        {"id": place, "tokens": ["x"] * count, "vectors": [[place + i / 8] * width for i in range(count)]}
        for place, count in enumerate(counts)
    ]
    shards = made("safetensors", TOKENS)
    files = shards.encode(rows, json.loads(json.dumps(shards.schema(rows))))
    found, _ = tensors(files[".safetensors"], tmp_path_factory.mktemp("ragged"))
    begins = found["vectors.offsets"]
    assert begins.dtype == np.int64
    back = [found["vectors"][a:b].tolist() for a, b in pairwise(begins)]
    assert back == [row["vectors"] for row in rows]
    assert len(begins) == len(rows) + 1


@pytest.mark.parametrize(
    ("vectors", "layout"), [("npy", EMBEDDING), ("safetensors", EMBEDDING), ("safetensors", TOKENS)]
)
def test_the_same_rows_give_the_same_bytes(vectors: str, layout: Layout) -> None:
    rows: list[Any] = (
        ROWS if layout is EMBEDDING else [{"id": i, "tokens": ["a"], "vectors": [[0.5]]} for i in range(9)]
    )
    first = made(vectors, layout)
    schema = first.schema(rows)
    runs = {tuple(made(vectors, layout).encode(json.loads(json.dumps(rows)), schema).items()) for _ in range(20)}
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("vectors", "layout"), [("npy", EMBEDDING), ("safetensors", EMBEDDING), ("safetensors", TOKENS)]
)
def test_a_shard_without_rows_has_the_width_of_the_first(vectors: str, layout: Layout, tmp_path: Path) -> None:
    row = (
        {"id": 1, "text": "t", "embedding": [1.0, 2.0]}
        if layout is EMBEDDING
        else {"id": 1, "tokens": [], "vectors": [[1, 2]]}
    )
    shards = made(vectors, layout)
    files = shards.encode([], shards.schema([row]))
    if vectors == "npy":
        assert np.load(io.BytesIO(files[".npy"])).shape == (0, 2)
    else:
        found, _ = tensors(files[".safetensors"], tmp_path)
        assert found[next(iter(layout.vectors))].shape == (0, 2)
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
    for vectors in ("npy", "safetensors"):
        shards = made(vectors, format="parquet")
        schema = shards.schema(rows)
        with pytest.raises(UnwritableRowsError) as caught:
            shards.encode(rows, schema)
        assert [failure.index for failure in caught.value.failures] == list(range(4, len(rows)))
        assert caught.value.failures[0].message == "column 'embedding': a vector has 2 numbers, the ones before it 3"
        assert shards.encode(rows[:4], schema) == made(vectors, format="parquet").encode(ROWS, schema)


@pytest.mark.parametrize(
    ("vectors", "gives", "postprocessor", "message"),
    [
        ("npy", ["label"], "classification", "'npy' is for vectors, and the results have none: label, score, labels"),
        ("safetensors", ["text"], "mine", "the results have none: text"),
        ("npy", ["tokens", "vectors"], "features", "'vectors' has one a token.\n  use output.vectors=safetensors"),
        ("npy", ["embedding", "logits"], "mine", "one matrix, and the results have embedding and logits"),
    ],
)
def test_what_cannot_work_is_found_out_before_any_work(
    vectors: str, gives: list[str], postprocessor: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(vectors, Layout.of(gives, postprocessor))
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
