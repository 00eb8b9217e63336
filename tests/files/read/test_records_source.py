"""Sources: every row once, in order, with the same id and outcome wherever reading begins."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.contract.options import parse_options
from pipeline_kit.errors import Fault, InputError, RowFailure, UsageError
from pipeline_kit.files.json_text import parse_example
from pipeline_kit.files.read.columns import IdSet
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.source import Source, SourceRow

TAKES = ("text", "text_pair?")


def rows(source: Source, start: int = 0) -> list[SourceRow]:
    return list(source.rows(start))


def opened(*names: object, takes: tuple[str, ...] = TAKES, **options: Any) -> Source:
    return Source.open([str(name) for name in names], InputConfig(**options), takes)


def failure(row: SourceRow) -> str:
    assert isinstance(row.example, RowFailure)
    assert (row.example.index, row.example.stage, row.example.error) == (row.index, "input", "InputError")
    return row.example.message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of three formats with five rows."""
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('"three"\n\n{"text": "four"}\n')
    (tmp_path / "c.csv").write_text('id,text\n7,"fi\nve"\n')
    return tmp_path


def test_files_of_several_formats_are_one_input(folder: Path) -> None:
    source = opened(folder / "a.txt", folder / "b.jsonl", folder / "c.csv")
    source.check()
    assert [(row.index, row.id, row.example) for row in source.rows()] == [
        (0, "a.txt:1", "one"),
        (1, "a.txt:2", "two"),
        (2, "b.jsonl:1", "three"),
        (3, "b.jsonl:3", {"text": "four"}),
        (4, "c.csv:2", {"text": "fi\nve"}),
    ]
    assert source.count() == 5


def test_columns_are_carried_and_ids_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("no,body,label,text_pair\n7,x,,\n8,y,neg,z\n")
    source = opened(tmp_path / "a.csv", fields={"text": "body"}, id="no", carry=["label", "body", "text_pair"])
    source.check()
    first, second = source.rows()
    assert (first.id, first.example) == ("7", {"text": "x"})
    assert first.carried == {"label": "", "body": "x", "text_pair": ""}
    assert (second.id, second.example) == ("8", {"text": "y", "text_pair": "z"})


def test_json_values_are_carried_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "meta": {"n": [1, 2.5, null, true]}}\n{"text": "y"}\n"z"\n')
    assert [row.carried for row in opened(tmp_path / "a.jsonl", carry=["meta"]).rows()] == [
        {"meta": {"n": [1, 2.5, None, True]}},
        {"meta": None},
        {"meta": None},
    ]


def test_a_field_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"input.fields.txet=body: .*text, text_pair. Did you mean 'text'\?"):
        opened(tmp_path, fields={"txet": "body"})


@pytest.mark.parametrize(
    ("name", "data", "options", "reason"),
    [
        ("a.csv", "id,body\n", {}, r"a.csv: 'text' is missing; there are: id, body.* input.fields.text=COLUMN"),
        ("a.csv", "text\n", {"id": "key"}, "a.csv: 'key' of input.id is missing"),
        ("a.csv", "text,lable\n", {"carry": ["label"]}, r"'label' of input.carry is missing.*Did you mean 'lable'\?"),
        ("a.csv", "text,no,no\n", {"id": "no"}, "the column 'no' is there 2 times"),
        ("a.csv", "", {}, "a.csv: is empty; its first line must name the columns"),
        ("a.csv", "id;text\n1;a\n", {}, "separated by ';'"),
        ("a.csv", "id,Texts\n1,a\n", {}, r"Did you mean 'Texts'\?"),
        (
            "a.csv",
            "text,caf\udce9\n",
            {"carry": ["caf\udce9"]},
            r"the column 'caf\\udce9' is not UTF-8.*: iconv -f ISO-8859-1",
        ),
        ("a.jsonl", "PAR1\x15\x04\n", {}, "a.jsonl: is Parquet, not lines of text; .*input.format=parquet"),
        ("a.csv", "text\n", {"format": "josnl"}, r"the input format 'josnl' is not known; .* Did you mean 'jsonl'\?"),
        ("a.jsonl", '{"body": "x"}\n', {}, "a.jsonl: in the first 1,000 rows 'text' is missing; there are: body"),
        ("a.jsonl", '{"text": "x"}\n', {"carry": ["label"]}, "'label' of input.carry is missing; there are: text"),
        ("a.jsonl", '"x"\n', {"id": "key"}, "'key' of input.id is missing; there are: none"),
        ("a.txt", "x\n", {"id": "key"}, "a.txt: is text, a row a line, without the column 'key'"),
        ("a.txt", "x\n", {"fields": {"text": "body"}}, "without the column 'body'; .*input.format=jsonl"),
    ],
)
def test_missing_columns_show_before_any_row(
    tmp_path: Path, name: str, data: str, options: dict[str, Any], reason: str
) -> None:
    (tmp_path / name).write_bytes(data.encode(errors="surrogateescape"))
    (tmp_path / "good.csv").write_bytes(b"text,id,key,label,no,body,caf\xe9\n")
    source = opened(tmp_path / "good.csv", tmp_path / name, **options)
    with pytest.raises((InputError, UsageError), match=reason):
        source.check()


