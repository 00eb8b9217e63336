"""Parquet, Arrow and saved datasets: exact values, bounded memory, no crash on damaged files."""

from __future__ import annotations

import json
import random
import struct
import sys
import tracemalloc
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline_kit.errors import InputError, RowFailure, UsageError
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.paths import read_records
from pipeline_kit.files.read.source import Source, SourceRow

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TAKES = ("text", "text_pair?")
KINDS = pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
ALL_KINDS = pytest.mark.parametrize("kind", ["parquet", "arrow", "arrows", "feather"])
"""The ending ``arrows`` stands for streams as they were before 2019."""


def write(path: Path, table: Any, kind: str, rows: int = 1000) -> Path:
    path = path.with_suffix("." + kind)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif kind == "feather":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    else:
        options = pa.ipc.IpcWriteOptions(use_legacy_format=kind == "arrows")
        with pa.ipc.new_stream(path, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


def opened(*names: object, **options: Any) -> Source:
    return Source.open([str(name) for name in names], InputConfig(**options), TAKES)


def carried(path: Path, *names: str) -> list[dict[str, Any]]:
    found = list(opened(path, carry=list(names)).rows())
    assert not [row.example for row in found if isinstance(row.example, RowFailure)]
    json.dumps([row.carried for row in found], allow_nan=False)
    return [dict(row.carried) for row in found]


def failure(row: SourceRow) -> str:
    assert isinstance(row.example, RowFailure)
    assert row.example.index == row.index
    return row.example.message


@ALL_KINDS
def test_rows_ids_and_optional_fields(tmp_path: Path, kind: str) -> None:
    table = pa.table({"id": [5, 6, 7], "text": ["a", None, "c\u2028"], "text_pair": [None, "x", ""], "n": [1, None, 3]})
    path = write(tmp_path / "a", table, kind)
    source = opened(path, id="id", carry=["n"])
    source.check()
    first, second, third = source.rows()
    assert (first.id, first.example, first.carried) == ("5", {"text": "a"}, {"n": 1})
    assert failure(second) == f"a.{kind}, row 1: the field 'text' is null"
    assert (second.id, second.carried) == ("6", {"n": None})
    assert third.example == {"text": "c\u2028", "text_pair": ""}
    assert [row.id for row in opened(path).rows()] == [f"a.{kind}:{number}" for number in range(3)]
    assert source.count() == 3
    assert [record for record in read_records(path) if not isinstance(record, RowFailure)] == [
        {"text": "a"},
        {"text": "c\u2028", "text_pair": ""},
    ]


@KINDS
@pytest.mark.parametrize("named", [False, True])
def test_reading_may_begin_anywhere(tmp_path: Path, kind: str, named: bool) -> None:
    ids = [number // 2 if number % 7 == 0 else number + 100 for number in range(60)]
    table = pa.table({"text": [f"t{number}" for number in range(60)], "id": ids})
    first, second = write(tmp_path / "a", table[:25], kind, 10), write(tmp_path / "b", table[25:], kind, 10)
    options: dict[str, Any] = {"id": "id"} if named else {}
    whole = list(opened(first, second, **options).rows())
    assert [row.index for row in whole] == list(range(60))
    for start in (0, 1, 9, 10, 11, 24, 25, 26, 34, 35, 36, 59, 60, 61):
        assert list(opened(first, second, **options).rows(start)) == whole[start:]
        source = opened(first, second, shard="1/3", skip=3, **options)
        assert list(source.rows(start)) == [row for row in whole[max(start, 3) :] if row.index % 3 == 1]
        assert source.count() == 19


def test_only_the_columns_needed_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", pa.table({"text": ["a"] * 2000, "huge": ["x" * 2000] * 2000}), "parquet")
    data = bytearray(path.read_bytes())
    offset = pq.read_metadata(path).row_group(0).column(1).dictionary_page_offset
    data[offset : offset + 20] = b"\xff" * 20  # reading this column would fail
    path.write_bytes(data)
    assert len(list(opened(path).rows())) == 2000
    with pytest.raises(InputError, match=r"a.parquet: cannot be read"):
        list(opened(path, carry=["huge"]).rows())


# ---- types


@KINDS
def test_every_type_becomes_json(tmp_path: Path, kind: str) -> None:
    moment = datetime(2024, 5, 1, 12, 30, 0, 250_000)
    columns = {
        "bool": (pa.array([True, None]), [True, None]),
        "uint64": (pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1, None]),
        "float": (pa.array([float("nan"), float("-inf")]), [None, None]),
        "decimal": (pa.array([Decimal("12.50"), Decimal("-0.01")], pa.decimal128(10, 2)), ["12.50", "-0.01"]),
        "date": (pa.array([date(1, 1, 1), date(2024, 5, 1)]), ["0001-01-01", "2024-05-01"]),
        "naive": (pa.array([moment, None], pa.timestamp("us")), ["2024-05-01T12:30:00.25", None]),
        "zoned": (pa.array([moment, None], pa.timestamp("ms", "Asia/Tokyo")), ["2024-05-01T12:30:00.25+00:00", None]),
        "nano": (
            pa.array([1_700_000_000_000_000_001, -1], pa.timestamp("ns")),
            ["2023-11-14T22:13:20.000000001", "1969-12-31T23:59:59.999999999"],
        ),
        "time": (pa.array([time(1, 2, 3), time(1, 2, 3, 40)], pa.time64("us")), ["01:02:03", "01:02:03.00004"]),
        "binary": (pa.array([b"\xff\x00", None], pa.binary()), ["/wA=", None]),
        "fixed": (pa.array([b"ab", b"cd"], pa.binary(2)), ["YWI=", "Y2Q="]),
        "large": (pa.array(["ä", None], pa.large_string()), ["ä", None]),
        "list": (pa.array([["a", None], []], pa.list_(pa.string())), [["a", None], []]),
        "floats": (pa.array([[1.5, float("inf")], None], pa.list_(pa.float32())), [[1.5, None], None]),
        "struct": (
            pa.array(
                [{"at": moment, "tags": ["x"]}, None],
                pa.struct({"at": pa.timestamp("us"), "tags": pa.list_(pa.string())}),
            ),
            [{"at": "2024-05-01T12:30:00.25", "tags": ["x"]}, None],
        ),
        "map": (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())), [{"k": 1}, None]),
        "pairs": (pa.array([[(1, "v")], []], pa.map_(pa.int32(), pa.string())), [[[1, "v"]], []]),
        "words": (pa.array(["x", None]).dictionary_encode(), ["x", None]),
    }
    if kind != "parquet":
        columns |= {
            "half": (pa.array([1.5, None], pa.float16()), [1.5, None]),
            "length": (pa.array([timedelta(seconds=90), timedelta(microseconds=-1)]), ["PT90S", "-PT0.000001S"]),
            "view": (pa.array(["a longer text than fits", None], pa.string_view()), ["a longer text than fits", None]),
            "null": (pa.nulls(2), [None, None]),
        }
    table = pa.table({"text": ["a", "b"], **{name: array for name, (array, _) in columns.items()}})
    path = write(tmp_path / "a", table, kind)
    source = opened(path, carry=list(columns))
    source.check()
    found = carried(path, *columns)
    for name, (_, expected) in columns.items():
        assert [row[name] for row in found] == expected, name


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (lambda: pa.array([None], pa.month_day_nano_interval()), "month_day_nano_interval has no JSON value"),
        (lambda: pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]), "has no JSON value"),
        (lambda: pa.RunEndEncodedArray.from_arrays([1], ["a"]), "has no JSON value"),
        (lambda: pa.array([["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))), "has no JSON value"),
        (lambda: pa.array([[None, None]]), "list<item: null> has no JSON value"),
        (lambda: pa.array([[{"a": None}]]), "has no JSON value"),
        (
            lambda: pa.Array.from_buffers(pa.decimal128(5, -(10**9)), 1, [None, pa.py_buffer(bytes(16))]),
            "no JSON value",
        ),
        (lambda: pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "has a name twice"),
    ],
)
def test_a_type_without_meaning_in_json_shows_at_once(tmp_path: Path, array: Any, reason: str) -> None:
    path = write(tmp_path / "a", pa.table({"text": ["x"], "odd": array()}), "arrow")
    with pytest.raises(InputError, match=f"a.arrow: the column 'odd': .*{reason}"):
        opened(path, carry=["odd"]).check()
    opened(path).check()
    assert len(list(opened(path).rows())) == 1


def test_a_cell_without_meaning_in_json_fails_its_row(tmp_path: Path) -> None:
    table = pa.table({
        "text": ["a", "b", "c"],
        "at": pa.array([0, 2**62, 1], pa.timestamp("s")),
        "map": pa.array([[("k", 1)], [], [("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int8())),
    })  # fmt: skip
    first, second, third = opened(write(tmp_path / "a", table, "arrow"), carry=["at", "map"]).rows()
    assert first.carried == {"at": "1970-01-01T00:00:00", "map": {"k": 1}}
    assert failure(second).startswith("a.arrow, row 1: the column 'at' cannot be carried: the cell has no JSON value")
    assert failure(third).endswith("a map has a key twice")


def test_bytes_are_text_where_the_task_reads_them(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([b"a\xc3\xa9", b"\xff"]), "raw": pa.array([b"ab", b"cd"])})
    good, bad = opened(write(tmp_path / "a", table, "parquet"), carry=["raw"]).rows()
    assert (good.example, good.carried) == ({"text": "aé"}, {"raw": "YWI="})
    assert failure(bad) == "a.parquet, row 1: the field 'text': not UTF-8: byte 0xff at byte 1 of the cell"


def test_fields_that_are_lists_and_structs(tmp_path: Path) -> None:
    table = pa.table({
        "query": ["q"],
        "documents": [["a", "b"]],
        "messages": [[{"role": "user", "content": "x"}]],
    })  # fmt: skip
    path = write(tmp_path / "a", table, "parquet")
    takes = ("query", "documents", "messages")
    (row,) = Source.open([path], InputConfig(), takes).rows()
    assert row.example == {"query": "q", "documents": ["a", "b"], "messages": [{"role": "user", "content": "x"}]}


@KINDS
def test_texts_that_are_not_utf8_fail_their_rows(tmp_path: Path, kind: str) -> None:
    bad = pa.array([b"a", b"b\xffc", b"d"]).view(pa.string())
    nested = pa.ListArray.from_arrays([0, 1, 2, 3], bad)
    path = write(tmp_path / "a", pa.table({"text": bad, "tags": nested}), kind)
    rows = list(opened(path).rows())
    assert [row.example for row in rows if row.index != 1] == [{"text": "a"}, {"text": "d"}]
    assert failure(rows[1]) == f"a.{kind}, row 1: the field 'text': not UTF-8: byte 0xff at byte 2 of the cell"
    rows = list(opened(path, fields={"text": "text"}, carry=["tags"]).rows())
    assert [row.carried for row in rows] == [{"tags": ["a"]}, {}, {"tags": ["d"]}]


# ---- folders


def save(folder: Path, table: Any, parts: int = 2, **state: Any) -> Path:
    """Write what ``datasets.Dataset.save_to_disk`` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{part:05d}-of-{parts:05d}.arrow" for part in range(parts)]
    size = -(-table.num_rows // parts)
    for part, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table[part * size : (part + 1) * size], max_chunksize=7)
    data = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(data))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_dataset_is_one_part(tmp_path: Path) -> None:
    folder = save(tmp_path / "reviews", pa.table({"text": [f"t{number}" for number in range(31)]}))
    source = opened(folder)
    source.check()
    rows = list(source.rows())
    assert [row.id for row in rows] == [f"reviews:{number}" for number in range(31)]
    assert [row.example for row in rows] == [{"text": f"t{number}"} for number in range(31)]
    assert list(source.rows(20)) == rows[20:]
    assert source.count() == 31
    names = [item["name"] for item in source.identity()]
    assert names == ["reviews/data-00000-of-00002.arrow", "reviews/data-00001-of-00002.arrow"]
    assert [record for record in read_records(folder)] == [row.example for row in rows]


def test_several_saved_datasets_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / "all" / split, pa.table({"text": [split]}), 1)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"holds several datasets; name one: .*all/test, .*all/train"):
        opened(tmp_path / "all")
    assert len(list(opened(tmp_path / "all" / "train").rows())) == 1


@pytest.mark.parametrize("name", ["../../secret.arrow", "/etc/passwd", "..", "", None, 5, "a/b.arrow"])
def test_a_dataset_cannot_name_files_outside_its_folder(tmp_path: Path, name: Any) -> None:
    folder = save(tmp_path / "a", pa.table({"text": ["x"]}), _data_files=[{"filename": name}])
    with pytest.raises(InputError, match="is not a name of a file in this folder"):
        opened(folder)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a state of a dataset"),
        ("{}", "names no data files"),
        ("[" * 100_000, "cannot be read"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "gone.arrow: cannot be read"),
        ('{"_data_files": [{"filename": "x"}], "_indices_data_files": [{}]}', "flatten_indices"),
    ],
)
def test_a_broken_state_is_an_error_of_the_folder(tmp_path: Path, state: str, reason: str) -> None:
    folder = save(tmp_path / "a", pa.table({"text": ["x"]}))
    (folder / "state.json").write_text(state)
    with pytest.raises(InputError, match=reason):
        opened(folder)


def test_a_folder_of_arrow_and_parquet_files(tmp_path: Path) -> None:
    write(tmp_path / "b", pa.table({"text": ["b"]}), "parquet")
    write(tmp_path / "a", pa.table({"text": ["a"]}), "arrow")
    (tmp_path / "notes.md").write_text("x")
    assert [row.id for row in opened(tmp_path).rows()] == ["a.arrow:0", "b.parquet:0"]


# ---- hostile files


@ALL_KINDS
def test_a_file_cut_off_anywhere_is_an_error(tmp_path: Path, kind: str) -> None:
    table = pa.table({"text": [f"t{number}" for number in range(50)]})
    path = write(tmp_path / "a", table, kind, 10)
    data = path.read_bytes()
    for length in (*range(20), *range(20, len(data), 31), *range(len(data) - 20, len(data))):
        path.write_bytes(data[:length])
        source = opened(path)
        found: list[Any] = []
        with pytest.raises(InputError, match=f"a.{kind}: ") as caught:
            found.extend(row.example for row in source.rows())
        assert found == [{"text": f"t{number}"} for number in range(len(found))]
        assert str(caught.value).endswith(f"; the last whole row is {len(found) - 1}") == bool(found)


@KINDS
@pytest.mark.parametrize("columns", ["text", "nested"])
def test_flipped_bits_never_crash(tmp_path: Path, kind: str, columns: str) -> None:
    table = pa.table({
        "text": [f"t{number}" * 3 for number in range(40)],
        "words": pa.array([f"w{number % 3}" for number in range(40)]).dictionary_encode(),
        "nested": [[{"a": f"x{number}", "b": [number, None]}] for number in range(40)],
        "map": pa.array([[("k", number)] for number in range(40)], pa.map_(pa.string(), pa.int32())),
        "pairs": pa.array([[1.5, 2.5]] * 40, pa.list_(pa.float32(), 2)),
        "at": pa.array(range(40), pa.timestamp("ns")),
    })  # fmt: skip
    path = write(tmp_path / "a", table, kind, 10)
    data = path.read_bytes()
    source = random.Random(7)
    for _ in range(50):
        damaged = bytearray(data)
        for _ in range(source.randrange(1, 4)):
            damaged[source.randrange(len(damaged))] = source.choice([0, 1, 127, 128, 255, source.randrange(256)])
        path.write_bytes(damaged)
        try:
            rows = list(opened(path, carry=table.column_names[1:] if columns == "nested" else []).rows())
        except InputError:
            continue
        for row in rows:
            json.dumps(row.carried, allow_nan=False)
            assert isinstance(row.example, RowFailure) or isinstance(row.example["text"], str)  # type: ignore[index]


def test_offsets_outside_the_data_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a", pa.table({"text": ["aaaa", "bbbb", "cccc"]}), "arrow")
    data = path.read_bytes()
    offsets = struct.pack("<4i", 0, 4, 8, 12)
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, struct.pack("<4i", 0, 4, 2**30, 12)))
    with pytest.raises(InputError, match=r"a.arrow: cannot be read: .*offset"):
        list(opened(path).rows())


def test_a_dictionary_place_outside_its_words_is_an_error(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 77], pa.int32()), pa.array(["x", "y"]), safe=False)
    path = write(tmp_path / "a", pa.table({"text": words}), "arrow")
    found: list[Any] = []
    with pytest.raises(InputError, match=r"a.arrow: cannot be read: .*77 out of bounds"):
        found.extend(opened(path).rows())
    good = pa.table({"text": words[:3]})
    assert [row.example for row in opened(write(tmp_path / "b", good, "arrow")).rows()] == [
        {"text": "x"},
        {"text": "y"},
        {"text": "x"},
    ]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("data", [b"", b"text\nx\n", b"\x1f\x8b\x08\0\0\0\0\0\0\0", b"PAR1PAR1", b"ARROW1\0\0ARROW1"])
def test_what_is_no_such_file_says_so(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: (is empty|is not|is \w+ that was compressed|cannot be read)"):
        opened(tmp_path / name).check()


def test_a_parquet_bomb_stops_at_the_ratio(tmp_path: Path) -> None:
    text = "x" * 10_000
    path = write(tmp_path / "a", pa.table({"text": pa.array([text] * 5000)}), "parquet", 5000)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        list(opened(path).rows())
    assert len(list(opened(path, max_ratio=1e9).rows())) == 5000


def test_a_bomb_of_nulls_stops_at_the_ratio(tmp_path: Path) -> None:
    rows = 2**31 - 1
    batch = pa.RecordBatch.from_arrays([pa.Array.from_buffers(pa.null(), rows, [None])], ["text"])  # no bytes at all
    with pa.ipc.new_stream(tmp_path / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        next(opened(tmp_path / "a.arrow").rows())
    assert next(opened(tmp_path / "a.arrow", max_ratio=1e12, max_decompressed_bytes=2**50).rows()).index == 0


def test_large_rows_are_turned_into_python_a_few_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a", pa.table({"text": [f"{number}" * 20_000 for number in range(1000, 2000)]}), "parquet")
    tracemalloc.start()
    try:
        assert sum(1 for _ in opened(path).rows()) == 1000
        assert tracemalloc.get_traced_memory()[1] < 45_000_000  # 80 MB of texts
    finally:
        tracemalloc.stop()


@KINDS
def test_known_by_its_first_bytes(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a", pa.table({"text": ["x"]}), kind)
    path.rename(tmp_path / "download")
    assert [row.example for row in opened(tmp_path / "download").rows()] == [{"text": "x"}]


def test_parquet_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", pa.table({"text": ["x", "y"]}), "parquet")
    with open(path, "rb") as binary:
        monkeypatch.setattr("sys.stdin", type("In", (), {"buffer": binary}))
        with opened("-") as source:
            assert [row.id for row in source.rows()] == ["stdin:0", "stdin:1"]
        binary.seek(0)
        with pytest.raises(InputError, match="stdin: Parquet is not read from a stream here"):
            list(read_records("-"))


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", pa.table({"text": ["x"]}), "parquet")
    for module in [name for name in sys.modules if name.startswith("pipeline_kit.files.read.arrow")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"reading Parquet needs pyarrow: pip install 'pipeline-kit\[files\]'"):
        opened(path)


# ---- dataset objects


class _Features:
    def __init__(self, schema: Any) -> None:
        self.arrow_schema = schema


class _Dataset:
    """What ``datasets.Dataset`` is to a caller, as far as it is used."""

    _fingerprint = "5eed"

    def __init__(self, table: Any) -> None:
        self.table = table
        self.features = _Features(table.schema)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, key: slice) -> Any:
        return self.table[key]

    def with_format(self, format: str, columns: list[str]) -> _Dataset:
        assert format == "arrow"
        return _Dataset(self.table.select(columns))


def test_a_dataset_object(tmp_path: Path) -> None:
    ids = [number % 1999 for number in range(2500)]
    dataset: Any = _Dataset(pa.table({"text": [f"t{id}" for id in ids], "id": ids, "at": pa.array(ids, pa.date32())}))
    source = Source.of(dataset, InputConfig(carry=["at"]), TAKES)
    source.check()
    rows = list(source.rows())
    assert (rows[2000].id, rows[2000].example) == ("dataset:2000", {"text": "t1"})
    assert rows[2000].carried == {"at": "1970-01-02"}
    assert list(source.rows(1500)) == rows[1500:]
    assert source.count() == 2500
    assert source.identity() == [{"name": "dataset", "rows": 2500, "fingerprint": "5eed"}]
    twice = list(Source.of(dataset, InputConfig(id="id"), TAKES).rows(1990))
    assert [row.id for row in twice[8:10]] == ["1998", "dataset:1999"]
    with pytest.raises(InputError, match=r"dataset: 'key' of input.id is missing; there are: text, id, at"):
        Source.of(dataset, InputConfig(id="key"), TAKES).check()
    with pytest.raises(UsageError, match="holds several datasets; take one: train"):
        Source.of({"train": dataset}, InputConfig(), TAKES)
