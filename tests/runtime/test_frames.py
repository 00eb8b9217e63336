"""Columns, arrays and frames of pandas, polars, pyarrow, datasets and numpy: in and out, with nothing lost."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pipelines.pt_utils import KeyDataset

from pipeline_kit.contract.column_types import ColumnType
from pipeline_kit.contract.stages import Model, Postprocessor
from pipeline_kit.contract.types import Device, ModelOutput, Result, Side, TokenBatch
from pipeline_kit.errors import ExampleError, RowError, UsageError
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.runtime.pipeline import Pipeline, Recipe
from pipeline_kit.testing import WordTokenizer, WordTokenizerConfig


class Sums(Model):
    safe_padding_sides: frozenset[Side] = frozenset({"right"})

    def forward(self, batch: TokenBatch) -> ModelOutput:
        return ModelOutput({"sum": (batch.input_ids * batch.attention_mask).float().sum(1)})


class Account(Postprocessor):
    """Results of every shape: a text, numbers, a key that some rows lack, a list of mappings with other keys."""

    def __call__(self, examples: Sequence[Any], encodings: Any, outputs: Any) -> list[Result]:
        results: list[Result] = []
        for example, [window] in zip(examples, outputs, strict=True):
            fields = example if isinstance(example, dict) else {"text": example}
            text = fields["text"] + (fields.get("text_pair") or "")
            found: Result = {"label": text[:1].upper(), "score": float(window["sum"]), "size": len(text)}
            found["parts"] = [{"part": word, **({"long": 1.5} if len(word) > 3 else {})} for word in text.split()]
            results.append({**found, "odd": True} if len(text) % 2 else found)
        return results


PARTS: ColumnType = {"list": {"struct": {"part": "string", "long": "float64"}}}
GIVES = {"label": "string", "score": "float64", "size": "int64", "parts": PARTS, "odd?": "bool"}


def pipeline(takes: tuple[str, ...] = ("text", "text_pair?")) -> Any:
    stages = WordTokenizer(WordTokenizerConfig(max_length=500)), Sums(), Account()
    recipe = Recipe(takes=takes, gives=GIVES)
    return Pipeline(*stages, PaddingPolicy("longest"), BatchingPolicy(), Device(), {"task": "account"}, recipe=recipe)


TEXTS = ["I love this.", "Ein Dorf 🏡 und", "", "odd text"]
RESULTS = pipeline()(TEXTS)
Make = Callable[[dict[str, list[Any]]], Any]


def chunked(columns: dict[str, list[Any]]) -> pa.Table:
    whole = pa.table(columns)
    pieces = [whole.slice(0, 1), whole.slice(1)]
    return pa.concat_tables(pieces).replace_schema_metadata({"made": "by hand"})


FRAMES: dict[str, tuple[Make, Callable[[Any], dict[str, list[Any]]]]] = {
    "pandas": (pd.DataFrame, lambda frame: {name: frame[name].tolist() for name in frame}),
    "polars": (pl.DataFrame, lambda frame: frame.to_dict(as_series=False)),
    "table": (chunked, lambda frame: frame.to_pydict()),
    "batch": (pa.RecordBatch.from_pydict, lambda frame: frame.to_pydict()),
    "dataset": (datasets.Dataset.from_dict, lambda frame: frame.with_format(None)[:]),
}
each_frame = pytest.mark.parametrize("kind", FRAMES)


def normal(value: Any) -> Any:
    """A value without what a library adds to say that there is none: NaN, NA, a null for a key that an entry lacks."""
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, dict):
        return {name: normal(item) for name, item in value.items() if item is not None}
    return None if value is None or value is pd.NA or value != value else value


def as_columns(results: Sequence[Result | None]) -> dict[str, list[Any]]:
    names = [name for name in ("label", "score", "size", "parts", "odd") if any(name in (r or {}) for r in results)]
    return {name: [result.get(name) if result else None for result in results] for name in names}


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(TEXTS, index=[3, 3, 1, 0]),
        pd.Series(TEXTS, dtype="category"),
        pd.Series(TEXTS, dtype=object),
        pd.Index(TEXTS),
        pl.Series(TEXTS),
        pl.Series(TEXTS, dtype=pl.Categorical),
        pa.array(TEXTS),
        pa.chunked_array([TEXTS[:1], [], TEXTS[1:]]),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.large_string()),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        datasets.Dataset.from_dict({"text": TEXTS})["text"],
        KeyDataset(datasets.Dataset.from_dict({"text": TEXTS}), "text"),  # one of torch: it has items and a length
        tuple(TEXTS),
    ],
    ids=lambda column: f"{type(column).__module__}.{type(column).__name__}",
)
def test_a_column_is_a_list_of_examples(column: Any) -> None:
    assert pipeline()(column) == RESULTS


@each_frame
def test_a_frame_is_read_by_the_names_of_its_columns(kind: str) -> None:
    make, read = FRAMES[kind]
    pipe, pairs = pipeline(), ["a", "b", "c", "d"]
    expected = pipe([{"text": text, "text_pair": pair} for text, pair in zip(TEXTS, pairs, strict=True)])
    assert pipe(make({"id": [1, 2, 3, 4], "text": TEXTS})) == RESULTS
    assert pipe(make({"text_pair": pairs, "text": TEXTS})) == expected
    assert pipe(make({"text_pair": pairs, "text": TEXTS}), fields={"text_pair": None}) == RESULTS
    assert pipe(make({"review": TEXTS, "text": pairs}), fields={"text": "review", "text_pair": "text"}) == expected
    assert read(pipe.map(make({"review": TEXTS}), {"text": "review"}))["label"] == [r["label"] for r in RESULTS]


cells = st.one_of(st.none(), st.text(st.sampled_from("ab 🏡é\n"), max_size=9))


@settings(max_examples=40)
@given(st.lists(st.tuples(cells, st.none() | st.integers(-9, 9)), max_size=6), st.sampled_from(list(FRAMES)))
def test_map_adds_what_a_call_returns_and_loses_nothing(rows: list[tuple[str | None, int | None]], kind: str) -> None:
    make, read = FRAMES[kind]
    texts = [text for text, _ in rows]
    frame = make({"text": texts, "n": [n for _, n in rows]})
    before = read(frame)
    results = pipeline()(texts, missing="skip")
    assert [result is None for result in results] == [text is None for text in texts]
    found = pipeline().map(frame, missing="skip")
    assert type(found) is type(frame)
    columns = {name: normal(values) for name, values in read(found).items()}
    added = as_columns(results) or {name: [None] * len(rows) for name in ("label", "score", "size", "parts")}
    assert columns == {**{name: normal(values) for name, values in before.items()}, **added}
    assert list(columns) == [*before, *added]
    assert repr(read(frame)) == repr(before)


def test_pandas_keeps_index_types_and_attributes() -> None:
    index = pd.MultiIndex.from_tuples([("a", 1), ("a", 1), ("b", 2), ("b", 3)], names=["x", "y"])
    frame = pd.DataFrame({"text": pd.Series(TEXTS, dtype="category"), 7: [1, 2, 3, 4]}).set_index(index)
    frame["when"] = pd.Timestamp("2026-01-01", tz="Europe/Berlin")
    frame.attrs["source"] = "by hand"
    found = pipeline().map(frame)
    pd.testing.assert_frame_equal(found[list(frame.columns)], frame)
    assert found.attrs == frame.attrs
    assert found["size"].tolist() == [len(text) for text in TEXTS]
    skipped = pipeline().map(frame.assign(text=["a", None, float("nan"), pd.NA]), missing="skip")
    assert skipped["size"].dtype == "Int64"
    assert skipped["size"].isna().tolist() == [False, True, True, True]


def test_arrow_keeps_schema_metadata_and_chunks() -> None:
    field = pa.field("text", pa.dictionary(pa.int8(), pa.string()), metadata={"language": "en"})
    schema = pa.schema([field, pa.field("n", pa.int8(), nullable=False)], metadata={"made": "by hand"})
    column = pa.chunked_array([pa.array(TEXTS[:2]).dictionary_encode(), pa.array(TEXTS[2:]).dictionary_encode()])
    table = pa.table([column.cast(field.type), pa.array([1, 2, 3, 4], pa.int8())], schema=schema)
    found = pipeline().map(table)
    assert found.select(["text", "n"]).schema.equals(schema, check_metadata=True)
    assert found.schema.metadata == schema.metadata
    assert found.column("text").num_chunks == 2
    assert found.select(["text", "n"]).equals(table)
    assert found.column("score").to_pylist() == [result["score"] for result in RESULTS]


def test_datasets_keep_features_and_format_and_may_be_streamed() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "gold": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": TEXTS, "gold": [0, 1, 1, 0]}, features=features).with_format("numpy")
    found = pipeline().map(data)
    assert {name: found.features[name] for name in features} == features
    assert found.format["type"] == "numpy"
    assert found.with_format(None)["label"][:] == [result["label"] for result in RESULTS]
    assert pipeline()(data.with_format("arrow")) == RESULTS
    streamed = data.to_iterable_dataset()
    assert list(pipeline()(streamed)) == RESULTS
    mapped = pipeline().map(streamed)
    assert isinstance(mapped, datasets.IterableDataset)
    rows = list(mapped.with_format(None))
    assert [(row["text"], row["gold"], row["label"]) for row in rows] == [
        (text, gold, result["label"]) for text, gold, result in zip(TEXTS, [0, 1, 1, 0], RESULTS, strict=True)
    ]
    # Two batches of the stream: the failed row is counted from its beginning.
    long = datasets.Dataset.from_dict({"text": ["a"] * 2500 + [None]}).to_iterable_dataset()
    with pytest.raises(RowError, match="row 2500: input: MissingValueError"):
        list(pipeline().map(long))


@each_frame
def test_a_row_without_a_value_fails_in_its_place_or_is_passed_over(kind: str) -> None:
    make, read = FRAMES[kind]
    frame = make({"text": ["a", None, "b"]})
    for call in (pipeline(), pipeline().map):
        with pytest.raises(RowError, match=r"row 1: input: MissingValueError: .*missing='skip'"):
            call(frame)
        with pytest.raises(UsageError, match="missing='drop' is not allowed; allowed: 'fail', 'skip'"):
            call(frame, missing="drop")
    assert [result and result["label"] for result in pipeline()(frame, missing="skip")] == ["A", None, "B"]
    assert normal(read(pipeline().map(frame, missing="skip"))["label"]) == ["A", None, "B"]
    optional = make({"text": ["a", "b", "c"], "text_pair": ["x", None, "y"]})
    assert [result["size"] for result in pipeline()(optional)] == [2, 1, 2]


def test_a_mapping_with_a_null_field_is_a_row_without_a_value() -> None:
    mappings = [{"text": "a"}, {"text": None, "text_pair": "x"}, {"text": "b", "text_pair": None}]
    for rows in (mappings, iter(mappings)):
        assert [result and result["size"] for result in pipeline()(rows, missing="skip")] == [1, None, 1]
    with pytest.raises(RowError, match=r"row 1: input: MissingValueError: .*missing='skip'"):
        pipeline()(mappings)
    with pytest.raises(RowError, match="'text' is missing; found: txt"):
        pipeline()([{"txt": None}], missing="skip")
    assert pipeline(("text?", "words?"))([{"text": None}], missing="skip") == [None]


TYPES = {
    "pandas": ("str", "float64", "int64", "object", "boolean"),
    "polars": ("String", "Float64", "Int64", "List(Struct({'part': String, 'long': Float64}))", "Boolean"),
    "table": ("string", "double", "int64", "list<item: struct<part: string, long: double>>", "bool"),
    "batch": ("string", "double", "int64", "list<item: struct<part: string, long: double>>", "bool"),
    "dataset": ("string", "float64", "int64", "List({'part': Value('string'), 'long': Value('float64')})", "bool"),
}


@each_frame
@pytest.mark.parametrize("texts", [[], [None], [None, "ab"], ["abc", None]])
def test_columns_have_the_types_that_the_postprocessor_names(kind: str, texts: list[str | None]) -> None:
    found: Any = pipeline().map(FRAMES[kind][0]({"text": texts}), missing="skip")
    names = list(GIVES)[:4] + ["odd"] * ("abc" in texts)
    types_of: dict[str, Callable[[str], Any]] = {
        "pandas": lambda name: str(found[name].dtype).lower(),  # Int64 has room for no value
        "polars": lambda name: found[name].dtype,
        "dataset": lambda name: re.sub(r"^Value\('(\w+)'\)$", r"\1", str(found.features[name])),
    }
    types_of["table"] = types_of["batch"] = lambda name: found.schema.field(name).type
    assert [str(types_of[kind](name)) for name in names] == list(TYPES[kind])[: len(names)]


@pytest.mark.parametrize("value", [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_every_library_has_a_name_for_no_value(value: Any) -> None:
    assert pipeline()(["a", value, "b"], missing="skip")[1] is None
    with pytest.raises(RowError, match="row 1"):
        pipeline()(["a", value])
    assert next(iter(pipeline()(iter([value, "b"]), missing="skip"))) is None


@each_frame
def test_a_frame_without_the_fields_is_refused_with_its_columns(kind: str) -> None:
    make, _ = FRAMES[kind]
    frame = make({"id": [1], "txt": ["a"]})
    for call in (pipeline(), pipeline().map):
        with pytest.raises(UsageError) as caught:
            call(frame)
        assert str(caught.value) == (
            "the frame has no column 'text'; its columns: 'id', 'txt'. Did you mean 'txt'? "
            "Name the column that holds it: fields={'text': 'COLUMN'}"
        )
    with pytest.raises(UsageError, match="no column 'review'"):
        pipeline()(frame, fields={"text": "review"})
    with pytest.raises(UsageError, match=r"takes text, text_pair, and not 'tex'. Did you mean 'text'"):
        pipeline()(frame, fields={"tex": "txt"})
    with pytest.raises(UsageError, match="no column 'text'"):
        pipeline(("text?", "words?"))(frame)
    assert pipeline().map(frame, {"text": "txt"}) is not None


@each_frame
def test_a_column_of_the_frame_is_never_replaced(kind: str) -> None:
    make, read = FRAMES[kind]
    seen: list[str] = []
    for taken in ("label", "odd", "truncated"):
        frame, pipe = make({"text": ["ab"], taken: ["mine"]}), pipeline()
        pipe.observer = lambda stage, given, made: seen.append(stage)
        with pytest.raises(UsageError, match=f"column '{taken}' already.*prefix='result_'"):
            pipe.map(frame)
        assert seen == [], "it is refused before the model runs"
        found = read(pipeline().map(frame, prefix="result_"))
        assert (found[taken], found["result_label"]) == (["mine"], ["A"])


def test_what_is_not_read_is_refused_with_what_to_write() -> None:
    data = datasets.Dataset.from_dict({"text": TEXTS})
    twice = pd.DataFrame([["a", "b"]], columns=["text", "text"])
    for wrong, error, match in (
        (pl.DataFrame({"text": TEXTS}).lazy(), UsageError, r"LazyFrame is not read.*frame\.collect\(\)"),
        (datasets.DatasetDict({"train": data}), UsageError, r"several tables: 'train'.*data\['train'\]"),
        (twice, UsageError, "2 columns called 'text'"),
        (np.array([TEXTS]), ExampleError, r"one dimension, this one has 2; .*array\[:, 0\]"),
        (np.array("a"), ExampleError, "one dimension, this one has 0"),
    ):
        with pytest.raises(error, match=match):
            pipeline()(wrong)
    with pytest.raises(UsageError, match=r"For a Series call the pipeline: pipe\(texts\)"):
        pipeline().map(pd.Series(TEXTS))
    one: Any = {"review": "a"}
    for kind, rows in (("list", TEXTS), ("str", "a"), ("dict", one)):
        with pytest.raises(UsageError, match=f"fields names columns, and a {kind} has none"):
            pipeline()(rows, fields={"text": "review"})


def test_lists_in_cells_are_lists_whatever_holds_them() -> None:
    class Words(Account):
        def prepare(self, example: Any) -> Sequence[Any]:
            assert type(example["words"]) is list
            return [" ".join(example["words"])]

        def __call__(self, examples: Sequence[Any], encodings: Any, outputs: Any) -> list[Result]:
            return [{"label": "-".join(example["words"])} for example in examples]

    pipe = pipeline(("text?", "words?"))
    pipe.postprocessor = Words()
    table = pa.table({"words": [["a", "b"], ["c"]]})
    for frame in (table, table.to_pandas(), pl.from_arrow(table), datasets.Dataset(table)):
        assert [result["label"] for result in pipe(frame)] == ["a-b", "c"]


def test_no_library_of_frames_is_imported() -> None:
    code = (
        "import sys, pipeline_kit as pk; pk.load('model=static', 'checkpoint=tiny_static', "
        "'tokenizer=tokenizers_json')(['a', None], missing='skip');"
        "print([name for name in ('pandas', 'polars', 'pyarrow', 'datasets', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
