"""Rows from files: exact places, nothing silently changed, a bad row is that row's failure alone."""

from __future__ import annotations

import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline_kit.errors import InputError, RowFailure
from pipeline_kit.files.read import lines, text_lines
from pipeline_kit.files.read.columns import TEXT_FIELDS, Columns
from pipeline_kit.files.read.formats import LINE_FORMATS, Format, format_of
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.paths import Record, read_records
from pipeline_kit.files.read.source import Source, SourceRow


def rows(data: bytes, format: Format, columns: Columns = TEXT_FIELDS) -> list[Record]:
    return list(read_records(io.BytesIO(data), format=format, columns=columns))


def failure(data: bytes, format: Format) -> RowFailure:
    """The failure between two good rows, at index 1."""
    good, bad, after = rows(data, format)
    assert not isinstance(good, RowFailure)
    assert not isinstance(after, RowFailure)
    assert isinstance(bad, RowFailure)
    assert (bad.index, bad.stage, bad.error) == (1, "input", "InputError")
    return bad


def test_text_splits_on_newlines_alone() -> None:
    data = "a\u2028b\u0085c\x0bd\x0ce\rf\ng\r\n\n".encode()
    assert rows(data, "text") == ["a\u2028b\u0085c\x0bd\x0ce\rf", "g", ""]


def test_text_keeps_empty_lines_so_that_lines_and_results_match() -> None:
    assert rows(b"\n\na\n\n", "text") == ["", "", "a", ""]
    assert rows(b"a\nb", "text") == ["a", "b"]
    assert rows(b"", "text") == []
    assert rows(b"\xef\xbb\xbfa\n\xef\xbb\xbfb", "text") == ["a", "\ufeffb"]


def test_a_line_too_long_to_hold_fails_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 10)
    assert rows(b"0123456789\r\nb\n", "text") == ["0123456789", "b"]
    bad = failure(b"a\n" + b"x" * 3_000_000 + b"\nd\n", "text")
    assert "line 2: longer than" in bad.message
    last = rows(b"a\n" + b"x" * 30, "text")[1]
    assert isinstance(last, RowFailure)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 20)
    long = failure(b'text,id\na,1\n"\n' + b"123456789\n" * 3 + b"b,2\n", "csv")  # a quote that never closes
    assert "line 3: longer than" in long.message


def test_jsonl_takes_strings_and_the_fields_of_objects() -> None:
    data = b'\xef\xbb\xbf"a"\r\n  \n{"text": "b\xe2\x80\xa8", "text_pair": null, "id": 7}\n{"text": 5}'
    assert rows(data, "jsonl") == ["a", {"text": "b\u2028", "text_pair": None}, {"text": 5}]


def test_csv_as_rfc_4180_has_it() -> None:
    data = b'\xef\xbb\xbfid,text,text_pair\r\n1,"a, ""b""\r\nc",d\r\n\r\n2,"",\xe2\x80\xa8\r\n'
    assert rows(data, "csv") == [{"text": 'a, "b"\nc', "text_pair": "d"}, {"text": "", "text_pair": "\u2028"}]


def test_tsv_has_no_quotes() -> None:
    assert rows(b'text\tlabel\n"a\tx\nb"c\ty\n', "tsv") == [{"text": '"a'}, {"text": 'b"c'}]


def test_lines_are_counted_through_quoted_line_ends() -> None:
    bad = failure(b'text,id\n"a\nb\nc",1\n\nbad\nd,1\n', "csv")
    assert bad.message.startswith("input, line 6: ")


def test_a_quote_that_never_closes_is_a_failure_not_a_lost_row() -> None:
    found = rows(b'text,id\na,1\n"b,1\nc,1\n', "csv")
    assert found[0] == {"text": "a"}
    assert isinstance(found[1], RowFailure)
    assert "is a quote open" in found[1].message
    assert len(found) == 2


def test_bytes_outside_the_taken_columns_do_no_harm() -> None:
    assert rows(b"text,id\na,\xff\n", "csv") == [{"text": "a"}]


def test_a_text_longer_than_the_csv_modules_limit() -> None:
    assert rows(b"text\n" + b"x" * 200_000 + b"\n", "csv") == [{"text": "x" * 200_000}]


