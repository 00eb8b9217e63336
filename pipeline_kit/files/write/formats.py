"""From names and options to formats; what cannot work is found out here, before any row is."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, final

import numpy as np
from safetensors.numpy import save

from pipeline_kit.errors import ConfigError, Fault, UsageError
from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.write.base import (
    FileFormat,
    OutputConfig,
    OutputValues,
    RowErrors,
    Schema,
    ShardFormat,
    StreamFormat,
    UnwritableRowsError,
)
from pipeline_kit.files.write.layout import ID, Layout


def check_installed(format: FileFormat) -> None:
    """See that the library for a format is there.

    :raises UsageError: with what to install.
    """
    if format == "parquet" and find_spec("pyarrow") is None:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed: pip install 'pipeline-kit[files]'; "
            "JSON lines and CSV need nothing more"
        )


def stream_format(format: FileFormat, layout: Layout, compression: Literal["zstd", "snappy"] = "zstd") -> StreamFormat:
    """Return the format of one file.

    :raises UsageError: if its library is not installed.
    """
    check_installed(format)
    if format == "parquet":
        from pipeline_kit.files.write.parquet import Parquet

        return Parquet(layout, compression)
    if format == "csv":
        from pipeline_kit.files.write.text import Csv

        return Csv(layout)
    from pipeline_kit.files.write.text import Jsonl

    return Jsonl()


def shard_format(options: OutputConfig, layout: Layout) -> ShardFormat:
    """Return the format of a folder of shards.

    :raises ConfigError: if vectors are to go beside the rows, but there are none or they do not fit that file.
    :raises UsageError: if a library is not installed.
    """
    name = options.format or "jsonl"
    if options.vectors == "inline":
        return InlineShards(stream_format(name, layout, options.compression))
    columns = layout.vectors
    problem = hint = None
    if not columns:
        problem = f"'{options.vectors}' is for vectors, and the results have none: {', '.join(layout.results)}."
        hint = "leave it at inline, or use task=sentence-embedding or task=feature-extraction"
    elif options.vectors == "npy" and any(columns.values()):
        ragged = next(column for column, several in columns.items() if several)
        problem = f"'npy' holds one vector a row, and '{ragged}' has one a token."
        hint = "use output.vectors=safetensors"
    elif options.vectors == "npy" and len(columns) > 1:
        problem = f"'npy' holds one matrix, and the results have {' and '.join(columns)}."
        hint = "use output.vectors=safetensors"
    if problem is not None:
        raise ConfigError([Fault("output.vectors", problem, hint=hint)])
    rows = stream_format(name, layout.without(columns), options.compression)
    return OutOfLineShards(rows, columns, options.vectors)


@final
class InlineShards(ShardFormat):
    """Shards of one file."""

    def __init__(self, rows: StreamFormat) -> None:
        """Write shards as `rows` writes a file."""
        self._rows = rows

    @property
    def suffix(self) -> str:
        """The ending of the file."""
        return self._rows.suffix

    def schema(self, rows: Sequence[OutputValues]) -> Schema | None:
        """Settle what the file's format asks for."""
        return self._rows.schema(rows)

    def encode(self, rows: Sequence[OutputValues], schema: Schema | None) -> Mapping[str, bytes]:
        """Return the one file."""
        return {self.suffix: _whole(self._rows, rows, schema)}


