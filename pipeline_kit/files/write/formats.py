"""From names and options to formats; what cannot work is an error here, before any row is written."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.errors import ConfigError, Fault, UsageError
from pipeline_kit.files.write.base import (
    PLUGGED,
    FileFormat,
    OutputConfig,
    OutputValues,
    RowErrors,
    Schema,
    StreamFormat,
    UnwritableRowsError,
)
from pipeline_kit.files.write.layout import Layout


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
    if format in PLUGGED:
        return PLUGGED[format]()(layout)
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
        return ShardFormat(stream_format(name, layout, options.compression))
    columns = layout.vectors
    ragged = next((column for column, several in columns.items() if several), None)
    problem, hint = None, "leave it at inline; output.format=parquet holds such vectors in binary"
    if not layout.fixed:
        problem = "the postprocessor does not name the columns of its results."
        hint = "leave it at inline; its plugin names them with registry.postprocessor(..., gives=...)"
    elif not columns:
        problem = f"'{options.vectors}' is for vectors, and the results have none: {', '.join(layout.results)}."
        hint = "leave it at inline, or use task=sentence-embedding or task=feature-extraction"
    elif ragged is not None:
        problem = f"'npy' holds one vector a row, and '{ragged}' has one a token."
    elif len(columns) > 1:
        problem = f"'npy' holds one matrix, and the results have {' and '.join(columns)}."
    if problem is not None:
        raise ConfigError([Fault("output.vectors", problem, hint=hint)])
    [column] = columns
    return ShardFormat(stream_format(name, layout.without(columns), options.compression), column)


@final
class ShardFormat:
    """How the rows of a shard become the bytes of its files.

    :ivar suffix: the ending of the file that holds the rows.
    """

    def __init__(self, rows: StreamFormat, vectors: str | None = None) -> None:
        """Write shards as `rows` writes a file.

        :param vectors: the column that goes into a second file, ``.npy``, float32 ``[n, H]`` in the rows' order.
        """
        self._rows = rows
        self._vectors = vectors
        self.suffix = rows.suffix

    def schema(self, rows: Sequence[OutputValues]) -> Schema | None:
        """Settle from the first shard's rows what all later shards must agree with; None if that is nothing.

        JSON values, kept with the job and passed to :meth:`encode` for every shard, so that a resumed job writes the
        same bytes.
        """
        if self._vectors is None:
            return self._rows.schema(rows)
        width = width_of([row.get(self._vectors) for row in rows])
        return {"rows": self._rows.schema(self._stripped(rows)), "widths": {self._vectors: width}}

    def encode(self, rows: Sequence[OutputValues], schema: Schema | None) -> Mapping[str, bytes]:
        """Return the files of a shard: the ending of each name and its bytes.

        The same rows under the same schema always make the same bytes.

        :param rows: each with the columns of the layout; keys of the result that may be left out may be missing.
        :raises UnwritableRowsError: naming the rows that do not fit; without those the rest can be encoded.
        """
        if self._vectors is None:
            return {self.suffix: _whole(self._rows, rows, schema)}
        assert schema is not None, "`schema` returns one"
        refused = RowErrors()
        values = [row.get(self._vectors) for row in rows]
        array = stacked(values, self._vectors, schema["widths"][self._vectors], refused)
        files: dict[str, bytes] = {}
        try:
            files[self.suffix] = _whole(self._rows, self._stripped(rows), schema["rows"])
        except UnwritableRowsError as error:
            refused.add_all(error)
        refused.check()
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
        return files | {".npy": file.getvalue()}

    def _stripped(self, rows: Sequence[OutputValues]) -> list[OutputValues]:
        return [{key: value for key, value in row.items() if key != self._vectors} for row in rows]


def _whole(format: StreamFormat, rows: Sequence[OutputValues], schema: Schema | None) -> bytes:
    written = bytearray()
    with format.stream(written.extend, schema) as append:
        append(rows)
    return bytes(written)


def width_of(values: Sequence[Any]) -> int | None:
    """Return the width of the first vector among `values`; None if there is none."""
    return next((len(value) for value in values if isinstance(value, list)), None)


def stacked(values: Sequence[Any], column: str, width: int | None, refused: RowErrors) -> NDArray[np.float32]:
    """Stack vectors, one a row: ``[n, H]``.

    :param width: the ``H`` that is due; None takes that of the first vector, 0 if there is none.
    :param refused: takes the rows whose vectors are missing, of another width, or not finite in float32.
    """
    due = width if width is not None else width_of(values) or 0
    parts: list[NDArray[np.float32]] = []
    for index, value in enumerate(values):
        try:
            parts.append(_checked(value, due))
        except (TypeError, ValueError, OverflowError) as error:
            refused.add(index, error, column)
    return np.stack(parts) if parts else np.empty((0, due), np.float32)


def _checked(value: Any, width: int) -> NDArray[np.float32]:
    """Return the vector of one row, ``[H]``."""
    if not isinstance(value, list):
        raise TypeError("there is no vector")
    if not set(map(type, value)) <= {int, float}:
        raise TypeError("is not a list of numbers")
    if len(value) != width:
        raise ValueError(f"a vector has {len(value)} numbers, the ones before it {width}")
    with np.errstate(over="ignore"):
        array = np.asarray(value, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ValueError("holds a number that is not finite in float32")
    return array