def test_a_check_of_rows_that_do_fit_is_silent(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"x"\n{"other": 1}\nnot json\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "late.jsonl").write_text('{"text": "x"}\n{"text": "y", "label": 1}\n')
    opened(tmp_path / "a.jsonl", tmp_path / "empty.jsonl").check()
    opened(tmp_path / "late.jsonl", carry=["label"]).check()


def test_text_is_refused_for_a_task_with_two_fields(folder: Path) -> None:
    with pytest.raises(InputError, match="the task needs question and context"):
        opened(folder / "a.txt", takes=("question", "context")).check()


def test_a_task_without_a_required_field_needs_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words,other\nx,y\n")
    opened(tmp_path / "a.csv", takes=("text?", "words?")).check()
    (tmp_path / "b.csv").write_text("other\ny\n")
    with pytest.raises(InputError, match="there is no column 'text' or 'words'; there are: other"):
        opened(tmp_path / "b.csv", takes=("text?", "words?")).check()


# ---- skip, limit, shard, start


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    total=st.integers(0, 12),
    skip=st.integers(0, 14),
    limit=st.none() | st.integers(0, 14),
    shards=st.integers(1, 4),
    start=st.integers(0, 14),
    named=st.booleans(),
)
def test_shards_are_a_partition_and_reading_may_begin_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    total: int,
    skip: int,
    limit: int | None,
    shards: int,
    start: int,
    named: bool,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    ids = [number % 2 if number % 3 == 0 else 100 + number for number in range(total)]  # 0 and 1 are there again
    whole_lines = [json.dumps({"id": id, "text": f"t{id}"}) if id % 5 != 4 else '{"id": 3, broken' for id in ids]
    for part, lines in enumerate((whole_lines[:5], whole_lines[5:6], whole_lines[6:])):
        (folder / f"{part}.jsonl").write_text("".join(line + "\n" for line in lines))
    names = [folder / f"{part}.jsonl" for part in range(3)]
    options: dict[str, Any] = {"id": "id"} if named else {}
    whole = rows(opened(*names, **options))
    assert [row.index for row in whole] == list(range(total))
    assert len({row.id for row in whole}) == total
    if named:
        assert [row.id for row in whole[::3]] == ["0", "1", "2.jsonl:1", "2.jsonl:4"][: len(whole[::3])]
    stretch = whole[skip:] if limit is None else whole[skip : skip + limit]
    found = []
    for shard in range(shards):
        source = opened(*names, skip=skip, limit=limit, shard=f"{shard}/{shards}", **options)
        mine = rows(source)
        assert mine == [row for row in stretch if row.index % shards == shard]
        assert source.count() == len(mine)
        assert rows(source, start) == [row for row in mine if row.index >= start]
        found += mine
    assert sorted(found, key=lambda row: row.index) == stretch


