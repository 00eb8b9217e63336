"""Parquet and Arrow files as record batches, one after another."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.records.files import DiskFile, File
from pipeline_kit.records.formats import Format
from pipeline_kit.records.unpack import head_of

__all__ = ["BATCH_ROWS", "Stretch", "TableFile", "opened_table", "told"]

BATCH_ROWS = 1024
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

Stretch = tuple[int, Any]
"""A number of rows, and their record batch; None if all of them are to be skipped."""


class TableFile(ABC):
    """An open file. Whatever goes wrong in it is raised as pyarrow raises it; see :func:`told`.

    :param rows: how many rows it has; None if that takes going through it.
    :param size: its bytes.
    """

    schema: Any
    rows: int | None
    size: int

    @abstractmethod
    def batches(self, names: Sequence[str], skip: int) -> Iterator[Stretch]:
        """Go through the columns `names`, of which there is at least one.

        :param skip: rows at the start that need not be read.
        """

    def count(self) -> int:
        """Count the rows."""
        if self.rows is not None:
            return self.rows
        return sum(rows for rows, _ in self.batches(self.schema.names[:1], 0))


@contextmanager
def told() -> Iterator[None]:
    """Turn what pyarrow raises into InputError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        text = str(error).strip().partition("\n")[0]
        raise InputError(
            f"cannot be read: {shorten(text) or type(error).__name__}; is it damaged or cut off?"
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
        if format == "parquet":
            if not head.startswith(b"PAR1"):
                raise InputError(_not("Parquet", head))
            with told():
                table: TableFile = _Parquet(_random_access(file, stream))
        elif head.startswith(b"ARROW1"):
            with told():
                table = _ArrowFile(_mapped(file, stream))
        else:
            if not head.startswith(b"\xff\xff\xff\xff") and head[3:4] != b"\0":  # the second is of before 2019
                raise InputError(_not("Arrow", head))
            with told():
                table = _ArrowStream(_mapped(file, stream))
        yield table


def _not(what: str, head: bytes) -> str:
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        return f"is {what} that was compressed once more, which cannot be read in place; unpack it first"
    return f"is not {what}: it begins with {shorten(repr(head), 60)}"


def _random_access(file: File, stream: BinaryIO) -> Any:
    return pa.OSFile(os.fsencode(file.path)) if isinstance(file, DiskFile) else pa.PythonFile(stream, "r")


def _mapped(file: File, stream: BinaryIO) -> Any:
    """Map the file: a batch may be as large as the file, and need not be held."""
    return pa.memory_map(os.fsencode(file.path)) if isinstance(file, DiskFile) else pa.PythonFile(stream, "r")


@final
class _Parquet(TableFile):
    """A Parquet file, read a page at a time."""

    def __init__(self, source: Any) -> None:
        self._file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        self.schema = self._file.schema_arrow
        self.rows = self._file.metadata.num_rows
        self.size = source.size()

    def batches(self, names: Sequence[str], skip: int) -> Iterator[Stretch]:
        metadata = self._file.metadata
        groups = list(range(metadata.num_row_groups))
        while groups and skip >= (rows := metadata.row_group(groups[0]).num_rows):
            skip -= rows
            groups.pop(0)
            yield rows, None
        if not groups:
            return
        for batch in self._file.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(names), use_threads=False):
            yield batch.num_rows, None if skip >= batch.num_rows else batch
            skip = max(0, skip - batch.num_rows)


@final
class _ArrowFile(TableFile):
    """An Arrow file of random access, such as Feather."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.schema = pa.ipc.open_file(source).schema
        self.rows = None
        self.size = source.size()

    def batches(self, names: Sequence[str], skip: int) -> Iterator[Stretch]:
        reader = pa.ipc.open_file(self._source, options=_only(self.schema, names))
        for place in range(reader.num_record_batches):
            batch = reader.get_batch(place)
            yield batch.num_rows, None if skip >= batch.num_rows else batch
            skip = max(0, skip - batch.num_rows)


@final
class _ArrowStream(TableFile):
    """An Arrow stream, as ``datasets`` saves it."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.schema = pa.ipc.open_stream(source).schema
        self.rows = None
        self.size = source.size()

    def batches(self, names: Sequence[str], skip: int) -> Iterator[Stretch]:
        self._source.seek(0)
        for batch in pa.ipc.open_stream(self._source, options=_only(self.schema, names)):
            yield batch.num_rows, None if skip >= batch.num_rows else batch
            skip = max(0, skip - batch.num_rows)
        # A stream cut off between two batches ends like a whole one, but for this mark.
        size = self._source.size()
        self._source.seek(max(0, size - len(_END_OF_STREAM)))
        if self._source.read() != _END_OF_STREAM:
            raise InputError("ends without Arrow's end-of-stream mark: it was cut off")


def _only(schema: Any, names: Sequence[str]) -> Any:
    return pa.ipc.IpcReadOptions(use_threads=False, included_fields=[schema.get_field_index(name) for name in names])
