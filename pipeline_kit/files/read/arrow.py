"""Parquet and Arrow files, and saved datasets, as parts of the input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_kit.errors import InputError, for_message
from pipeline_kit.files.read.arrow_types import ColumnReader, cells_of, reading_of
from pipeline_kit.files.read.columns import Columns
from pipeline_kit.files.read.formats import Format
from pipeline_kit.files.read.opened import DecompressionLimits, File, FilePart, head_of
from pipeline_kit.files.read.parts import InputPart, ReadRow, RowSelection, as_input_error

SLICE_BYTES = 8 << 20
"""About how much of a batch becomes Python objects at a time."""


@final
class ArrowPart(FilePart):
    """One or more files with the same columns, read in batches."""

    unit = "row"

    def __init__(self, label: str, files: Sequence[File], format: Format, limits: DecompressionLimits) -> None:
        """Read `files` one after another; their rows are numbered through."""
        super().__init__(label, files)
        self._format: Format = format
        self._limits = limits

    def check(self, columns: Columns) -> None:
        """Open every file and look at its columns and their types."""
        for file in self._files:
            with as_input_error(file.label), opened_table(file, self._format) as table:
                readings(table.schema, columns)

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows."""
        number = 0
        for file in self._files:
            try:
                with opened_table(file, self._format) as table:
                    for place in _places(table, columns, take, number, self._limits):
                        number += 1
                        yield place
                file.check()
            except InputError as error:
                until = f"; the last whole row is {number - 1}" if number else ""
                raise InputError(f"{file.label}: {error}{until}") from error

    def count(self, read: bool) -> int | None:
        """Count the rows by what the files say of themselves."""
        total = 0
        for file in self._files:
            with as_input_error(file.label), opened_table(file, self._format) as table, _arrow_errors():
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
    given = 0
    with _arrow_errors():
        for rows, batch in table.batches(list(plan), max(0, take.skip - number)):
            if batch is None:
                yield from ((place, None) for place in range(number, number + rows))
            else:
                batch.validate()  # else nbytes may follow an offset out of the file
                given += batch.nbytes + batch.num_rows  # a column of nulls has rows and no bytes
                limits.check(given, table.size)
                yield from batch_places(batch, plan, columns, take, number)
            number += rows


BATCH_ROWS = 1024
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

Stretch = tuple[int, Any]
"""A number of rows, and their record batch; None if all of them are to be skipped."""


@dataclass(frozen=True)
class TableFile:
    """An open file. Whatever goes wrong in it is raised as pyarrow raises it; see :func:`_arrow_errors`.

    :param rows: how many rows it has; None if that takes going through it.
    :param size: its bytes.
    :param batches: goes through the columns of these names, of which there is at least one; so many rows at the
        start need not be read.
    """

    schema: Any
    rows: int | None
    size: int
    batches: Callable[[Sequence[str], int], Iterator[Stretch]]

    def count(self) -> int:
        """Count the rows."""
        return sum(rows for rows, _ in self.batches(self.schema.names[:1], 0)) if self.rows is None else self.rows


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

    def batches(names: Sequence[str], skip: int) -> Iterator[Stretch]:
        groups = list(range(metadata.num_row_groups))
        while groups and skip >= (rows := metadata.row_group(groups[0]).num_rows):
            skip -= rows
            groups.pop(0)
            yield rows, None
        if groups:
            found = file.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(names), use_threads=False)
            yield from _stretches(found, skip)

    return TableFile(file.schema_arrow, metadata.num_rows, source.size(), batches)


def _arrow(source: Any, indexed: bool) -> TableFile:
    """Open an Arrow file of random access, such as Feather, or a stream, as ``datasets`` saves it."""

    def opened(options: Any = None) -> Any:
        source.seek(0)
        return (pa.ipc.open_file if indexed else pa.ipc.open_stream)(source, options=options)

    schema, size = opened().schema, source.size()

    def batches(names: Sequence[str], skip: int) -> Iterator[Stretch]:
        fields = [schema.get_field_index(name) for name in names]
        reader = opened(pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields))
        if indexed:
            yield from _stretches(map(reader.get_batch, range(reader.num_record_batches)), skip)
            return
        yield from _stretches(reader, skip)
        # A stream cut off between two batches ends like a whole one, but for this mark.
        source.seek(max(0, size - len(_END_OF_STREAM)))
        if source.read() != _END_OF_STREAM:
            raise InputError("ends without Arrow's end-of-stream mark: it was cut off")

    return TableFile(schema, None, size, batches)


def _stretches(batches: Iterable[Any], skip: int) -> Iterator[Stretch]:
    for batch in batches:
        yield batch.num_rows, None if skip >= batch.num_rows else batch
        skip = max(0, skip - batch.num_rows)


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
        return [
            {
                "name": self.label,
                "rows": len(self._dataset),
                "fingerprint": str(self._dataset._fingerprint),
            }
        ]

    def _plan(self, columns: Columns) -> dict[str, ColumnReader]:
        with as_input_error(self.label):
            return readings(self._dataset.features.arrow_schema, columns)
