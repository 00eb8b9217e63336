"""Which columns an output has: the config says it, and the rows only where the config cannot."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from harness import builtins, checkpoint, layout_of, pipeline_of, task_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.compose.compose import compose
from pipeline_kit.contract.column_types import COUNTS, VECTOR, VECTORS, holds, infer_type
from pipeline_kit.contract.options import parse_options
from pipeline_kit.errors import ConfigError, Fault, StageError
from pipeline_kit.files.write.base import OutputConfig, UnwritableRowsError
from pipeline_kit.files.write.formats import ShardFormat, shard_format
from pipeline_kit.files.write.layout import Layout

TASKS = [spec.name for spec in builtins().specs("task")]
SCORED = {"list": {"struct": {"label": "string", "score": "float64"}}}
QUIET = settings(deadline=None, derandomize=True, max_examples=60)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


@pytest.mark.parametrize("task", TASKS)
def test_the_columns_of_a_task_are_what_it_says_it_gives(task: str) -> None:
    config = compose([f"task={task}"])
    gives = config.gives
    assert gives
    layout = Layout.of(gives)
    assert layout.names([]) == ["id", *[name.removesuffix("?") for name in gives], *COUNTS]
    assert layout.columns([]) == layout.columns([{"id": "a", "label": 3}]), "data has no say"


TEXT = "I love this film, and it is good."
NLI = ("entailment", "neutral", "contradiction")
QUESTION = {"question": "What?", "context": TEXT}
RUNS: tuple[tuple[str, str, str, Any, dict[str, Any]], ...] = (
    ("text-classification", "bert", "sequence-classification", TEXT, {}),
    ("text-classification", "bert", "sequence-classification", TEXT * 9, {"top_k": 2}),
    ("text-classification", "bert", "sequence-classification", TEXT, {"thresholds": {"POSITIVE": 1.0}}),
    ("text-classification", "bert", "sequence-classification", TEXT, {"name": "logits"}),
    ("zero-shot-classification", "bert", "sequence-classification", TEXT, {"labels": ["sport", "film"]}),
    ("token-classification", "bert", "token-classification", TEXT, {}),
    ("feature-extraction", "bert", "base", TEXT, {}),
    ("sentence-embedding", "bert", "base", TEXT, {}),
    ("fill-mask", "bert", "masked-lm", "I [MASK] this [MASK].", {}),
    ("multiple-choice", "bert", "multiple-choice", {"text": TEXT, "choices": ["a film", "a book"]}, {}),
    ("question-answering", "bert", "question-answering", QUESTION, {}),
    ("question-answering", "bert", "question-answering", QUESTION, {"top_k": 2}),
    ("text-generation", "qwen2", "causal-lm", "I love", {}),
)


@pytest.mark.parametrize(("task", "architecture", "head", "example", "options"), RUNS)
def test_real_results_fit_the_columns(
    task: str, architecture: str, head: str, example: Any, options: dict[str, Any]
) -> None:
    folder = checkpoint(architecture, head=head, **({"labels": NLI} if task.startswith("zero") else {}))
    model = {"generation": {"max_new_tokens": 3}} if task == "text-generation" else {}
    result = pipeline_of(task, folder, model=model, **options)(example)
    layout = layout_of(options.get("name", task_of(task).postprocessor))
    kinds = dict(layout.columns([]))
    assert result.keys() <= kinds.keys()
    assert all(holds(value, kinds[name]) for name, value in result.items())
    written = shard_format(OutputConfig(format="parquet"), layout)
    assert written.encode([layout.row("1", {}, result)], written.schema([]))


def test_the_rows_show_the_keys_of_a_postprocessor_that_names_none() -> None:
    layout = Layout.of(None, carry=["who"])
    rows = [{"id": 1, "who": "x", "score": 0.5, "shout": "A"}, {"id": 2, "who": "y", "score": 1, "many": [1, 2]}]
    assert layout.columns(rows) == [
        ("id", "int64"),
        ("who", "string"),
        ("score", "float64"),
        ("shout", "string"),
        ("many", {"list": "int64"}),
        *COUNTS.items(),
    ]
    assert layout.names([]) == ["id", "who", *COUNTS], "no empty column of what it might have"
    assert Layout.of({"mine": VECTOR, "own?": VECTORS, "text": "string"}).vectors == {"mine": False, "own": True}
    failed = Layout.of(None, errors=True)
    assert failed.names([{"error": "no"}, {"loud": 1}]) == ["id", "loud", *COUNTS, "error"]


def test_a_carried_column_with_the_name_of_another_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError) as caught:
        layout_of("generated_text", carry=["text", "who", "id", "windows", "who", "error"])
    message = str(caught.value)
    assert "input.carry: the column 'text' has the name of the result's key 'text'." in message
    assert "'id' has the name of the row's id" in message
    assert "'windows' has the name of the result's key 'windows'" in message
    assert "the column 'who' is there twice" in message
    assert "'error'" not in message
    assert "leave it out of input.carry" in message
    with pytest.raises(ConfigError, match="'error' has the name of the reason"):
        layout_of("generated_text", carry=["error"], errors=True)
    assert layout_of("generated_text", carry=["id"], identified=False).names([])[0] == "id"


def test_a_clash_that_no_config_could_foresee_fails_the_row() -> None:
    layout = Layout.of(None, carry=["loud"])
    assert list(layout.row(7, {"loud": 1}, {"label": "a"}).items()) == [("id", 7), ("loud", 1), ("label", "a")]
    with pytest.raises(StageError, match="key 'loud' is a column of the input too; take it out"):
        layout.row(7, {"loud": 1}, {"loud": 2})
    with pytest.raises(StageError, match="'id'"):
        layout.row(7, {}, {"id": 2})


def test_types_that_the_user_sets() -> None:
    layout = layout_of("classification", carry=["stars"], kinds={"stars": "float64", "id": "string"})
    assert layout.columns([{"id": 3, "stars": 1}])[:2] == [("id", "string"), ("stars", "float64")]
    with pytest.raises(ConfigError, match=r"output\.types\.label: is not a column whose type can be set"):
        layout_of("classification", kinds={"label": "string"})


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ([], "string"),
        ([None, None], "string"),
        ([1, None, 2], "int64"),
        ([1, 2.5], "float64"),
        ([True, None], "bool"),
        ([True, 1], "string"),
        (["a", 1], "string"),
        ([2**63], "string"),
        ([-(2**63)], "int64"),
        ([{"a": 1}], "string"),
        ([[{"a": 1}]], "string"),
        ([[], None], "string"),
        ([[[]]], "string"),
        ([[], [1]], {"list": "int64"}),
        ([[1], [2.5]], {"list": "float64"}),
        ([["a"], ["b", None]], {"list": "string"}),
        ([["a"], [1]], "string"),
        ([[[1.0]], []], {"list": {"list": "float64"}}),
        ([[1], 1], "string"),
    ],
)
def test_the_narrowest_kind(seen: list[Any], kind: Any) -> None:
    assert infer_type(seen) == kind


@QUIET
@given(st.lists(values, max_size=5))
def test_values_fit_the_kind_that_they_give(seen: list[Any]) -> None:
    kind = infer_type(seen)
    assert infer_type(reversed(seen)) == kind
    assert json.loads(json.dumps(kind)) == kind
    assert kind == "string" or all(holds(value, kind) for value in seen)


def test_nothing_fits_by_being_changed() -> None:
    nothing: list[tuple[Any, Any]] = [
        (True, "int64"), (1.0, "int64"), (2**63, "int64"), ("1", "int64"), (1, "string"), (b"x", "string"),
        (1, "bool"), (True, "float64"), ([True], VECTOR), (["1"], VECTOR), ([[1]], VECTOR), ([1], VECTORS),
        ({"label": "a", "more": 1}, {"struct": {"label": "string"}}),
        ([("label", "a")], SCORED),
        ("text", {"list": "string"}), ({}, {"list": "string"}), ([], {"struct": {}}),
    ]  # fmt: skip
    assert [case for case in nothing if holds(*case)] == []


# ---- vectors beside the rows: .npy, row by row in the same order

EMBEDDING = layout_of("pooling", carry=["text"])
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
    ("layout", "message"),
    [
        (layout_of("classification"), "'npy' is for vectors, and the results have none: label, score, labels"),
        (Layout.of({"text": "string"}), "the results have none: text"),
        (layout_of("features"), "'vectors' has one a token.\n  leave it at inline; output.format=parquet"),
        (Layout.of({"a": VECTOR, "b": VECTOR}), "one matrix, and the results have a and b"),
        (Layout.of(None), "the postprocessor does not name the columns of its results"),
    ],
)
def test_what_cannot_work_is_found_out_before_any_work(layout: Layout, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made("npy", layout)
    assert str(caught.value).startswith("output.vectors: ")
    assert message in str(caught.value)


def test_vectors_of_a_plugin_go_by_their_type() -> None:
    shards = made("npy", Layout.of({"mine": VECTOR, "norm": "float64"}))
    files = shards.encode([{"id": 1, "mine": [1, 2], "norm": 2.2}], shards.schema([]))
    assert json.loads(files[".jsonl"]) == {"id": 1, "norm": 2.2}


def test_options() -> None:
    faults: list[Fault] = []
    options = parse_options(OutputConfig, {"types": {"stars": "float64"}, "rows_per_shard": 3}, "output", faults)
    assert (options, faults) == (OutputConfig(types={"stars": "float64"}, rows_per_shard=3), [])
    wrong = {"format": 5.5, "vectors": "np", "rows_per_shard": 0, "compression": "gzip", "types": {"a": "date"}}
    assert parse_options(OutputConfig, wrong, "output", faults) is None
    assert [fault.key for fault in faults] == [f"output.{key}" if key != "types" else "output.types.a" for key in wrong]
