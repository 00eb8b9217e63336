"""Examples from CSV and TSV, whose first line names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.records.fields import Fields
from pipeline_kit.records.lines import MAX_LINE_BYTES, Line, read_lines

__all__ = ["read_table"]


def read_table(stream: BinaryIO, separator: str, fields: Fields) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """Go through the rows of a table.

    CSV is read as RFC 4180 has it: a quoted cell may hold separators, doubled quotes and line ends. In TSV
    quotes are text and a cell holds neither tab nor line end, as the IANA type says. Blank lines are skipped.
    An empty cell of a field that may be left out leaves it out.

    :returns: for each row the line it begins on and its example, or what is wrong with it.
    :raises InputError: if there is no header or it lacks a column that `fields` requires.
    """
    if csv.field_size_limit() < MAX_LINE_BYTES:
        csv.field_size_limit(MAX_LINE_BYTES)  # the module's own limit of 128 KiB is shorter than real texts
    lines = _Decoded(stream)
    if separator == "\t":
        reader = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=separator, strict=True)
    rows = _rows(reader, lines)
    header = _header(rows, separator, fields)
    for number, cells in rows:
        try:
            yield number, _example(header, cells, fields)
        except InputError as error:
            yield number, error


class _Decoded:
    """The lines for the csv module. Bytes that are not UTF-8 become surrogates, found again per row."""

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = read_lines(stream)
        self.number = 0
        self.too_long = False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number = line.number
            yield self._text(line)

    def _text(self, line: Line) -> str:
        self.too_long = self.too_long or line.data is None
        return (line.data or b"").decode("utf-8", errors="surrogateescape") + "\n"


def _rows(reader: Any, lines: _Decoded) -> Iterator[tuple[int, list[str] | InputError]]:
    while True:
        start, lines.too_long = lines.number + 1, False
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = InputError(f"not CSV: {error}; is a quote open, or not doubled?")
        if lines.too_long:
            cells = InputError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
        if cells:
            yield start, cells


def _header(rows: Iterator[tuple[int, list[str] | InputError]], separator: str, fields: Fields) -> list[str]:
    _, header = next(rows, (1, InputError("is empty; its first line must name the columns")))
    if isinstance(header, InputError):
        raise header
    header = [name.strip() for name in header]
    try:
        fields.check(header)
    except InputError as error:
        if len(header) == 1 and ";" in header[0] and separator == ",":
            raise InputError(f"{error}; the header is separated by ';', a CSV's by ','") from error
        raise
    for column in fields.columns.values():
        if header.count(column) > 1:
            raise InputError(f"the column '{shorten(column, 60)}' is there {header.count(column)} times")
    return header


def _example(header: list[str], cells: list[str] | InputError, fields: Fields) -> dict[str, Any]:
    if isinstance(cells, InputError):
        raise cells
    if len(cells) != len(header):
        raise InputError(f"{len(cells)} cells, the header has {len(header)}")
    optional = {column for name, column in fields.columns.items() if name not in fields.required}
    row = {name: cell for name, cell in zip(header, cells, strict=True) if cell or name not in optional}
    try:
        return fields.pick(row)
    except InputError as error:
        raise InputError("a text in it is not UTF-8") from error  # all columns are there, so it can be nothing else
