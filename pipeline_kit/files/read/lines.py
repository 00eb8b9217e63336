"""A file of lines: text, JSONL, CSV or TSV, compressed or not."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, final

from pipeline_kit.errors import InputError, for_message
from pipeline_kit.files.json_text import has_lone_surrogate, parse_example
from pipeline_kit.files.read.columns import Columns, ParsedRow, RawRow
from pipeline_kit.files.read.encodings import BYTES_LOOKED_AT, refuse_other_encodings
from pipeline_kit.files.read.formats import Format
from pipeline_kit.files.read.opened import DecompressionLimits, File, FilePart, decompressed, head_of
from pipeline_kit.files.read.parts import ReadRow, RowSelection, as_input_error

MOST_COUNTED = 1 << 30
"""A larger file is not read through to count its rows."""


@final
class LinePart(FilePart):
    """A file whose rows are lines; a table's row may be several."""

    unit = "line"

    def __init__(self, file: File, format: Format, limits: DecompressionLimits) -> None:
        """Read `file` as `format`; `limits` say how far it is unpacked."""
        super().__init__(file.label, [file])
        self._file = file
        self._format: Format = format
        self._limits = limits

    def check(self, columns: Columns) -> None:
        """Open the file and look for the columns."""
        with as_input_error(self.label), self._reader() as reader:
            reader.check(columns)

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows."""
        last: int | None = None
        try:
            with self._reader() as reader:
                for place, parsed in reader.rows(columns, take):
                    last = place
                    yield place, parsed
            self._file.check()
        except InputError as error:
            until = "" if last is None else f"; the last whole row is in line {last}"
            raise InputError(f"{self.label}: {error}{until}") from error

    def count(self, read: bool) -> int | None:
        """Count the rows of a file that is not compressed and of moderate size."""
        if not read:
            return None
        with as_input_error(self.label), self._file.open() as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            if size > MOST_COUNTED or decompressed(stream, self._file.name, self._limits) is not stream:
                return None
            return READERS[self._format](stream).count()

    def head(self) -> bytes:
        """Return the file's first bytes."""
        with as_input_error(self.label), self._file.open() as stream:
            return head_of(stream)

    @contextmanager
    def _reader(self) -> Iterator[LineReader]:
        with self._file.open() as stream:
            yield READERS[self._format](decompressed(stream, self._file.name, self._limits))


ROWS_LOOKED_AT = 1000
"""How many rows of JSONL are looked at for a column that none may have."""

_OTHER_FORMAT = "; if it is another format, say so: input.format=jsonl"


class LineReader(ABC):
    """Reads the rows of a stream in one format, once."""

    ended = True
    """Whether a newline ended the last line that was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    @abstractmethod
    def check(self, columns: Columns) -> None:
        """See that the columns are there, as far as that shows in the first rows.

        :raises InputError: if not, or if the stream is in another encoding.
        """

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows, each with the line it begins on.

        :raises InputError: if reading fails, or a table's header lacks a column.
        """
        for number, (line, raw) in enumerate(self._raw()):
            if number not in take:
                yield line, None
                continue
            parsed = self._parsed(raw, columns)
            if not self.ended and isinstance(parsed.example, InputError):
                torn = f"{parsed.example} (the file's last line, without a newline: was it cut off?)"
                parsed = parsed._replace(example=InputError(torn))
            yield line, parsed

    def count(self) -> int:
        """Count the rows as :meth:`rows` returns them."""
        return sum(1 for _ in self._raw())

    @abstractmethod
    def _raw(self) -> Iterator[tuple[int, Any]]:
        """Go through the rows as they are read, each with the line it begins on."""

    @abstractmethod
    def _parsed(self, raw: Any, columns: Columns) -> ParsedRow:
        """Parse a row of :meth:`_raw`, the last one that was read."""


