"""A file of lines: text, JSONL, CSV or TSV, compressed or not."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, final

from pipeline_kit.errors import InputError, for_message
from pipeline_kit.files.json_text import has_lone_surrogate, parse_example
from pipeline_kit.files.read.columns import Columns, Fields, ParsedRow, RawRow
from pipeline_kit.files.read.encodings import BYTES_LOOKED_AT, refuse_other_encodings
from pipeline_kit.files.read.formats import Format
from pipeline_kit.files.read.opened import DecompressionLimits, File, decompressed, head_of
from pipeline_kit.files.read.parts import InputPart, ReadRow, RowSelection

MOST_COUNTED = 1 << 30
"""A larger file is not read through to count its rows."""


@final
class LinePart(InputPart):
    """A file whose rows are lines; a table's row may be several."""

    unit = "line"

    def __init__(self, file: File, format: Format, limits: DecompressionLimits) -> None:
        """Read `file` as `format`; `limits` say how far it is unpacked."""
        self.label = file.label
        self._file = file
        self._format: Format = format
        self._limits = limits

    def check(self, columns: Columns) -> None:
        """Open the file and look for the columns."""
        with self._told(), self._stream() as stream:
            check_lines(stream, self._format, columns)

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows."""
        last: int | None = None
        try:
            with self._stream() as stream:
                for place, picked in read_rows(stream, self._format, columns, take):
                    last = place
                    yield place, picked
            self._file.check()
        except InputError as error:
            until = "" if last is None else f"; the last whole row is in line {last}"
            raise InputError(f"{self.label}: {error}{until}") from error

    def count(self, read: bool) -> int | None:
        """Count the rows of a file that is not compressed and of moderate size."""
        if not read:
            return None
        with self._told(), self._file.open() as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            if size > MOST_COUNTED or decompressed(stream, self._file.name, self._limits) is not stream:
                return None
            return count_lines(stream, self._format)

    def identity(self) -> list[dict[str, Any]]:
        """Return the file's name, size and sha256."""
        with self._told():
            return [self._file.identity()]

    def head(self) -> bytes:
        """Return the file's first bytes."""
        with self._told(), self._file.open() as stream:
            return head_of(stream)

    def unchanged(self) -> None:
        """See that the file is the same."""
        with self._told():
            self._file.check()

    def close(self) -> None:
        """Release the copy of stdin."""
        self._file.close()

    @contextmanager
    def _stream(self) -> Iterator[BinaryIO]:
        with self._file.open() as stream:
            yield decompressed(stream, self._file.name, self._limits)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.label}: {error}") from error


ROWS_LOOKED_AT = 1000
"""How many rows of JSONL are looked at for a column that none may have."""

_OTHER_FORMAT = "; if it is another format, say so: input.format=jsonl"


