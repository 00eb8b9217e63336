"""A file of lines: text, JSONL, CSV or TSV, compressed or not."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, final

from pipeline_kit.errors import InputError, UsageError, did_you_mean, for_message
from pipeline_kit.files.json_text import has_lone_surrogate, parse_example
from pipeline_kit.files.read.columns import Columns, ParsedRow, RawRow
from pipeline_kit.files.read.formats import FORMATS, PLUGGED, Format
from pipeline_kit.files.read.opened import DecompressionLimits, File, FilePart, SpooledFile, decompressed, head_of
from pipeline_kit.files.read.parts import MARK_ROWS, Mark, PartIds, PartIndex, ReadRow, RowSelection, as_input_error
from pipeline_kit.files.read.text_lines import MAX_LINE_BYTES, Line, read_lines

MOST_COUNTED = 1 << 30
"""A larger file is not read through to count its rows."""


@final
class LinePart(FilePart):
    """A file whose rows are lines; a table's row may be several."""

    unit = "line"

    def __init__(self, file: File, format: Format, limits: DecompressionLimits) -> None:
        """Read `file` as `format`; `limits` say how far it is unpacked."""
        super().__init__(file.label, [file])
        self.splittable = not isinstance(file, SpooledFile)
        self._file = file
        self._format: Format = format
        self._limits = limits

    def check(self, columns: Columns) -> None:
        """Open the file and look for the columns."""
        with as_input_error(self.label), self._reader() as reader:
            reader.check(columns)

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows."""
        with self._whole_reader() as reader:
            yield from reader.rows(columns, take)

    def index(self, id: str | None, most: int | None) -> PartIndex:
        """Go through the file; marks are set in one that is not compressed."""
        with self._whole_reader() as reader:
            return reader.index(self.label, id, most)

    def count(self, read: bool) -> int | None:
        """Count the rows of a file of this machine that is not compressed and of moderate size."""
        if not read or self._file.remote:
            return None
        with as_input_error(self.label), self._file.open() as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            if size > MOST_COUNTED or decompressed(stream, self._file.name, self._limits) is not stream:
                return None
            return reader_of(self._format)(stream).count()

    def head(self) -> bytes:
        """Return the file's first bytes."""
        with as_input_error(self.label), self._file.open() as stream:
            return head_of(stream)

    @contextmanager
    def _reader(self) -> Iterator[LineReader]:
        with self._file.open() as stream:
            yield reader_of(self._format)(decompressed(stream, self._file.name, self._limits))

    @contextmanager
    def _whole_reader(self) -> Iterator[LineReader]:
        """Open the file to read it to its end, which shows whether it was changed; an error names the last row."""
        reader = None
        try:
            with self._reader() as reader:
                yield reader
            self._file.check()
        except InputError as error:
            until = f"; the last whole row is in line {reader.last}" if reader is not None and reader.last else ""
            raise InputError(f"{self.label}: {error}{until}") from error


ROWS_LOOKED_AT = 1000
"""How many rows of JSONL are looked at for a column that none may have."""

_OTHER_FORMAT = "; if it is another format, say so: input.format=jsonl"


class LineReader(ABC):
    """Reads the rows of a stream in one format, once."""

    ended = True
    """Whether a newline ended the last line that was read."""
    last = 0
    """The line on which the last row that was read begins."""
    has_marks = True
    """Whether reading can begin at a byte in the middle."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._before = 0

    @abstractmethod
    def check(self, columns: Columns) -> None:
        """See that the columns are there, as far as that shows in the first rows.

        :raises InputError: if not, or if the stream is in another encoding.
        """

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows, each with the line it begins on.

        :raises InputError: if reading fails, or a table's header lacks a column.
        """
        if take.mark is not None:
            self._go_to(take.mark)
        for number, (line, raw) in enumerate(self._raw(), 0 if take.mark is None else take.mark.row):
            self.last = line
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

    def index(self, label: str, id: str | None, most: int | None) -> PartIndex:
        """Go through the rows as :meth:`InputPart.index` does.

        :param label: the part's, for the ids of rows that have none.
        """
        marks, marked, number = array("Q"), self._stream.seekable() and self.has_marks, 0
        ids, columns = None if id is None else PartIds(label), Columns(id=id)
        for number, (line, raw) in enumerate(islice(self._raw(), most), 1):
            self.last = line
            if ids is not None:
                ids.add(line, self._parsed(raw, columns).id)
            if marked and not number % MARK_ROWS:
                marks.extend((self._stream.tell(), self._lines_to(line)))
        return PartIndex(number, marks.tobytes()) if ids is None else ids.index(marks.tobytes())

    def _go_to(self, mark: Mark) -> None:
        """Make :meth:`_raw` begin at `mark`."""
        self._stream.seek(mark.byte)
        self._before = mark.line

    def _lines_to(self, line: int) -> int:
        """Count the lines up to the end of the last row that was read, which began on `line`."""
        return line

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
        return ((line.number, line) for line in read_lines(self._stream, self._before))

    def _parsed(self, raw: Line, columns: Columns) -> ParsedRow:
        try:
            text = raw.text()
        except InputError as error:
            return columns.parse(error)
        return columns.parse(text) if columns.named else ParsedRow(text, None, {})  # decoded, so no surrogates