@final
class _TextReader(LineReader):
    """A text a line."""

    def check(self, columns: Columns) -> None:
        missing = [*(column for name, column in columns.fields.items() if name != column), *columns.named]
        if missing:
            what = f"without the column '{for_message(missing[0], 60)}'"
            raise InputError(f"is text, a row a line, {what}{_OTHER_FORMAT}")
        if len(columns.required) > 1:
            needed = " and ".join(columns.required)
            raise InputError(f"is text, a row a line, where the task needs {needed}{_OTHER_FORMAT}")
        next(read_lines(self._stream), None)  # what is in another encoding fails here

    def _raw(self) -> Iterator[tuple[int, Line]]:
        return ((line.number, line) for line in read_lines(self._stream))

    def _parsed(self, raw: Line, columns: Columns) -> ParsedRow:
        try:
            text = raw.text()
        except InputError as error:
            return columns.parse(error)
        return columns.parse(text) if columns.named else ParsedRow(text, None, {})  # decoded, so no surrogates


@final
class _JsonReader(LineReader):
    """A string or an object a line; blank lines are skipped."""

    def check(self, columns: Columns) -> None:
        found: dict[str, None] = {}
        texts = False
        for _, line in islice(self._raw(), ROWS_LOOKED_AT):
            row = _json_row(line)
            if isinstance(row, str):
                texts = True
            elif not isinstance(row, InputError):
                found.update(dict.fromkeys(row))
        if texts:
            columns = columns.without_fields  # a text alone is an example, too
        if found or (texts and columns.named):
            try:
                columns.check(list(found))
            except InputError as error:
                raise InputError(f"in the first {ROWS_LOOKED_AT:,} rows {error}") from error

    def _raw(self) -> Iterator[tuple[int, Line]]:
        for line in read_lines(self._stream):
            if line.data is None or line.data.strip():
                self.ended = line.ended
                yield line.number, line

    def _parsed(self, raw: Line, columns: Columns) -> ParsedRow:
        return columns.parse(_json_row(raw))


def _json_row(line: Line) -> RawRow:
    try:
        return parse_example(line.text())
    except InputError as error:
        return error


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
class _TableReader(LineReader):
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
        super().__init__(stream)
        self._separator = separator
        self._number = 0
        self._too_long = self._bad = False
        self._reader = csv.reader(
            self._texts(),
            delimiter=separator,
            quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
            strict=True,
        )
        first = next(self._raw(), (1, InputError("is empty; its first line must name the columns")))[1]
        if isinstance(first, InputError):
            raise first
        self._header = [name.strip() for name in first]

    def check(self, columns: Columns) -> None:
        header = self._header
        try:
            columns.check(header)
        except InputError as error:
            if len(header) == 1 and ";" in header[0] and self._separator == ",":
                raise InputError(f"{error}; the header is separated by ';', a CSV's by ','") from error
            raise
        for column in columns.wanted:
            if header.count(column) > 1:
                raise InputError(f"the column '{for_message(column, 60)}' is there {header.count(column)} times")

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        self.check(columns)
        return super().rows(columns, take)

    def _raw(self) -> Iterator[tuple[int, list[str] | InputError]]:
        while True:
            start = self._number + 1
            self._too_long = self._bad = False
            try:
                cells: list[str] | InputError = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = InputError(f"not CSV: {error}; is a quote open, or not doubled?")
            if self._too_long:
                cells = InputError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
            if cells:
                yield start, cells

    def _parsed(self, raw: list[str] | InputError, columns: Columns) -> ParsedRow:
        if isinstance(raw, InputError):
            return columns.parse(raw)
        if len(raw) != len(self._header):
            return columns.parse(InputError(f"{len(raw)} cells, the header has {len(self._header)}"))
        row: dict[str, Any] = dict(zip(self._header, raw, strict=True))
        if self._bad:
            for column in columns.wanted:
                if has_lone_surrogate(row.get(column)):
                    row[column] = InputError("a text in it is not UTF-8")
        return columns.parse(row, absent="")

    def _texts(self) -> Iterator[str]:
        """Go through the lines for the csv module. Bytes that are not UTF-8 become surrogates, found again per cell."""
        for line in read_lines(self._stream):
            self._number, self.ended = line.number, line.ended
            self._too_long = self._too_long or line.data is None
            data = line.data or b""
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                self._bad = True
                text = data.decode("utf-8", errors="surrogateescape")
            yield text + "\n"


READERS: Mapping[str, Callable[[BinaryIO], LineReader]] = {
    "text": _TextReader,
    "jsonl": _JsonReader,
    "csv": partial(_TableReader, separator=","),
    "tsv": partial(_TableReader, separator="\t"),
}
"""By format, what reads it."""