@final
class OutOfLineShards(ShardFormat):
    """Shards of two files: rows without their vectors, and the vectors, row by row in the same order.

    ``.npy`` holds float32 ``[n, H]``. ``.safetensors`` holds that under the column's name or, for columns with one
    vector a token, ``[all tokens, H]`` and beside it ``NAME.offsets``, int64 ``[n + 1]``: the vectors of row i are
    those from ``offsets[i]`` to ``offsets[i + 1]``. The ids of the rows are in its header too, as a JSON list.
    """

    def __init__(self, rows: StreamFormat, columns: Mapping[str, bool], how: Literal["npy", "safetensors"]) -> None:
        """Take `columns` out of the rows; the value says whether it has one vector a token."""
        assert how == "safetensors" or (len(columns) == 1 and not any(columns.values())), "npy holds one matrix"
        self._rows = rows
        self._columns = columns
        self._how = how

    @property
    def suffix(self) -> str:
        """The ending of the file with the rows."""
        return self._rows.suffix

    def schema(self, rows: Sequence[OutputValues]) -> Schema | None:
        """Settle what the file's format asks for, and the width of the vectors."""
        widths = {name: width_of([row.get(name) for row in rows], ragged) for name, ragged in self._columns.items()}
        return {"rows": self._rows.schema(self._stripped(rows)), "widths": widths}

    def encode(self, rows: Sequence[OutputValues], schema: Schema | None) -> Mapping[str, bytes]:
        """Return both files."""
        assert schema is not None, "`schema` gives one"
        refused = RowErrors()
        columns = {name: [row.get(name) for row in rows] for name in self._columns}
        arrays: dict[str, Array] = {
            name: stacked(values, name, self._columns[name], schema["widths"][name], refused)
            for name, values in columns.items()
        }
        files: dict[str, bytes] = {}
        try:
            files[self.suffix] = _whole(self._rows, self._stripped(rows), schema["rows"])
        except UnwritableRowsError as error:
            refused.add_all(error)
        refused.check()
        arrays |= {f"{name}.offsets": offsets(columns[name]) for name, ragged in self._columns.items() if ragged}
        if self._how == "npy":
            return files | {".npy": npy(next(iter(arrays.values())))}
        ids = [row[ID] for row in rows] if rows and ID in rows[0] else None
        return files | {".safetensors": safetensors(arrays, ids)}

    def _stripped(self, rows: Sequence[OutputValues]) -> list[OutputValues]:
        return [{key: value for key, value in row.items() if key not in self._columns} for row in rows]


def _whole(format: StreamFormat, rows: Sequence[OutputValues], schema: Schema | None) -> bytes:
    written = bytearray()
    with format.stream(written.extend, schema) as append:
        append(rows)
    return bytes(written)


Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float32]]


def width_of(values: Sequence[Any], ragged: bool) -> int | None:
    """Return the width of the first vector among `values`; None if there is none.

    :param ragged: whether a value is a list of vectors rather than one.
    """
    for value in values:
        for vector in (value or ()) if ragged else (value,):
            if isinstance(vector, list):
                return len(vector)
    return None


def stacked(values: Sequence[Any], column: str, ragged: bool, width: int | None, refused: RowErrors) -> Floats:
    """Stack vectors: ``[n, H]``, or where rows have several each, ``[all of them, H]``.

    :param width: the ``H`` that is due; None takes that of the first vector, 0 if there is none.
    :param refused: takes the rows whose vectors are missing, of another width, or not finite in float32.
    """
    due = width if width is not None else width_of(values, ragged) or 0
    parts: list[Floats] = []
    for index, value in enumerate(values):
        try:
            parts.append(_checked(value, ragged, due))
        except (TypeError, ValueError, OverflowError) as error:
            refused.add(index, error, column)
    return np.concatenate(parts) if parts else np.empty((0, due), np.float32)


def offsets(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return where each row's vectors begin among all of them, and at last their number: ``[n + 1]``."""
    return np.cumsum([0, *(len(value) for value in values)], dtype=np.int64)


def npy(array: Floats) -> bytes:
    """Write one array as numpy does."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def safetensors(arrays: dict[str, Array], ids: Sequence[Any] | None) -> bytes:
    """Write arrays by name; `ids` go into the header as JSON under the key ``ids``."""
    # One key only: the library writes several in random order.
    return bytes(save(arrays, None if ids is None else {"ids": json_line(list(ids))}))


def _checked(value: Any, ragged: bool, width: int) -> Floats:
    """Return the vectors of one row, ``[1, H]`` or ``[T, H]``."""
    if not isinstance(value, list):
        raise TypeError("there is no vector")
    rows = value if ragged else [value]
    for row in rows:
        if not isinstance(row, list) or not set(map(type, row)) <= {int, float}:
            raise TypeError("is not a list of numbers")
        if len(row) != width:
            raise ValueError(f"a vector has {len(row)} numbers, the ones before it {width}")
    with np.errstate(over="ignore"):
        array = np.asarray(rows, dtype=np.float32).reshape(len(rows), width)
    if not np.isfinite(array).all():
        raise ValueError("holds a number that is not finite in float32")
    return array
