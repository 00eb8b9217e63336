"""Collects why rows cannot be written, so that all of them are known at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import final

from pipeline_kit.errors import shorten
from pipeline_kit.sinks.base import Row, UnwritableRows
from pipeline_kit.types import RowFailure

__all__ = ["Refused"]


@final
class Refused:
    """The rows of one chunk that a format cannot hold, each with its first reason."""

    def __init__(self) -> None:
        """Start with none."""
        self._found: dict[int, RowFailure] = {}

    def add(self, index: int, error: Exception | str, column: str | None = None) -> None:
        """Refuse the row at `index`; for text, the reason counts as a ``ValueError``."""
        where = "" if column is None else f"column '{shorten(column, 80)}': "
        name = "ValueError" if isinstance(error, str) else type(error).__name__
        self._found.setdefault(index, RowFailure(index, "output", name, where + _reason(error)))

    def add_unknown(self, rows: Sequence[Row], names: Collection[str]) -> None:
        """Refuse the rows that have a key which is none of the file's columns."""
        known = frozenset(names)
        for index, row in enumerate(rows):
            if not row.keys() <= known:
                key = next(key for key in row if key not in known)
                self.add(index, f"the key '{shorten(key, 80)}' is no column of this file; JSON lines take any key")

    def add_all(self, error: UnwritableRows) -> None:
        """Refuse what was refused elsewhere."""
        for failure in error.failures:
            self._found.setdefault(failure.index, failure)

    def check(self) -> None:
        """Raise if there are any.

        :raises UnwritableRows: with all of them, in order.
        """
        if self._found:
            raise UnwritableRows([self._found[index] for index in sorted(self._found)])


def _reason(error: Exception | str) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "the text has a lone surrogate, which UTF-8 cannot represent; JSON lines can hold it escaped"
    if isinstance(error, RecursionError):
        return "nested too deep to be written"
    return str(error)
