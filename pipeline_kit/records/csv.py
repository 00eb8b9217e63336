"""Rows of CSV and TSV, whose first line names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO, final

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.records.columns import Columns, Row
from pipeline_kit.records.json import has_lone_surrogate
from pipeline_kit.records.lines import MAX_LINE_BYTES, Line, read_lines

__all__ = ["Table"]


@final
class Table:
    """A table with a header.

    CSV is read as RFC 4180 has it: a quoted cell may hold separators, doubled quotes and line ends. In TSV
    quotes are text and a cell holds neither tab nor line end, as the IANA type says. Blank lines are skipped.
    """

    def __init__(self, stream: BinaryIO, separator: str) -> None:
        """Read the header of `stream`.

        :raises InputError: if there is none, or reading fails.
        """
        if csv.field_size_limit() < MAX_LINE_BYTES:
            csv.field_size_limit(MAX_LINE_BYTES)  # the module's own limit of 128 KiB is shorter than real texts
        self._separator = separator
        self._lines = _Decoded(stream)
        if separator == "\t":
            self._reader = csv.reader(self._lines, delimiter=separator, quoting=csv.QUOTE_NONE, strict=True)
        else:
            self._reader = csv.reader(self._lines, delimiter=separator, strict=True)
        first = next(self.cells(), (1, InputError("is empty; its first line must name the columns")))[1]
        if isinstance(first, InputError):
            raise first
        self.header = [name.strip() for name in first]

    @property
    def ended(self) -> bool:
        """Whether a newline ended the last line that was read."""
        return self._lines.ended

    def check(self, columns: Columns) -> None:
        """See that the header has `columns`, each once.

        :raises InputError: if it has not; it names the closest one.
        """
        header = self.header
        try:
            columns.check(header)
        except InputError as error:
            if len(header) == 1 and ";" in header[0] and self._separator == ",":
                raise InputError(f"{error}; the header is separated by ';', a CSV's by ','") from error
            raise
        for column in columns.wanted:
            if header.count(column) > 1:
                raise InputError(f"the column '{shorten(column, 60)}' is there {header.count(column)} times")

    def cells(self) -> Iterator[tuple[int, list[str] | InputError]]:
        """Go through the rows below the header, each with the line it begins on, as they are."""
        while True:
            start = self._lines.number + 1
            self._lines.too_long = self._lines.bad = False
            try:
                cells: list[str] | InputError = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = InputError(f"not CSV: {error}; is a quote open, or not doubled?")
            if self._lines.too_long:
                cells = InputError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
            if cells:
                yield start, cells

    def row(self, cells: list[str] | InputError, columns: Columns) -> Row:
        """Give the wanted cells of a row that :meth:`cells` gave last, by column."""
        if isinstance(cells, InputError):
            return cells
        if len(cells) != len(self.header):
            return InputError(f"{len(cells)} cells, the header has {len(self.header)}")
        row: dict[str, Any] = dict(zip(self.header, cells, strict=True))
        if self._lines.bad:
            for column in columns.wanted:
                if has_lone_surrogate(row.get(column)):
                    row[column] = InputError("a text in it is not UTF-8")
        return row


@final
class _Decoded:
    """The lines for the csv module. Bytes that are not UTF-8 become surrogates, found again per cell."""

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = read_lines(stream)
        self.number = 0
        self.too_long = False
        self.bad = False
        self.ended = True

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number, self.ended = line.number, line.ended
            yield self._text(line)

    def _text(self, line: Line) -> str:
        if line.data is None:
            self.too_long = True
            return "\n"
        try:
            return line.data.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            self.bad = True
            return line.data.decode("utf-8", errors="surrogateescape") + "\n"