def test_a_duplicate_is_found_whatever_shard_the_first_is_in(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n')
    (row,) = rows(opened(tmp_path / "a.jsonl", id="id", shard="1/2"))
    assert failure(row) == "a.jsonl, line 2: the id '1' was there before"


@pytest.mark.parametrize("shard", ["4/4", "1", "-1/4", "1/0", "a/b", "1/4/2", "٣/4", "1 /4"])
def test_a_shard_that_is_none_is_a_fault(shard: str) -> None:
    faults: list[Fault] = []
    assert parse_options(InputConfig, {"shard": shard}, "input", faults) is None
    assert "is not i/n with i from 0 to n - 1" in str(faults[0])


def test_ranges_of_options_are_checked() -> None:
    faults: list[Fault] = []
    data = {"skip": -1, "limit": -1, "max_ratio": 0, "carry": "label", "fields": {"text": 3.5}}
    assert parse_options(InputConfig, data, "input", faults) is None
    assert {fault.key for fault in faults} == {f"input.{key}" for key in data} - {"input.fields"} | {
        "input.fields.text"
    }
    faults = []
    assert parse_options(InputConfig, {"carry": ["a", "a"]}, "input", faults) is None


def test_rows_that_are_not_taken_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'"{number}"\n' for number in range(100)))
    parsed: list[str] = []

    def parse(text: str) -> Any:
        parsed.append(text)
        return parse_example(text)

    monkeypatch.setattr("pipeline_kit.files.read.lines.parse_example", parse)
    assert [row.example for row in opened(tmp_path / "a.jsonl", shard="1/10").rows(90)] == ["91"]
    assert len(parsed) == 1


def test_a_limit_does_not_read_the_files_behind_it(folder: Path) -> None:
    (folder / "z.jsonl.gz").write_bytes(gzip.compress(b'"x"\n' * 100)[:-9])
    assert len(rows(opened(folder / "a.txt", folder / "z.jsonl.gz", limit=2))) == 2


# ---- ids


def test_a_duplicate_id_fails_its_row_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": 7, "text": "a"}\n{"id": "7", "text": "b"}\n{"id": 8, "text": "c"}\n{"id": 7, "text": "d"}\n'
    )
    found = rows(opened(tmp_path / "a.jsonl", id="id"))
    assert [row.id for row in found] == ["7", "a.jsonl:2", "8", "a.jsonl:4"]
    assert failure(found[1]) == "a.jsonl, line 2: the id '7' was there before"
    assert found[2].example == {"text": "c"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("null", "the id is null"),
        ('""', "the id is empty"),
        ("true", "the id is bool, not a text or a number"),
        ("[1]", "the id is list"),
        ('"\\ud800"', "the id has a lone surrogate"),
        (f'"{"x" * 1025}"', "the id is longer than 1024 characters"),
        ("1" * 4000, "the id is a number of more than 77 digits"),
    ],
)
def test_an_id_that_cannot_be_used_fails_its_row(tmp_path: Path, value: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"id": {value}, "text": "a"}}\n')
    (row,) = rows(opened(tmp_path / "a.jsonl", id="id"))
    assert row.id == "a.jsonl:1"
    assert reason in failure(row)


def test_a_bad_row_keeps_the_id_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text,label\n7,\xff,pos\n8,b,\xff\n\xff,c,neg\n")
    text, label, id = rows(opened(tmp_path / "a.csv", id="id", carry=["label"]))
    assert (text.id, text.carried) == ("7", {"label": "pos"})
    assert failure(text) == "a.csv, line 2: the field 'text': a text in it is not UTF-8"
    assert label.id == "8"
    assert failure(label) == "a.csv, line 3: the column 'label' cannot be carried: a text in it is not UTF-8"
    assert id.id == "a.csv:4"
    assert failure(id) == "a.csv, line 4: the id: a text in it is not UTF-8"


def test_an_id_that_looks_like_a_place_is_never_given_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a.jsonl:2", "text": "a"}\nbroken\n{"id": "a.jsonl:2\'", "text": "c"}\n')
    ids = [row.id for row in opened(tmp_path / "a.jsonl", id="id").rows()]
    assert ids == ["a.jsonl:2", "a.jsonl:2'", "a.jsonl:3"]


def test_seen_ids_agree_with_a_set_in_a_fifth_of_its_memory() -> None:
    seen, known = IdSet(), set()
    for number in range(20_000):
        id = str(number * 7919 % 12_007)
        assert seen.add(id) == (id not in known)
        known.add(id)
    tracemalloc.start()
    try:
        table = IdSet()
        for number in range(20_000):
            table.add(str(number))
        assert tracemalloc.get_traced_memory()[0] < 600_000
    finally:
        tracemalloc.stop()


# ---- names


