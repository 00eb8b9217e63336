"""Examples from files and streams, one row at a time; a bad row stays in its place as a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline_kit.errors import InputError, UsageError
from pipeline_kit.records.columns import Columns, Picked
from pipeline_kit.records.fields import TEXT_FIELDS, Fields
from pipeline_kit.records.files import stdin_bytes
from pipeline_kit.records.formats import Format, format_of, sniffed
from pipeline_kit.records.line_rows import read_rows
from pipeline_kit.records.names import parts_of
from pipeline_kit.records.part import Take
from pipeline_kit.records.unpack import Limits, head_of, plain
from pipeline_kit.types import RowFailure

__all__ = ["Record", "known_rows", "read_records"]

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
    :raises InputError: if the file cannot be read or its header lacks a column; at the first ``next``.
    """
    for index, (place, picked) in enumerate(_picked(source, format, Columns(fields))):
        if isinstance(picked.example, InputError):
            yield RowFailure(index, "input", "InputError", f"{place}: {picked.example}")
        else:
            yield picked.example


def known_rows(name: str, format: Format | None) -> int | None:
    """Count the rows of a file or a saved dataset; None if that takes long or goes wrong."""
    try:
        counts = [part.count(read=True) for part in parts_of([name], format, Limits())]
    except (InputError, UsageError):
        return None
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _picked(source: str | Path | BinaryIO, format: Format | None, columns: Columns) -> Iterator[tuple[str, Picked]]:
    """Give for each row where it is and what was taken of it."""
    if not isinstance(source, str | Path):
        yield from _of_stream(source, str(getattr(source, "name", "input")), format, columns)
    elif str(source) == "-":
        yield from _of_stream(stdin_bytes(), "stdin", format, columns)
    elif _is_pipe(str(source)):
        with open(source, "rb") as stream:
            yield from _of_stream(stream, Path(source).name, format or format_of(source), columns)
    else:
        for part in parts_of([source], format, Limits()):
            for place, picked in part.rows(columns, Take()):
                assert picked is not None
                yield f"{part.label}, {part.unit} {place}", picked


def _of_stream(stream: BinaryIO, label: str, format: Format | None, columns: Columns) -> Iterator[tuple[str, Picked]]:
    try:
        format = format or sniffed(head_of(stream)) or "text"
        if format in ("parquet", "arrow"):
            raise InputError(f"{format.capitalize()} is not read from a stream here; write it to a file and name that")
        for line, picked in read_rows(plain(stream, "", Limits()), format, columns, Take()):
            assert picked is not None
            yield f"{label}, line {line}", picked
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


def _is_pipe(name: str) -> bool:
    return os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name)