def test_a_header_without_the_columns_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_bytes(b"id,review_text\n1,a\n")
    with pytest.raises(InputError, match=r"^reviews.csv: 'text' is missing; .* To take another: --fields text=COLUMN"):
        list(read_records(tmp_path / "reviews.csv"))


def test_fields_take_other_columns() -> None:
    fields = Columns.of(("text", "text_pair?"), {"text": "body"})
    assert rows(b"body,text,text_pair\na,b,c\n", "csv", fields) == [{"text": "a", "text_pair": "c"}]
    assert rows(b'{"body": "a"}', "jsonl", fields) == [{"text": "a"}]
    pair = Columns.of(("text", "text_pair?"), {"text_pair": "title"})
    with pytest.raises(InputError, match="'title' is missing"):
        rows(b"text\na\n", "csv", pair)


def test_formats_by_ending(tmp_path: Path) -> None:
    assert {name: format_of(name) for name in ("a.txt", "a.JSONL", "a.ndjson", "a.csv", "a.tsv", "a", "-")} == {
        "a.txt": "text",
        "a.JSONL": "jsonl",
        "a.ndjson": "jsonl",
        "a.csv": "csv",
        "a.tsv": "tsv",
        "a": "text",
        "-": "text",
    }
    (tmp_path / "a.jsonl").write_text('"x"\n')
    assert list(read_records(tmp_path / "a.jsonl")) == ["x"]
    assert list(read_records(str(tmp_path / "a.jsonl"), format="text")) == ['"x"']
    for name, reason in {"a.csv.xz": "compressed", "a.tar.gz": "archive", "a.json": "one JSON document"}.items():
        with pytest.raises(InputError, match=f"{name}: .*{reason}"):
            list(read_records(name))