class _RecordReader(LineReader):
    """Rows that are texts or have columns of their own each."""

    def check(self, columns: Columns) -> None:
        found: dict[str, None] = {}
        texts = False
        for _, raw in islice(self._raw(), ROWS_LOOKED_AT):
            row = self._row(raw)
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

    def _parsed(self, raw: Any, columns: Columns) -> ParsedRow:
        return columns.parse(self._row(raw))

    @abstractmethod
    def _row(self, raw: Any) -> RawRow:
        """Return the text or the columns of a row of :meth:`_raw`, or why there is neither."""


@final
class _PluggedReader(_RecordReader):
    """The rows of a plugin's format; a row's place is its number, from 1."""

    has_marks = False

    def __init__(self, stream: BinaryIO, format: Format) -> None:
        super().__init__(stream)
        self._format = format

    def _raw(self) -> Iterator[tuple[int, RawRow]]:
        try:
            yield from enumerate(PLUGGED[self._format]()(self._stream), 1)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise InputError(f"cannot be read as {self._format}: {type(error).__name__}: {error}") from error

    def _row(self, raw: Any) -> RawRow:
        known = isinstance(raw, str | Mapping | InputError)
        return raw if known else InputError(f"the reader of {self._format} yields {type(raw).__name__}")


@final
class _JsonReader(_RecordReader):
    """A string or an object a line; blank lines are skipped."""

    def _raw(self) -> Iterator[tuple[int, Line]]:
        for line in read_lines(self._stream, self._before):
            if line.data is None or line.data.strip():
                self.ended = line.ended
                yield line.number, line

    def _row(self, raw: Line) -> RawRow:
        try:
            return parse_example(raw.text())
        except InputError as error:
            return error


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
        self._number = self._held = 0
        self._too_long = self._bad = False
        self._reader = self._cells()
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

    def _go_to(self, mark: Mark) -> None:
        super()._go_to(mark)
        self._number = mark.line
        self._reader = self._cells()

    def _lines_to(self, line: int) -> int:
        return self._number

    def _cells(self) -> Iterator[list[str]]:
        return csv.reader(
            self._texts(),
            delimiter=self._separator,
            quoting=csv.QUOTE_NONE if self._separator == "\t" else csv.QUOTE_MINIMAL,
            strict=True,
        )

    def _raw(self) -> Iterator[tuple[int, list[str] | InputError]]:
        while True:
            start = self._number + 1
            self._held, self._too_long, self._bad = 0, False, False
            try:
                cells: list[str] | InputError = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = InputError(f"not CSV: {_csv_fault(error)}")
            if self._too_long:
                cells = InputError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
                self._before = self._number
                self._reader = self._cells()
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
        for line in read_lines(self._stream, self._before):
            self._number, self.ended = line.number, line.ended
            data = line.data or b""
            self._held += len(data) + 1
            if line.data is None or self._held > MAX_LINE_BYTES + 2:
                self._too_long = True
                raise csv.Error  # with cells of many lines, a row could become as long as the file
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                self._bad = True
                text = data.decode("utf-8", errors="surrogateescape")
            yield text + "\n"


def _csv_fault(error: csv.Error) -> str:
    if "new-line" in str(error):
        return (
            "a carriage return stands outside of quotes; quote its cell (if all lines end so: tr '\\r' '\\n' < "
            "OLD-FILE > NEW-FILE)"
        )
    return f"{error}; is a quote open, or not doubled?"


READERS: Mapping[str, Callable[[BinaryIO], LineReader]] = {
    "text": _TextReader,
    "jsonl": _JsonReader,
    "csv": partial(_TableReader, separator=","),
    "tsv": partial(_TableReader, separator="\t"),
}
"""By format, what reads it."""


def reader_of(format: Format) -> Callable[[BinaryIO], LineReader]:
    """Return what reads a stream in `format`.

    :raises UsageError: if nothing does.
    """
    if format in PLUGGED:
        return partial(_PluggedReader, format=format)
    if format not in READERS:
        known = (*FORMATS, *PLUGGED)
        raise UsageError(
            f"the input format '{for_message(format, 40)}' is not known; there are: {', '.join(known)}."
            + did_you_mean(format, known)
        )
    return READERS[format]
