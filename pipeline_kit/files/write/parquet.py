"""Parquet through pyarrow, which the extra ``files`` brings; the same rows always make the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_kit.contract.column_types import ColumnType, holds, library_type
from pipeline_kit.errors import for_message
from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.write.base import Append, OutputValues, RowErrors, Schema, StreamFormat, Write
from pipeline_kit.files.write.layout import ID, Layout

Compression = Literal["zstd", "snappy"]

_SCALARS = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "float32": pa.float32()}
_SCALARS["bool"] = pa.bool_()
_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, pa.ArrowException)


@final
class Parquet(StreamFormat):
    """One row group for each chunk of rows; all columns may be null."""

    suffix = ".parquet"
    chunk_rows = 10_000

    def __init__(self, layout: Layout, compression: Compression = "zstd") -> None:
        self._layout = layout
        self._compression = compression

    def schema(self, rows: Sequence[OutputValues]) -> Schema | None:
        """Return the columns with their kinds."""
        return {"columns": [[name, kind] for name, kind in self._layout.columns(rows)]}

    @contextmanager
    def stream(self, write: Write, schema: Schema | None) -> Iterator[Append]:
        """Write a row group whenever rows come, at the end the footer."""
        assert schema is not None, "`schema` returns one"
        columns: dict[str, ColumnType] = dict(schema["columns"])
        typed = pa.schema([(name, _type(kind)) for name, kind in columns.items()])
        texts = [path for name, kind in columns.items() for path in _text_paths(name, kind)]
        sink = _Sink(write)
        writer = pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"), typed, compression=self._compression, use_dictionary=texts
        )

        def append(rows: Sequence[OutputValues]) -> None:
            if rows:
                writer.write_table(self._table(rows, columns, typed))

        try:
            yield append
            writer.close()
        except BaseException:
            sink.discard()  # otherwise closing the writer, now or when it is collected, would write a footer
            with suppress(Exception):
                writer.close()
            raise

    def _table(self, rows: Sequence[OutputValues], columns: Mapping[str, ColumnType], typed: pa.Schema) -> pa.Table:
        refused = RowErrors()
        refused.add_unknown(rows, columns)
        arrays: list[pa.Array] = []
        for name, kind in columns.items():
            values = [row.get(name) for row in rows]
            carried = name == ID or name in self._layout.carry
            try:
                arrays.append(_array(values, kind, carried))
            except _ERRORS:
                if not _refuse(values, kind, carried, refused, name):
                    raise
        refused.check()
        return pa.Table.from_arrays(arrays, schema=typed)


class _Sink:
    """The file that pyarrow writes to."""

    closed = False

    def __init__(self, write: Write) -> None:
        self._write: Write | None = write
        self._written = 0

    def write(self, data: bytes) -> int:
        if self._write is not None:
            try:
                self._write(data)
            except BaseException:
                self.discard()  # pyarrow goes on to write a footer before it raises
                raise
        self._written += len(data)
        return len(data)

    def discard(self) -> None:
        self._write = None

    def tell(self) -> int:
        return self._written

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def _array(values: Sequence[Any], kind: ColumnType, carried: bool) -> pa.Array:
    """Return a column.

    :param carried: whether the values come from the input, where NaN may be meant.
    :raises TypeError: if a value does not fit; nothing is rounded, cut or left out to make it fit.
    :raises ValueError: if a text has a lone surrogate, or a number of a result is not finite.
    """
    if kind == "string":
        values = [value if value is None or isinstance(value, str) else json_line(value) for value in values]
    for value in values:
        if not holds(value, kind):
            name = kind if isinstance(kind, str) else _type(kind)
            raise TypeError(
                f"{for_message(value, 60)} does not fit the type {name}, set by the first rows or output.types"
            )
    array = pa.array(values, _type(kind))
    if not carried and not _finite(array):
        raise ValueError("holds a number that is not finite")
    return array


def _refuse(values: Sequence[Any], kind: ColumnType, carried: bool, refused: RowErrors, name: str) -> int:
    """Refuse the rows whose value cannot be written; return their number."""
    count = 0
    for index, value in enumerate(values):
        try:
            _array([value], kind, carried)
        except _ERRORS as error:
            refused.add(index, error, name)
            count += 1
    return count


def _finite(array: pa.Array) -> bool:
    if pa.types.is_list(array.type):
        return _finite(array.flatten())
    if pa.types.is_struct(array.type):
        return all(_finite(field) for field in array.flatten())
    return not pa.types.is_floating(array.type) or pc.all(pc.is_finite(array)).as_py() is not False


def _type(kind: ColumnType) -> pa.DataType:
    return library_type(kind, _SCALARS, pa.list_, pa.struct)


def _text_paths(path: str, kind: ColumnType) -> list[str]:
    """List the leaves that hold text: only these gain from a dictionary, numbers seldom repeat."""
    if isinstance(kind, str):
        return [path] if kind == "string" else []
    if "list" in kind:
        return _text_paths(f"{path}.list.element", kind["list"])
    return [found for name, inner in kind["struct"].items() for found in _text_paths(f"{path}.{name}", inner)]
