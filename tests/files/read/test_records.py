"""Rows from files: exact places, nothing silently changed, a bad row is that row's failure alone."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline_kit.contract.types import RowFailure
from pipeline_kit.errors import InputError
from pipeline_kit.files.read import lines as records_lines
from pipeline_kit.files.read.columns import TEXT_FIELDS, Columns
from pipeline_kit.files.read.formats import Format, format_of
from pipeline_kit.files.read.paths import Record, read_records


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
    monkeypatch.setattr(records_lines, "MAX_LINE_BYTES", 10)
    assert rows(b"0123456789\r\nb\n", "text") == ["0123456789", "b"]
    bad = failure(b"a\n" + b"x" * 3_000_000 + b"\nd\n", "text")
    assert "line 2: longer than" in bad.message
    last = rows(b"a\n" + b"x" * 30, "text")[1]
    assert isinstance(last, RowFailure)


def test_jsonl_takes_strings_and_the_fields_of_objects() -> None:
    data = b'\xef\xbb\xbf"a"\r\n  \n{"text": "b\xe2\x80\xa8", "text_pair": null, "id": 7}\n{"text": 5}'
    assert rows(data, "jsonl") == ["a", {"text": "b\u2028", "text_pair": None}, {"text": 5}]


def test_csv_as_rfc_4180_has_it() -> None:
    data = b'\xef\xbb\xbfid,text,text_pair\r\n1,"a, ""b""\r\nc",d\r\n\r\n2,"",\xe2\x80\xa8\r\n'
    assert rows(data, "csv") == [
        {"text": 'a, "b"\nc', "text_pair": "d"},
        {"text": "", "text_pair": "\u2028"},
    ]


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