def read_rows(stream: BinaryIO, format: Format, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
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
        CsvTable(stream, "\t" if format == "tsv" else ",").check(columns)
    elif format == "text":
        _check_text(columns)
        next(read_lines(stream), None)  # what is in another encoding fails here
    else:
        _check_json(stream, columns)


def count_lines(stream: BinaryIO, format: Format) -> int:
    """Count the rows as :func:`read_rows` returns them."""
    if format in ("csv", "tsv"):
        return sum(1 for _ in CsvTable(stream, "\t" if format == "tsv" else ",").cells())
    return sum(1 for line in read_lines(stream) if format == "text" or not _blank(line))


def _text_rows(stream: BinaryIO, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
    for number, line in enumerate(read_lines(stream)):
        if number not in take:
            yield line.number, None
            continue
        try:
            text = line.text()
        except InputError as error:
            yield line.number, columns.pick(error)
            continue
        yield (
            line.number,
            columns.pick(text) if columns.named else ParsedRow(text, None, {}),
        )  # decoded, so no surrogates


def _json_rows(stream: BinaryIO, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
    lines = (line for line in read_lines(stream) if not _blank(line))
    for number, line in enumerate(lines):
        if number not in take:
            yield line.number, None
            continue
        yield line.number, _or_torn(columns.pick(_json_row(line)), line.ended)


def _table_rows(stream: BinaryIO, separator: str, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
    table = CsvTable(stream, separator)
    table.check(columns)
    for number, (line, cells) in enumerate(table.cells()):
        if number not in take:
            yield line, None
            continue
        yield line, _or_torn(columns.pick(table.row(cells, columns), absent=""), table.ended)


def _or_torn(picked: ParsedRow, ended: bool) -> ParsedRow:
    """Add the likely cause to the error of a bad last line without a newline."""
    if ended or not isinstance(picked.example, InputError):
        return picked
    torn = InputError(f"{picked.example} (the file's last line, without a newline: was it cut off?)")
    return ParsedRow(torn, picked.id, picked.carried)


def _blank(line: Line) -> bool:
    return line.data is not None and not line.data.strip()


def _json_row(line: Line) -> RawRow:
    try:
        return parse_example(line.text())
    except InputError as error:
        return error


def _check_text(columns: Columns) -> None:
    for name, column in columns.fields.columns.items():
        if name != column:
            raise InputError(f"is text, a row a line, without the column '{for_message(column, 60)}'{_OTHER_FORMAT}")
    if columns.named:
        raise InputError(
            f"is text, a row a line, without the column '{for_message(columns.named[0], 60)}'{_OTHER_FORMAT}"
        )
    if len(columns.fields.required) > 1:
        needed = " and ".join(columns.fields.required)
        raise InputError(f"is text, a row a line, where the task needs {needed}{_OTHER_FORMAT}")


def _check_json(stream: BinaryIO, columns: Columns) -> None:
    rows = (_json_row(line) for line in read_lines(stream) if not _blank(line))
    found: dict[str, None] = {}
    texts = False
    for row in islice(rows, ROWS_LOOKED_AT):
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
            raise InputError(f"in the first {ROWS_LOOKED_AT:,} rows {error}") from error


MAX_LINE_BYTES = 32 << 20
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    r"""One line.

    :param number: its place in the file, from 1.
    :param data: its bytes without the line end; None if it is too long to be held.
    :param ended: whether a ``\n`` ended it; only the last line can lack one.
    """

    number: int
    data: bytes | None
    ended: bool

    def text(self) -> str:
        """Decode the line.

        :raises InputError: if it is too long or not UTF-8; says which byte.
        """
        if self.data is None:
            raise InputError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = self.data[error.start]
            raise InputError(f"not UTF-8: byte 0x{bad:02x} at byte {error.start + 1} of the line") from error


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    r"""Go through the lines of `stream`; ``\r\n`` counts as ``\n`` and a byte order mark is dropped.

    Other characters that Unicode calls line ends, such as U+2028, are text. A file's last newline
    begins no further line.

    :raises InputError: if reading fails, or the stream is in another encoding.
    """
    refuse_other_encodings(head_of(stream, BYTES_LOOKED_AT))
    number = 0
    while True:
        number += 1
        data = _read(stream, MAX_LINE_BYTES + 2)
        if not data:
            return
        if number == 1:
            data = data.removeprefix(_BOM)
        ended = data.endswith(b"\n")
        if not ended and len(data) > MAX_LINE_BYTES:
            while (rest := _read(stream, 1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield Line(number, None, bool(rest))
            continue
        yield Line(number, data.removesuffix(b"\n").removesuffix(b"\r"), ended)


def _read(stream: BinaryIO, limit: int) -> bytes:
    try:
        return stream.readline(limit)
    except OSError as error:
        raise InputError(f"reading failed: {error.strerror or error}") from error


@final
class CsvTable:
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
                raise InputError(f"the column '{for_message(column, 60)}' is there {header.count(column)} times")

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

    def row(self, cells: list[str] | InputError, columns: Columns) -> RawRow:
        """Return the wanted cells of a row that :meth:`cells` returned last, by column."""
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
