"""Shards: files of rows, with the vectors in them or beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

from pipeline_kit.sinks.base import Row, Schema, ShardFormat, StreamFormat, UnwritableRows
from pipeline_kit.sinks.layout import ID
from pipeline_kit.sinks.refused import Refused
from pipeline_kit.sinks.vectors import Array, npy, offsets, safetensors, stacked, width_of

__all__ = ["InlineShards", "OutOfLineShards"]


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

    def schema(self, rows: Sequence[Row]) -> Schema | None:
        """Settle what the file's format asks for."""
        return self._rows.schema(rows)

    def encode(self, rows: Sequence[Row], schema: Schema | None) -> Mapping[str, bytes]:
        """Give the one file."""
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

    def schema(self, rows: Sequence[Row]) -> Schema | None:
        """Settle what the file's format asks for, and the width of the vectors."""
        widths = {name: width_of([row.get(name) for row in rows], ragged) for name, ragged in self._columns.items()}
        return {"rows": self._rows.schema(self._stripped(rows)), "widths": widths}

    def encode(self, rows: Sequence[Row], schema: Schema | None) -> Mapping[str, bytes]:
        """Give both files."""
        assert schema is not None, "`schema` gives one"
        refused = Refused()
        columns = {name: [row.get(name) for row in rows] for name in self._columns}
        arrays: dict[str, Array] = {
            name: stacked(values, name, self._columns[name], schema["widths"][name], refused)
            for name, values in columns.items()
        }
        files: dict[str, bytes] = {}
        try:
            files[self.suffix] = _whole(self._rows, self._stripped(rows), schema["rows"])
        except UnwritableRows as error:
            refused.add_all(error)
        refused.check()
        arrays |= {f"{name}.offsets": offsets(columns[name]) for name, ragged in self._columns.items() if ragged}
        if self._how == "npy":
            return files | {".npy": npy(next(iter(arrays.values())))}
        ids = [row[ID] for row in rows] if rows and ID in rows[0] else None
        return files | {".safetensors": safetensors(arrays, ids)}

    def _stripped(self, rows: Sequence[Row]) -> list[Row]:
        return [{key: value for key, value in row.items() if key not in self._columns} for row in rows]


def _whole(format: StreamFormat, rows: Sequence[Row], schema: Schema | None) -> bytes:
    written = bytearray()
    with format.stream(written.extend, schema) as append:
        append(rows)
    return bytes(written)