def test_a_stream_that_fails_is_an_error_of_the_file() -> None:
    class Torn(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    found = read_records(io.BufferedReader(Torn()), format="text")
    with pytest.raises(InputError, match="reading failed: Input/output error"):
        next(found)


def test_reading_is_lazy_and_in_bounded_memory() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            data = (b"x" * 99 + b"\n") * (len(buffer) // 100)
            buffer[: len(data)] = data
            return len(data)

    found: Iterator[Record] = read_records(io.BufferedReader(Endless()), format="text")
    tracemalloc.start()
    try:
        for _ in range(20_000):
            assert len(cast("str", next(found))) == 99
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# ---- hostile lines: each fails its own row, and the rows around it are unharmed

TAKES = ("text", "text_pair?")

JSONL = {
    "NaN": (b'{"id": 2, "text": "x", "n": NaN}', "not usable JSON: NaN is not a JSON value"),
    "Infinity": (b'{"id": 2, "text": "x", "n": -Infinity}', "not usable JSON: -Infinity is not a JSON value"),
    "1e999": (b'{"id": 2, "text": "x", "n": 1e999}', "not usable JSON: the number 1e999 is too large"),
    "key twice": (b'{"id": 2, "text": "x", "text": "y"}', "not usable JSON: the key 'text' is there twice"),
    "inner key twice": (
        b'{"id": 2, "text": "x", "o": {"a": 1, "a": 1}}',
        "not usable JSON: the key 'a' is there twice",
    ),
    "id twice": (b'{"id": 2, "id": 2, "text": "x"}', "not usable JSON: the key 'id' is there twice"),
    "deep": (b'{"id": 2, "text": ' + b"[" * 100_000, "not usable JSON: nested too deep"),
    "5000 digits": (b'{"id": 2, "text": "x", "n": ' + b"9" * 5000 + b"}", "not usable JSON: Exceeds the limit"),
    "5000 digits as id": (b'{"id": ' + b"9" * 5000 + b', "text": "x"}', "not usable JSON: Exceeds the limit"),
    "invalid UTF-8": (b'{"id": 2, "text": "\xc3("}', "not UTF-8: byte 0xc3 at byte 20 of the line"),
    "UTF-16": ('{"id": 2, "text": "x"}'.encode("utf-16-le"), "not JSON"),
    "cut": (b'{"id": 2, "text": "x', "not JSON: Unterminated string"),
    "two values": (b'{"id": 2, "text": "x"} {"id": 9}', "not JSON: Extra data"),
    "array": (b"[1, 2]", "a JSON example is a string or an object, not a list"),
    "number": (b"3", "a JSON example is a string or an object, not a number"),
    "null alone": (b"null", "a JSON example is a string or an object, not null"),
    "true": (b"true", "a JSON example is a string or an object, not true or false"),
    "NUL": (b"\0\0\0", "not JSON"),
    "BOM within": (b'\xef\xbb\xbf{"id": 2, "text": "x"}', "not JSON"),
}
KEEPS_ID = {
    "lone surrogate": (b'{"id": 2, "text": "\\ud800"}', "the field 'text' has a lone surrogate"),
    "id alone": (b'{"id": 2}', "'text' is missing; there are: id."),
    "null": (b'{"id": 2, "text": null}', "the field 'text' is null"),
    "missing": (b'{"id": 2, "txt": "x"}', "'text' is missing; there are: id, txt."),
}
LOSES_ID = {
    "no id": (b'{"text": "x"}', "the id column 'id' is missing"),
    "text alone": (b'"x"', "the row is a text alone, without the id column 'id'"),
    "duplicate": (b'{"id": "1", "text": "x"}', "the id '1' was there before"),
}
CSV = {
    "too few": (b"2", "1 cells, the header has 2"),
    "too many": (b"2,x,y", "3 cells, the header has 2"),
    "quote within": (b'2,"x"y', "not CSV: "),
    "CR within": (b"2,x\ry", "not CSV: a carriage return stands outside of quotes; quote its cell"),
    "invalid UTF-8": (b"2,b\xff", "the field 'text': a text in it is not UTF-8"),
}


ENDS = ((b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n"))
"""What begins a file, and what ends its lines."""


def rows_of(path: Path, **options: Any) -> list[SourceRow]:
    return list(Source.open([path], InputConfig(**options), TAKES).rows())


def bad_row(path: Path, head: bytes, line: bytes, end: bytes, id: str, before: int) -> str:
    """Read a file with `line` between two good rows; give the reason why its row failed."""
    first, last = (b"1,a", b"3,c") if path.suffix == ".csv" else (b'{"id": 1, "text": "a"}', b'{"id": 3, "text": "c"}')
    path.write_bytes(head + end.join([first, line, last, b""]))
    good, bad, after = rows_of(path, id="id")
    assert (good.id, good.example) == ("1", {"text": "a"})
    assert (after.id, after.example, after.index) == ("3", {"text": "c"}, 2)
    assert bad.id == id
    assert isinstance(bad.example, RowFailure)
    assert (bad.example.index, bad.example.stage, bad.example.error) == (1, "input", "InputError")
    assert rows_of(path, id="id", skip=1)[0] == bad
    place = f"{path.name}, line {before + 2}: "
    assert bad.example.message.startswith(place)
    assert len(bad.example.message) < 700
    assert bad.example.message.isprintable()
    return bad.example.message.removeprefix(place)


@pytest.mark.parametrize(("head", "end"), ENDS)
@pytest.mark.parametrize("case", [*JSONL, *KEEPS_ID, *LOSES_ID])
def test_jsonl(tmp_path: Path, case: str, head: bytes, end: bytes) -> None:
    line, reason = (JSONL | KEEPS_ID | LOSES_ID)[case]
    id = "2" if case in KEEPS_ID else "a.jsonl:2"
    assert bad_row(tmp_path / "a.jsonl", head, line, end, id, 0).startswith(reason)


@pytest.mark.parametrize(("head", "end"), ENDS)
@pytest.mark.parametrize("case", list(CSV))
def test_csv(tmp_path: Path, case: str, head: bytes, end: bytes) -> None:
    line, reason = CSV[case]
    id = "2" if case == "invalid UTF-8" else "a.csv:3"
    assert bad_row(tmp_path / "a.csv", head + b"id,text" + end, line, end, id, 1).startswith(reason)


@pytest.mark.parametrize(
    ("name", "data", "line", "reason"),
    [
        ("a.jsonl", b'{"id": 1, "text": "a"}\n{"id": 2, "te', 2, "not JSON"),
        ("a.csv", b"id,text\n1,a\n2", 3, "1 cells, the header has 2"),
        ("a.csv", b'id,text\n1,a\n2,"b', 3, "not CSV"),
        ("a.tsv", b"id\ttext\n1\ta\n2", 3, "1 cells, the header has 2"),
    ],
)
def test_a_torn_last_line_is_named_as_such(tmp_path: Path, name: str, data: bytes, line: int, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    good, torn = rows_of(tmp_path / name, id="id")
    assert good.example == {"text": "a"}
    assert isinstance(torn.example, RowFailure)
    assert torn.example.message.startswith(f"{name}, line {line}: {reason}")
    assert torn.example.message.endswith("(the file's last line, without a newline: was it cut off?)")
    (tmp_path / name).write_bytes(data[: data.rindex(b"\n")])  # a whole last row needs no newline
    assert rows_of(tmp_path / name, id="id") == [good]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv"])
def test_what_unicode_calls_a_line_end_is_text(tmp_path: Path, name: str) -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
    data = {
        "a.txt": f"{text}\nz\n",
        "a.jsonl": f"{json.dumps({'text': 'X'}).replace('X', text[:7])}\n" + '{"text": "z"}\n',
        "a.csv": f"text\n{text}\nz\n",
        "a.tsv": f"text\n{text}\nz\n",
    }[name]
    (tmp_path / name).write_text(data, encoding="utf-8")
    found = [row.example if isinstance(row.example, str) else row.example["text"] for row in rows_of(tmp_path / name)]  # type: ignore[index]
    assert found == [text[:7] if name == "a.jsonl" else text, "z"]


def test_a_text_line_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\xff\r\nc")
    first, second, third = rows_of(tmp_path / "a.txt")
    assert (first.example, third.example) == ("a", "c")
    assert isinstance(second.example, RowFailure)
    assert second.example.message == "a.txt, line 2: not UTF-8: byte 0xff at byte 2 of the line"


def test_escapes_and_megabytes_do_not_reach_messages(tmp_path: Path) -> None:
    line = b"\x1b[2J\x07" + b"x" * 1_000_000
    reason = bad_row(tmp_path / "a.jsonl", b"", line, b"\n", "a.jsonl:2", 0)
    assert len(reason) < 200
    name = "\x1b[31m\u202e.jsonl"
    (tmp_path / name).write_bytes(b"broken\n")
    (row,) = rows_of(tmp_path / name)
    assert row.id == "\\x1b[31m\\u202e.jsonl:1"


ALPHABET = [
    b'"', b"{", b"}", b"[", b":", b",", b"\n", b"\r", b"\t", b"\\", b"\\u", b"d8", b"\xff", b"\xc3", b"\xa9", b"1",
    b"e9", b"text", b"id", b'{"id": 1, "text": "', b'"}\n', b"\xef\xbb\xbf", b"\0", b"NaN", b"null", b"\xe2\x80\xa8",
]  # fmt: skip


@pytest.mark.parametrize("format", LINE_FORMATS)
def test_random_bytes(tmp_path: Path, format: str) -> None:
    source = random.Random(format)
    path = tmp_path / "a"
    for round in range(150):
        options: dict[str, Any] = {"id": "id", "carry": ["n"]} if round % 4 > 1 and format != "text" else {}
        data = b"".join(source.choices(ALPHABET, k=source.randrange(80))) if round % 3 else source.randbytes(60)
        head = {"csv": b"id,text,n\n", "tsv": b"id\ttext\tn\n"}.get(format, b"")
        path.write_bytes(gzip.compress(head + data) if round % 2 else head + data)
        try:
            whole = rows_of(path, format=format, **options)
        except InputError:
            continue  # no header that can be read
        assert [row.index for row in whole] == list(range(len(whole)))
        assert len({row.id for row in whole}) == len(whole)
        for row in whole:
            row.id.encode()
            json.dumps(row.carried, allow_nan=False, ensure_ascii=False).encode()
            if isinstance(row.example, RowFailure):
                assert row.example.message.startswith("a, line ")
            else:
                text = row.example if isinstance(row.example, str) else row.example["text"]
                assert text is not None
                assert not isinstance(text, str) or text.encode() is not None
        start = source.randrange(len(whole) + 1)
        assert list(Source.open([path], InputConfig(format=format, **options), TAKES).rows(start)) == whole[start:]
