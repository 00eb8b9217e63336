"""What a format of output files is, and the error of rows that it cannot hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from pipeline_kit.contract.column_types import Scalar
from pipeline_kit.contract.options import option
from pipeline_kit.errors import OutputError, RowFailure, for_message
from pipeline_kit.files.read.formats import UNKNOWN

OutputValues = Mapping[str, Any]
"""A row of the output: ``id``, carried columns, the result's keys; which of them is for the layout to say."""

Schema = dict[str, Any]
"""What all shards of a job must agree on, as JSON values."""

Append = Callable[[Sequence[OutputValues]], None]
"""Takes the next rows of a file; raises :class:`UnwritableRowsError` before it has written any of them."""

Write = Callable[[bytes], object]
"""Takes the next bytes of a file."""


class UnwritableRowsError(OutputError):
    """Rows that a format cannot hold; nothing of the rows they came with was written.

    :ivar failures: each with its place among the rows given as `index`, the stage ``output``, and why.
    """

    def __init__(self, failures: Sequence[RowFailure]) -> None:
        first = failures[0]
        more = f" (and {len(failures) - 1:,} more rows)" if len(failures) > 1 else ""
        super().__init__(f"row {first.index} cannot be written: {for_message(first.message, 400)}{more}")
        self.failures = tuple(failures)


class StreamFormat(ABC):
    """How rows become one file, written from its begin to its end.

    The same rows under the same schema always make the same bytes: no time, no name, no random order.
    """

    suffix: ClassVar[str]
    """The ending of a file of this format, such as ``.csv``."""

    chunk_rows: ClassVar[int]
    """How many rows are best written together."""

    @abstractmethod
    def schema(self, rows: Sequence[OutputValues]) -> Schema | None:
        """Settle what the rows to come must agree with; None if they need not agree in anything.

        :param rows: the first rows, as evidence where the config alone does not settle it; may be empty.
        """

    @abstractmethod
    def stream(self, write: Write, schema: Schema | None) -> AbstractContextManager[Append]:
        """Begin a file whose bytes go to `write`; it is complete when the body ends without an error.

        :param schema: what :meth:`schema` returned for the first rows of this file or of an earlier one.
        """


FileFormat = str
FILE_FORMATS = ("jsonl", "csv", "parquet")
PLUGGED: dict[FileFormat, Callable[[], Callable[..., StreamFormat]]] = {}
"""The formats of plugins by the ending of their files; each returns its class, which is built with the layout."""

Vectors = Literal["inline", "npy"]


@dataclass
class OutputConfig:
    """How results are written."""

    format: str | None = option(
        None, "jsonl, csv, parquet, or a plugin's; null: by the ending of a file's name, jsonl for a folder of shards"
    )
    vectors: Vectors = option(
        "inline", "in the rows, or in a file beside each shard: one float32 matrix, in the rows' order"
    )
    rows_per_shard: int = option(10_000, "rows of a shard; fewer for results that are large", minimum=1, maximum=10**7)
    compression: Literal["zstd", "snappy"] = option("zstd", "of Parquet: zstd is smaller, snappy read by older tools")
    types: dict[str, Scalar] = option(
        {},
        "Parquet: the type of a carried column, where the first rows do not show it, such as stars: float64",
        secret=False,
    )


def ending_of(path: Path) -> FileFormat | None:
    """Return the format that a file's ending names, ``.gz`` left aside; None if it names none."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    ending = name.suffix.lower()[1:]
    if ending == "ndjson":
        return "jsonl"
    if ending and ending not in FILE_FORMATS:
        for load in UNKNOWN:
            load(ending)
    return ending if ending in FILE_FORMATS or ending in PLUGGED else None


@final
class RowErrors:
    """The rows of one chunk that a format cannot hold, each with its first reason."""

    def __init__(self) -> None:
        self._found: dict[int, RowFailure] = {}

    def add(self, index: int, error: Exception | str, column: str | None = None) -> None:
        """Refuse the row at `index`; for text, the reason counts as a ``ValueError``."""
        where = "" if column is None else f"column '{for_message(column, 80)}': "
        name = "ValueError" if isinstance(error, str) else type(error).__name__
        self._found.setdefault(index, RowFailure(index, "output", name, where + _reason(error)))

    def add_unknown(self, rows: Sequence[OutputValues], names: Collection[str]) -> None:
        """Refuse the rows that have a key which is none of the file's columns."""
        known = frozenset(names)
        for index, row in enumerate(rows):
            if not row.keys() <= known:
                key = next(key for key in row if key not in known)
                self.add(
                    index, f"the key '{for_message(key, 80)}' is not a column of this file; JSON lines take any key"
                )

    def add_all(self, error: UnwritableRowsError) -> None:
        """Refuse what was refused elsewhere."""
        for failure in error.failures:
            self._found.setdefault(failure.index, failure)

    def check(self) -> None:
        """Raise if there are any.

        :raises UnwritableRowsError: with all of them, in order.
        """
        if self._found:
            raise UnwritableRowsError([self._found[index] for index in sorted(self._found)])


def _reason(error: Exception | str) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "the text has a lone surrogate, which UTF-8 cannot represent; JSON lines can hold it escaped"
    if isinstance(error, RecursionError):
        return "nested too deep to be written"
    return str(error)
