"""The two interfaces of this package, and the error of rows that a format cannot hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from pipeline_kit.errors import OutputError, shorten
from pipeline_kit.types import RowFailure

__all__ = ["Append", "Row", "Schema", "ShardFormat", "StreamFormat", "UnwritableRows", "Write"]

Row = Mapping[str, Any]
"""A row of the output: ``id``, carried columns, the result's keys; which of them is for the layout to say."""

Schema = dict[str, Any]
"""What all shards of a job must agree on, as JSON values."""

Append = Callable[[Sequence[Row]], None]
"""Takes the next rows of a file; raises :class:`UnwritableRows` before it has written any of them."""

Write = Callable[[bytes], object]
"""Takes the next bytes of a file."""


class UnwritableRows(OutputError):
    """Rows that a format cannot hold; nothing of the rows they came with was written.

    :ivar failures: each with its place among the rows given as `index`, the stage ``output``, and why.
    """

    def __init__(self, failures: Sequence[RowFailure]) -> None:
        """Hold `failures`, of which there is at least one."""
        first = failures[0]
        more = f" (and {len(failures) - 1:,} more rows)" if len(failures) > 1 else ""
        super().__init__(f"row {first.index} cannot be written: {shorten(first.message, 400)}{more}")
        self.failures = tuple(failures)


class StreamFormat(ABC):
    """How rows become one file, written from its begin to its end.

    The same rows under the same schema always give the same bytes: no time, no name, no random order.
    """

    suffix: ClassVar[str]
    """The ending of a file of this format, such as ``.csv``."""

    chunk_rows: ClassVar[int]
    """How many rows are best written together."""

    @abstractmethod
    def schema(self, rows: Sequence[Row]) -> Schema | None:
        """Settle what the rows to come must agree with; None if they need not agree in anything.

        :param rows: the first rows, as evidence where the config alone does not settle it; may be empty.
        """

    @abstractmethod
    def stream(self, write: Write, schema: Schema | None) -> AbstractContextManager[Append]:
        """Begin a file whose bytes go to `write`; it is complete when the body ends without an error.

        :param schema: what :meth:`schema` gave for the first rows of this file or of an earlier one.
        """


class ShardFormat(ABC):
    """How the rows of a shard become the bytes of its files."""

    @property
    @abstractmethod
    def suffix(self) -> str:
        """The ending of the file that holds the rows; ``encode`` always gives it."""

    @abstractmethod
    def schema(self, rows: Sequence[Row]) -> Schema | None:
        """Settle from the first shard's rows what all later shards must agree with.

        JSON values, to be kept with the job and given to ``encode`` for every shard, so that a job that is taken
        up again writes the same bytes. None if shards need not agree in anything.
        """

    @abstractmethod
    def encode(self, rows: Sequence[Row], schema: Schema | None) -> Mapping[str, bytes]:
        """Give the files of a shard: the ending of each name and its bytes.

        The same rows under the same schema always give the same bytes.

        :param rows: each with the columns of the layout; keys of the result that may be left out may be missing.
        :raises UnwritableRows: naming the rows that do not fit; without those the rest can be encoded.
        """
