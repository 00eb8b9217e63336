"""One output file: rows go in one by one, and it is complete or not there at all."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from pipeline_kit.errors import RowFailure, for_message
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.files.write.base import Append, OutputValues, StreamFormat, UnwritableRowsError, Write
from pipeline_kit.files.write.layout import ERROR

OnFailure = Callable[[RowFailure], Any]
"""Called with a row that cannot be written; returns what stands for it under ``error``."""

CHUNK_BYTES = 16 << 20
_GZIP = 31
"""zlib's word for the gzip frame; zlib writes neither name nor time into it."""


@contextmanager
def rows_file(
    path: Path, format: StreamFormat, failed: OnFailure | None = None, *, keep: Collection[str] = (), gzip: bool = False
) -> Iterator[RowWriter]:
    """Write rows to `path`, which appears when all of them are in it; memory is bounded by a chunk of rows.

    :param failed: called with each row that `format` cannot hold, with its place in the file: such a row keeps its
        place, with what `failed` returns under ``error``, a column that the format's layout must have. Without
        it, the first such row ends the writing.
    :param keep: columns that such a row keeps where it can, such as ``id``.
    :raises OutputError: if the file cannot be written.
    :raises UnwritableRowsError: see `failed`.
    """
    with storage_of(str(path)).writer(str(path)) as file, ExitStack() as stack:
        write: Write = stack.enter_context(gzip_writer(file.write)) if gzip else file.write
        add = RowWriter(format, write, stack, failed, frozenset(keep))
        yield add
        add.flush(last=True)


@contextmanager
def gzip_writer(write: Write) -> Iterator[Write]:
    """Compress what goes to `write`; the same bytes in make the same bytes out."""
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    yield lambda data: write(packer.compress(data))
    write(packer.flush())


def error_text(failure: RowFailure) -> str:
    """Return in one cell why a row failed."""
    return f"{failure.stage}: {failure.error}: {for_message(failure.message, 500)}"


@final
class RowWriter:
    """Takes one row after the other, and collects them until there are enough to be written together."""

    def __init__(
        self, format: StreamFormat, write: Write, stack: ExitStack, failed: OnFailure | None, keep: frozenset[str]
    ) -> None:
        self._format = format
        self._write = write
        self._stack = stack
        self._failed = failed
        self._keep = keep
        self._append: Append | None = None
        self._rows: list[OutputValues] = []
        self._bytes = 0
        self._written = 0

    def __call__(self, row: OutputValues, size: int = 0) -> None:
        """Take the next row.

        :param size: about how many bytes it has as JSON, so that large rows are written sooner.
        """
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) >= self._format.chunk_rows or self._bytes >= CHUNK_BYTES:
            self.flush()

    def flush(self, last: bool = False) -> None:
        """Write the rows that wait; with `last`, also a file without rows."""
        if not self._rows and not (last and self._append is None):
            return
        if self._append is None:
            schema = self._format.schema(self._rows)
            self._append = self._stack.enter_context(self._format.stream(self._write, schema))
        try:
            self._append(self._rows)
        except UnwritableRowsError as error:
            if self._failed is None:
                raise
            self._append_without(error.failures, self._append, self._failed)
        self._written += len(self._rows)
        self._rows, self._bytes = [], 0

    def _append_without(self, failures: Sequence[RowFailure], append: Append, failed: OnFailure) -> None:
        """Write the rows with errors in the places of some of them."""
        for failure in failures:
            kept = {key: value for key, value in self._rows[failure.index].items() if key in self._keep}
            reason = failed(replace(failure, index=self._written + failure.index))
            self._rows[failure.index] = {**kept, ERROR: reason}
        try:
            append(self._rows)
        except UnwritableRowsError as error:  # what they kept was at fault
            for failure in error.failures:
                self._rows[failure.index] = {ERROR: self._rows[failure.index][ERROR]}
            append(self._rows)
