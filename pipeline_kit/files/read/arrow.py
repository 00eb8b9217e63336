"""Parquet and Arrow files, and saved datasets, as parts of the input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, BinaryIO, final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_kit.errors import InputError, for_message
from pipeline_kit.files.read.arrow_types import ColumnReader, cells_of, reading_of
from pipeline_kit.files.read.columns import Columns
from pipeline_kit.files.read.formats import Format
from pipeline_kit.files.read.opened import DecompressionLimits, File, FilePart, SpooledFile, head_of
from pipeline_kit.files.read.parts import InputPart, ReadRow, RowSelection, as_input_error

SLICE_BYTES = 8 << 20
"""About how much of a batch becomes Python objects at a time."""


@final
class ArrowPart(FilePart):
    """One or more files with the same columns, read in batches."""

    unit = "row"
    any_row = True

    def __init__(self, label: str, files: Sequence[File], format: Format, limits: DecompressionLimits) -> None:
        """Read `files` one after another; their rows are numbered through."""
        super().__init__(label, files)
        self.splittable = not any(isinstance(file, SpooledFile) for file in files)
        self._format: Format = format
        self._limits = limits
        self._reading: File | None = None

    def check(self, columns: Columns) -> None:
        """Open every file and look at its columns and their types."""
        for file in self._files:
            with as_input_error(file.label), opened_table(file, self._format) as table:
                readings(table.schema, columns)

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows."""
        number, start = 0, 0 if take.mark is None else take.mark.row
        for file in self._files:
            first = number
            try:
                with opened_table(file, self._format) as table:
                    if number < start and number + (rows := table.count()) <= start:
                        number += rows
                        continue
                    self._reading = file
                    for place in _places(table, columns, take, first, self._limits):
                        number = place[0] + 1
                        yield place
                file.check()
            except InputError as error:
                until = f"; the last whole row is {number - 1}" if number else ""
                raise InputError(f"{file.label}: {error}{until}") from error

    def unchanged(self) -> None:
        """See that the file that was read last is the same; those before it were looked at when they ended."""
        if self._reading is not None:
            with as_input_error(self._reading.label):
                self._reading.check()

    def count(self, read: bool) -> int | None:
        """Count the rows by what the files say of themselves."""
        total = 0
        for file in self._files:
            with as_input_error(file.label), opened_table(file, self._format) as table:
                if table.rows is None and not read:
                    return None
                total += table.count()
        return total


def readings(schema: Any, columns: Columns) -> dict[str, ColumnReader]:
    """Plan how the wanted columns of a table are read.

    :raises InputError: if one is missing, there twice or of a type without a meaning in JSON.
    """
    found = {}
    with _arrow_errors():  # a name in a damaged schema may be no UTF-8
        names = schema.names
        columns.check(names)
        for name in columns.wanted:
            if names.count(name) > 1:
                raise InputError(f"the column '{for_message(name, 60)}' is there {names.count(name)} times")
            if name in names:
                try:
                    found[name] = reading_of(schema.field(name).type, name in columns.texts)
                except InputError as error:
                    raise InputError(f"the column '{for_message(name, 60)}': {error}") from error
    return found