def test_patterns_are_sorted_and_files_named_apart(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a/x.txt", "a/deep/y.txt", "a/[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name + "\n")
    found = rows(opened(tmp_path / "**" / "[xy].txt"))
    assert [row.example for row in found] == ["a/deep/y.txt", "a/x.txt", "b/x.txt"]
    assert [row.id for row in found] == ["y.txt:1", f"{tmp_path}/a/x.txt:1", f"{tmp_path}/b/x.txt:1"]
    assert [row.id for row in opened(tmp_path / "a" / "[1].txt").rows()] == ["[1].txt:1"]
    with pytest.raises(InputError, match="no file matches this pattern"):
        opened(tmp_path / "*.csv")


def test_a_file_named_twice_is_refused(folder: Path) -> None:
    (folder / "link.txt").symlink_to(folder / "a.txt")
    for other in (folder / "a.txt", folder / "*.txt", f"{folder}/../{folder.name}/a.txt", folder / "link.txt"):
        with pytest.raises(InputError, match="is named twice"):
            opened(folder / "a.txt", other)


def test_names_that_are_not_there_say_what_is(folder: Path) -> None:
    with pytest.raises(InputError, match=r"a.tx: cannot be read: No such file.*Did you mean '.*a.txt'\?"):
        opened(folder / "a.tx")
    with pytest.raises(InputError, match=r"is a folder; name a file in it, or a quoted pattern such as '.*\*.jsonl'"):
        opened(folder)
    with pytest.raises(InputError, match="NUL"):
        opened("a\0b")
    with pytest.raises(UsageError, match="no input was named"):
        opened()
    with pytest.raises(InputError, match=r"a.xlsx: is a workbook"):
        opened(folder / "a.xlsx")


def test_a_name_with_a_line_end_stays_on_its_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.txt").write_text("x\n")
    assert [row.id for row in opened(tmp_path / "a\nb.txt").rows()] == ["a\\nb.txt:1"]


# ---- identity and stdin


def test_identity_is_name_size_and_hash_of_the_bytes(folder: Path) -> None:
    data = gzip.compress(b"x\n")
    (folder / "z.txt.gz").write_bytes(data)
    source = opened(folder / "a.txt", folder / "z.txt.gz")
    expected = [
        {"name": "a.txt", "size": 8, "sha256": hashlib.sha256(b"one\ntwo\n").hexdigest()},
        {"name": "z.txt.gz", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()},
    ]
    assert source.identity() == expected
    assert json.loads(json.dumps(expected)) == expected


def test_a_file_that_changes_meanwhile_is_refused(folder: Path) -> None:
    source = opened(folder / "a.txt")
    found = source.rows()
    next(found)
    with open(folder / "a.txt", "a") as more:
        more.write("three\n")
    with pytest.raises(InputError, match=r"a.txt: was changed after it was opened first"):
        list(found)
    for read_again in (source.identity, source.check):
        with pytest.raises(InputError, match=r"a.txt: was changed"):
            read_again()
    source = opened(folder / "c.csv")
    os.remove(folder / "c.csv")
    with pytest.raises(InputError, match=r"c.csv: cannot be read"):
        source.check()


def test_stdin_is_copied_so_that_it_can_be_hashed_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(b"a\nb\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    with opened("-") as source:
        source.check()
        assert source.identity() == [{"name": "stdin", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
        one, two = source.rows(), source.rows(1)
        assert next(one).id == "stdin:1"
        assert next(two).example == "b"
        assert next(one).example == "b"
    with pytest.raises(UsageError, match="- can be named once"):
        opened("-", "-")


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    import threading

    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('"a"\n"b"\n'))
    writer.start()
    with opened(pipe) as source:
        assert [row.example for row in source.rows()] == ["a", "b"]
        assert [row.id for row in source.rows(1)] == ["pipe.jsonl:2"]
    writer.join()


# ---- Python rows


def test_python_rows() -> None:
    data = ["a", {"text": "b", "text_pair": None, "n": 1}, 5, {"text": None}, {"n": 2}, {"text": "\ud800"}]
    source = Source.of(data, InputConfig(carry=["n"]), TAKES)
    source.check()
    found = rows(source)
    assert [row.id for row in found] == [f"rows:{number}" for number in range(6)]
    assert [row.example for row in found[:2]] == ["a", {"text": "b"}]
    assert found[1].carried == {"n": 1}
    assert failure(found[2]) == "rows, row 2: a row is a text or a mapping, not int"
    assert failure(found[3]) == "rows, row 3: the field 'text' is null"
    assert "'text' is missing" in failure(found[4])
    assert "lone surrogate" in failure(found[5])
    assert source.count() == 6
    assert rows(source, 4) == found[4:]


def test_python_values_are_carried_as_json() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    values = {
        "nan": float("nan"),
        "moment": datetime.datetime(2024, 5, 1, 12, 30, tzinfo=zone),
        "naive": datetime.datetime(2024, 5, 1, 12, 30),
        "day": datetime.date(2024, 5, 1),
        "length": datetime.timedelta(seconds=-1.5),
        "decimal": Decimal("12.50"),
        "bytes": b"\xff",
        "array": np.array([1.5, np.inf], dtype=np.float32),
        "scalar": np.int64(7),
        "tuple": ("a", {"b": None}),
    }
    (row,) = rows(Source.of([{"text": "x", **values}], InputConfig(carry=list(values)), TAKES))
    assert row.carried == {
        "nan": None,
        "moment": "2024-05-01T10:30:00+00:00",
        "naive": "2024-05-01T12:30:00",
        "day": "2024-05-01",
        "length": "-PT1.5S",
        "decimal": "12.50",
        "bytes": "/w==",
        "array": [1.5, None],
        "scalar": 7,
        "tuple": ["a", {"b": None}],
    }
    json.dumps(row.carried, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "is of the type object, which is not a JSON value"),
        ({1: "x"}, "has the key 1, which is not a text"),
        ("\ud800", "has a lone surrogate, which UTF-8 cannot represent"),
    ],
)
def test_a_value_that_is_no_json_fails_its_row(value: Any, reason: str) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for cell, why in ((value, reason), (nested, "is nested too deep")):
        (row,) = rows(Source.of([{"text": "x", "v": cell}], InputConfig(carry=["v"]), TAKES))
        assert failure(row) == f"rows, row 0: the column 'v' {why}"
    while nested:  # freeing it all at once would recurse
        nested = nested.pop()


def test_an_iterator_is_lazy_and_goes_round_once() -> None:
    def endless() -> Iterator[str]:
        number = 0
        while True:
            yield str(number)
            number += 1

    source = Source.of(endless(), InputConfig(limit=3, skip=5), TAKES)
    source.check()
    assert source.count() is None
    assert source.identity() == [{"name": "rows", "rows": None, "sha256": None}]
    assert [(row.index, row.example) for row in source.rows()] == [(5, "5"), (6, "6"), (7, "7")]
    with pytest.raises(UsageError, match="an iterator can be gone through once"):
        next(source.rows())


def test_the_identity_of_a_list_is_its_content() -> None:
    def identity(data: list[Any]) -> list[dict[str, Any]]:
        return Source.of(data, InputConfig(), TAKES).identity()

    assert identity(["a", {"text": "b"}]) == identity(["a", {"text": "b"}])
    assert len({identity(data)[0]["sha256"] for data in (["a", "b"], ["b", "a"], ["ab"], ["a\nb"], [])}) == 5


def test_one_row_is_not_taken_for_rows() -> None:
    for one in ("text", {"text": "x"}, b"x"):
        with pytest.raises(UsageError, match="the input is one row; put it in a list"):
            Source.of(one, InputConfig(), TAKES)
    with pytest.raises(UsageError, match="the input is int, which has no rows"):
        Source.of(5, InputConfig(), TAKES)  # type: ignore[arg-type]


class _Streamed:
    """What ``datasets.IterableDataset`` is to a caller."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.column_names = ["text", "n"]

    def skip(self, count: int) -> _Streamed:
        return _Streamed(self.first + count)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.first, 100):
            assert number >= 90, "a row before the start was made"
            yield {"text": f"t{number}", "n": number}


def test_a_streaming_dataset_skips_by_itself() -> None:
    source = Source.of(_Streamed(), InputConfig(carry=["n"]), TAKES)
    source.check()
    found = rows(source, 90)
    assert [row.index for row in found] == list(range(90, 100))
    assert found[0].carried == {"n": 90}
    with pytest.raises(InputError, match=r"rows: 'm' of input.carry is missing; there are: text, n"):
        Source.of(_Streamed(), InputConfig(carry=["m"]), TAKES).check()
