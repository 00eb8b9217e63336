"""Rows of the formats made of lines: text, JSONL, CSV and TSV."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.records.columns import Columns, Picked, Row
from pipeline_kit.records.csv import Table
from pipeline_kit.records.fields import Fields
from pipeline_kit.records.formats import Format
from pipeline_kit.records.json import parse_example
from pipeline_kit.records.lines import Line, read_lines
from pipeline_kit.records.part import Place, Take

__all__ = ["check_lines", "count_lines", "read_rows"]

LOOKED_AT = 1000
"""How many rows of JSONL are looked at for a column that none may have."""

_OTHER_FORMAT = "; if it is another format, say so: input.format=jsonl"


def read_rows(stream: BinaryIO, format: Format, columns: Columns, take: Take) -> Iterator[Place]:
    """Go through the rows of `stream`, each with the line it begins on.

    :raises InputError: if reading fails, or a table's header lacks a column.
    """
    if format in ("csv", "tsv"):
        return _table_rows(stream, "\t" if format == "tsv" else ",", columns, take)
    return _json_rows(stream, columns, take) if format == "jsonl" else _text_rows(stream, columns, take)


def check_lines(stream: BinaryIO, format: Format, columns: Columns) -> None:
    """See that the columns are there: by the header of a table, or in one of the first `LOOKED_AT` rows of JSONL.

    :raises InputError: if not.
    """
    if format in ("csv", "tsv"):
        Table(stream, "\t" if format == "tsv" else ",").check(columns)
    elif format == "text":
        _check_text(columns)
        next(read_lines(stream), None)  # what is in another encoding fails here
    else:
        _check_json(stream, columns)


def count_lines(stream: BinaryIO, format: Format) -> int:
    """Count the rows as :func:`read_rows` gives them."""
    if format in ("csv", "tsv"):
        return sum(1 for _ in Table(stream, "\t" if format == "tsv" else ",").cells())
    return sum(1 for line in read_lines(stream) if format == "text" or not _blank(line))


def _text_rows(stream: BinaryIO, columns: Columns, take: Take) -> Iterator[Place]:
    for number, line in enumerate(read_lines(stream)):
        if number not in take:
            yield line.number, None
            continue
        try:
            text = line.text()
        except InputError as error:
            yield line.number, columns.pick(error)
            continue
        yield line.number, columns.pick(text) if columns.named else Picked(text, None, {})  # decoded, so no surrogates


def _json_rows(stream: BinaryIO, columns: Columns, take: Take) -> Iterator[Place]:
    lines = (line for line in read_lines(stream) if not _blank(line))
    for number, line in enumerate(lines):
        if number not in take:
            yield line.number, None
            continue
        yield line.number, _or_torn(columns.pick(_json_row(line)), line.ended)


def _table_rows(stream: BinaryIO, separator: str, columns: Columns, take: Take) -> Iterator[Place]:
    table = Table(stream, separator)
    table.check(columns)
    for number, (line, cells) in enumerate(table.cells()):
        if number not in take:
            yield line, None
            continue
        yield line, _or_torn(columns.pick(table.row(cells, columns), absent=""), table.ended)


def _or_torn(picked: Picked, ended: bool) -> Picked:
    """Say of a bad row that stands in a last line without a newline what may be the matter."""
    if ended or not isinstance(picked.example, InputError):
        return picked
    torn = InputError(f"{picked.example} (the file's last line, without a newline: was it cut off?)")
    return Picked(torn, picked.id, picked.carried)


def _blank(line: Line) -> bool:
    return line.data is not None and not line.data.strip()


def _json_row(line: Line) -> Row:
    try:
        return parse_example(line.text())
    except InputError as error:
        return error


def _check_text(columns: Columns) -> None:
    for name, column in columns.fields.columns.items():
        if name != column:
            raise InputError(f"is text, a row a line, without the column '{shorten(column, 60)}'{_OTHER_FORMAT}")
    if columns.named:
        raise InputError(f"is text, a row a line, without the column '{shorten(columns.named[0], 60)}'{_OTHER_FORMAT}")
    if len(columns.fields.required) > 1:
        needed = " and ".join(columns.fields.required)
        raise InputError(f"is text, a row a line, where the task needs {needed}{_OTHER_FORMAT}")


def _check_json(stream: BinaryIO, columns: Columns) -> None:
    rows = (_json_row(line) for line in read_lines(stream) if not _blank(line))
    found: dict[str, None] = {}
    texts = False
    for row in islice(rows, LOOKED_AT):
        if isinstance(row, str):
            texts = True
        elif not isinstance(row, InputError):
            found.update(dict.fromkeys(row))
    if texts:
        columns = Columns(Fields(), columns.id, columns.carry)  # a text alone is an example, too
    if found or (texts and columns.named):
        try:
            columns.check(list(found))
        except InputError as error:
            raise InputError(f"in the first {LOOKED_AT:,} rows {error}") from error
