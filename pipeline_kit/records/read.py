"""Examples from files and streams, one row at a time; a bad row stays in its place as a failure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline_kit.errors import InputError, UsageError
from pipeline_kit.records.columns import Columns, Picked
from pipeline_kit.records.fields import TEXT_FIELDS, Fields
from pipeline_kit.records.files import regular, same_throughout, stdin_bytes
from pipeline_kit.records.formats import Format, format_of, sniffed
from pipeline_kit.records.line_rows import read_rows
from pipeline_kit.records.names import parts_of
from pipeline_kit.records.part import Part, Take
from pipeline_kit.records.unpack import Limits, head_of, plain
from pipeline_kit.types import RowFailure

__all__ = ["Record", "is_pipe", "known_rows", "read_parts", "read_records"]

Record = str | dict[str, Any] | RowFailure
"""An example, or why a row is none: a failure of the stage ``input`` that names the line."""


def read_records(
    source: str | Path | BinaryIO, *, format: Format | None = None, fields: Fields = TEXT_FIELDS
) -> Iterator[Record]:
    """Go through the examples of `source` in bounded memory.

    :param source: a file, a pattern such as ``data/*.csv``, a saved dataset's folder, ``-`` for stdin, or an open
        binary stream. gzip and zstd are unpacked.
    :param format: None: by the file's ending, ``text`` where that says nothing. A ``text`` file gives one
        example a line, empty lines too, so that the n-th result belongs to the n-th line; ``jsonl`` a string
        or an object a line, blank lines skipped; ``csv`` and ``tsv`` an example a row below the header;
        ``parquet`` and ``arrow`` one a row.
    :param fields: which columns or keys to take; the rest are left out.
    :returns: examples and, in the place of a bad row, failures; their index counts rows from 0.
    :raises InputError: if the file cannot be read or its header lacks a column; some of it at the first ``next``.
        At the end, if the file is another one than at the call.
    """
    columns = Columns(fields)
    if not isinstance(source, str | Path):
        return _numbered(_of_stream(source, str(getattr(source, "name", "input")), format, columns))
    if str(source) == "-":
        return _numbered(_of_stream(stdin_bytes(), "stdin", format, columns))
    if is_pipe(str(source)):
        return _numbered(_of_pipe(Path(source), format or format_of(source), columns))
    return read_parts(parts_of([source], format, Limits()), fields)


def read_parts(parts: Iterable[Part], fields: Fields) -> Iterator[Record]:
    """Go through the examples of `parts` as :func:`read_records` does; they can be gone through again."""
    columns = Columns(fields)
    return _numbered(
        (f"{part.label}, {part.unit} {place}", picked) for part in parts for place, picked in part.rows(columns, Take())
    )


def known_rows(name: str, format: Format | None) -> int | None:
    """Count the rows of a file or a saved dataset; None if that takes long or goes wrong."""
    try:
        counts = [part.count(read=True) for part in parts_of([name], format, Limits())]
    except (InputError, UsageError):
        return None
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def is_pipe(name: str) -> bool:
    """Return whether `name` is there and can be read once only, as named pipes and devices are."""
    return os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name)


def _numbered(rows: Iterable[tuple[str, Picked | None]]) -> Iterator[Record]:
    """Go through rows, each with its place; a bad one becomes a failure that names it."""
    for index, (place, picked) in enumerate(rows):
        assert picked is not None, "all rows were asked for"
        if isinstance(picked.example, InputError):
            yield RowFailure(index, "input", "InputError", f"{place}: {picked.example}")
        else:
            yield picked.example


def _of_stream(
    stream: BinaryIO, label: str, format: Format | None, columns: Columns
) -> Iterator[tuple[str, Picked | None]]:
    before = regular(stream)  # at once: a model may be loaded before the first row is asked for

    def rows() -> Iterator[tuple[str, Picked | None]]:
        try:
            known = format or sniffed(head_of(stream)) or "text"
            if known in ("parquet", "arrow"):
                what = known.capitalize()
                raise InputError(f"{what} is not read from a stream here; write it to a file and name that")
            with same_throughout(stream, before):
                for line, picked in read_rows(plain(stream, "", Limits()), known, columns, Take()):
                    yield f"{label}, line {line}", picked
        except InputError as error:
            raise InputError(f"{label}: {error}") from error

    return rows()


def _of_pipe(path: Path, format: Format, columns: Columns) -> Iterator[tuple[str, Picked | None]]:
    with open(path, "rb") as stream:
        yield from _of_stream(stream, path.name, format, columns)
