"""A file of lines: text, JSONL, CSV or TSV, compressed or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, final

from pipeline_kit.errors import InputError
from pipeline_kit.records.columns import Columns
from pipeline_kit.records.files import File
from pipeline_kit.records.formats import Format
from pipeline_kit.records.line_rows import check_lines, count_lines, read_rows
from pipeline_kit.records.part import Part, Place, Take
from pipeline_kit.records.unpack import Limits, head_of, plain

__all__ = ["LinePart"]

MOST_COUNTED = 1 << 30
"""A larger file is not read through to count its rows."""


@final
class LinePart(Part):
    """A file whose rows are lines; a table's row may be several."""

    unit = "line"

    def __init__(self, file: File, format: Format, limits: Limits) -> None:
        """Read `file` as `format`; `limits` say how far it is unpacked."""
        self.label = file.label
        self._file = file
        self._format: Format = format
        self._limits = limits

    def check(self, columns: Columns) -> None:
        """Open the file and look for the columns."""
        with self._told(), self._stream() as stream:
            check_lines(stream, self._format, columns)

    def rows(self, columns: Columns, take: Take) -> Iterator[Place]:
        """Go through the rows."""
        last: int | None = None
        try:
            with self._stream() as stream:
                for place, picked in read_rows(stream, self._format, columns, take):
                    last = place
                    yield place, picked
            self._file.check()
        except InputError as error:
            until = "" if last is None else f"; the last whole row is in line {last}"
            raise InputError(f"{self.label}: {error}{until}") from error

    def count(self, read: bool) -> int | None:
        """Count the rows of a file that is not compressed and of moderate size."""
        if not read:
            return None
        with self._told(), self._file.open() as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            if size > MOST_COUNTED or plain(stream, self._file.name, self._limits) is not stream:
                return None
            return count_lines(stream, self._format)

    def identity(self) -> list[dict[str, Any]]:
        """Give the file's name, size and sha256."""
        with self._told():
            return [self._file.identity()]

    def head(self) -> bytes:
        """Give the file's first bytes."""
        with self._told(), self._file.open() as stream:
            return head_of(stream)

    def unchanged(self) -> None:
        """See that the file is the same."""
        with self._told():
            self._file.check()

    def close(self) -> None:
        """Give up a copy of stdin."""
        self._file.close()

    @contextmanager
    def _stream(self) -> Iterator[BinaryIO]:
        with self._file.open() as stream:
            yield plain(stream, self._file.name, self._limits)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.label}: {error}") from error