def batch_places(
    batch: Any, plan: dict[str, ColumnReader], columns: Columns, take: RowSelection, number: int
) -> Iterator[ReadRow]:
    """Go through the rows of a record batch, of which the first is row `number` of its part.

    :raises pyarrow.ArrowException: if the batch is damaged.
    """
    size = max(1, min(BATCH_ROWS, SLICE_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, size):
        piece = batch.slice(start, size)
        cells = [cells_of(piece.column(name), reading) for name, reading in plan.items()]
        for row in zip(*cells, strict=True):
            picked = columns.parse(dict(zip(plan, row, strict=True)), absent=None) if number in take else None
            yield number, picked
            number += 1


def _places(
    table: TableFile, columns: Columns, take: RowSelection, number: int, limits: DecompressionLimits
) -> Iterator[ReadRow]:
    """Go through the rows of a file, of which the first is row `number` of its part."""
    plan = readings(table.schema, columns)
    given, start = 0, 0 if take.mark is None else take.mark.row
    with _arrow_errors():
        for rows, batch in table.batches(list(plan), take, number):
            first = min(max(number, start), number + rows)
            if batch is None:
                yield from zip(range(first, number + rows), repeat(None))
            else:
                batch.validate()  # else nbytes may follow an offset out of the file
                given += batch.nbytes + batch.num_rows  # a column of nulls has rows and no bytes
                limits.check(given, table.size)
                yield from batch_places(batch.slice(first - number), plan, columns, take, first)
            number += rows


BATCH_ROWS = 1024
_ENDS_OF_STREAM = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")
"""What follows the last batch of a stream; the second is of before 2019."""

SomeRows = tuple[int, Any]
"""A number of rows, and their record batch; None if all of them are to be skipped."""


@dataclass(frozen=True)
class TableFile:
    """An open file. Whatever goes wrong in it is raised as pyarrow raises it; see :func:`_arrow_errors`.

    :param rows: how many rows it has; None if that takes going through it.
    :param size: its bytes.
    :param batches: goes through the columns of these names, of which there is at least one; rows that the selection
        skips need not be read. The number is that of the file's first row in its part.
    """

    schema: Any
    rows: int | None
    size: int
    batches: Callable[[Sequence[str], RowSelection, int], Iterator[SomeRows]]

    def count(self) -> int:
        """Count the rows."""
        if self.rows is not None:
            return self.rows
        with _arrow_errors():
            return sum(rows for rows, _ in self.batches(self.schema.names[:1], RowSelection(), 0))


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """Turn what pyarrow raises into InputError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        text = str(error).strip().partition("\n")[0]
        raise InputError(
            f"cannot be read: {for_message(text) or type(error).__name__}; is it damaged or cut off?"
        ) from error


@contextmanager
def opened_table(file: File, format: Format) -> Iterator[TableFile]:
    """Open a Parquet or an Arrow file; an Arrow file may be one of random access or a stream.

    :raises InputError: if it is neither.
    """
    with file.open() as stream:
        head = head_of(stream)
        if not head:
            raise InputError("is empty")
        indexed = head.startswith(b"ARROW1")
        streamed = head.startswith(b"\xff\xff\xff\xff") or head[3:4] == b"\0"  # the second is of before 2019
        if not (head.startswith(b"PAR1") if format == "parquet" else indexed or streamed):
            what = format.capitalize()
            if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
                raise InputError(
                    f"is {what} that was compressed once more, which cannot be read in place; unpack it first"
                )
            raise InputError(f"is not {what}: it begins with {for_message(repr(head), 60)}")
        with _arrow_errors():
            if format == "parquet":
                table = _parquet(_source(file, stream, pa.OSFile))
            else:  # mapped: a batch may be as large as the file, and need not be held
                table = _arrow(_source(file, stream, pa.memory_map), indexed)
        yield table


def _source(file: File, stream: BinaryIO, opened: Callable[[bytes], Any]) -> Any:
    return pa.PythonFile(stream, "r") if file.path is None else opened(os.fsencode(file.path))


def _parquet(source: Any) -> TableFile:
    """Open a Parquet file, which is read a page at a time."""
    file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
    metadata = file.metadata

    def batches(names: Sequence[str], take: RowSelection, number: int) -> Iterator[SomeRows]:
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if number + rows <= take.skip:
                yield rows, None
            else:
                found = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(names), use_threads=False)
                yield from _sized(found, take, number)
            number += rows

    return TableFile(file.schema_arrow, metadata.num_rows, source.size(), batches)


def _arrow(source: Any, indexed: bool) -> TableFile:
    """Open an Arrow file of random access, such as Feather, or a stream, as ``datasets`` saves it."""

    def opened(options: Any = None) -> Any:
        source.seek(0)
        return (pa.ipc.open_file if indexed else pa.ipc.open_stream)(source, options=options)

    schema, size = opened().schema, source.size()

    def batches(names: Sequence[str], take: RowSelection, number: int) -> Iterator[SomeRows]:
        fields = [schema.get_field_index(name) for name in names]
        reader = opened(pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields))
        if indexed:
            yield from _sized(map(reader.get_batch, range(reader.num_record_batches)), take, number)
            return
        yield from _sized(_whole_stream(source, reader), take, number)

    return TableFile(schema, None, size, batches)


def _whole_stream(source: Any, reader: Iterable[Any]) -> Iterator[Any]:
    end = source.tell()
    for batch in reader:
        end = source.tell()
        yield batch
    # A stream cut off between two batches ends like a whole one, but for this mark.
    source.seek(end)
    if source.read(len(_ENDS_OF_STREAM[0]) + 1) not in _ENDS_OF_STREAM:
        raise InputError("ends without Arrow's end-of-stream mark: it was cut off")


def _sized(batches: Iterable[Any], take: RowSelection, number: int) -> Iterator[SomeRows]:
    for batch in batches:
        number += batch.num_rows
        yield batch.num_rows, None if number <= take.skip else batch


@final
class DatasetPart(InputPart):
    """A dataset with rows at known places; selections and shuffles of it are followed."""

    unit = "row"

    def __init__(self, dataset: Any, label: str = "dataset") -> None:
        self.label = label
        self._dataset = dataset

    def check(self, columns: Columns) -> None:
        """Look at the columns and their types."""
        self._plan(columns)

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows."""
        plan = self._plan(columns)
        total = len(self._dataset)
        yield from ((number, None) for number in range(min(take.skip, total)))
        tables = self._dataset.with_format("arrow", columns=list(plan))
        for start in range(take.skip, total, BATCH_ROWS):
            number = start
            with as_input_error(f"{self.label}: rows from {start}"), _arrow_errors():
                for batch in tables[start : start + BATCH_ROWS].to_batches():
                    yield from batch_places(batch, plan, columns, take, number)
                    number += batch.num_rows

    def count(self, read: bool) -> int:
        """Count the rows."""
        return len(self._dataset)

    def identity(self) -> list[dict[str, Any]]:
        """Return the fingerprint that the library keeps of the data and what was done to it."""
        return [{"name": self.label, "rows": len(self._dataset), "fingerprint": str(self._dataset._fingerprint)}]

    def _plan(self, columns: Columns) -> dict[str, ColumnReader]:
        with as_input_error(self.label):
            return readings(self._dataset.features.arrow_schema, columns)
