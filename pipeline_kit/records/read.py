"""Examples from files and streams, one row at a time; a bad row stays in its place as a failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from pipeline_kit.errors import InputError, closest, shorten
from pipeline_kit.records.csv import read_table
from pipeline_kit.records.fields import TEXT_FIELDS, Fields
from pipeline_kit.records.json import has_lone_surrogate, parse_example
from pipeline_kit.records.lines import read_lines
from pipeline_kit.types import RowFailure

__all__ = ["FORMATS", "Format", "Record", "format_of", "read_records"]

Format = Literal["text", "jsonl", "csv", "tsv"]
FORMATS: tuple[Format, ...] = get_args(Format)

Record = str | dict[str, Any] | RowFailure
"""An example, or why a row is none: a failure of the stage ``input`` that names the line."""

Numbered = tuple[int, str | dict[str, Any] | InputError]

_BY_SUFFIX: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
_OTHERS = {
    ".gz": "is compressed; unpack it first",
    ".zst": "is compressed; unpack it first",
    ".bz2": "is compressed; unpack it first",
    ".xz": "is compressed; unpack it first",
    ".zip": "is an archive; unpack it first",
    ".parquet": "is Parquet, which is not read here; write it as JSONL first",
    ".arrow": "is Arrow, which is not read here; write it as JSONL first",
    ".json": "may be one JSON document; write it as JSONL, one example a line (if it is that: --input-format jsonl)",
    ".xlsx": "is a workbook; save it as CSV first",
}


def read_records(
    source: str | Path | BinaryIO, *, format: Format | None = None, fields: Fields = TEXT_FIELDS
) -> Iterator[Record]:
    """Go through the examples of `source` in bounded memory.

    :param source: a file, ``-`` for stdin, or an open binary stream.
    :param format: None: by the file's ending, ``text`` where that says nothing. A ``text`` file gives one
        example a line, empty lines too, so that the n-th result belongs to the n-th line; ``jsonl`` a string
        or an object a line, blank lines skipped; ``csv`` and ``tsv`` an example a row below the header.
    :param fields: which columns or keys to take; the rest are left out.
    :returns: examples and, in the place of a bad row, failures; their index counts rows from 0.
    :raises InputError: if the file cannot be read or its header lacks a column; at the first ``next``.
    """
    chosen = format or format_of(source)
    with _opened(source) as (name, stream):
        try:
            for index, (line, item) in enumerate(_rows(stream, chosen, fields)):
                if isinstance(item, InputError):
                    yield RowFailure(index, "input", "InputError", f"{name}, line {line}: {item}")
                else:
                    yield item
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


def format_of(source: str | Path | BinaryIO) -> Format:
    """Tell a file's format from its ending.

    :raises InputError: for an ending of files that no format here can read, with what to do.
    """
    if not isinstance(source, str | Path) or str(source) == "-":
        return "text"
    suffix = Path(source).suffix.lower()
    if suffix in _OTHERS:
        raise InputError(f"{source}: {_OTHERS[suffix]}")
    return _BY_SUFFIX.get(suffix, "text")


def _rows(stream: BinaryIO, format: Format, fields: Fields) -> Iterator[Numbered]:
    if format == "csv":
        yield from read_table(stream, ",", fields)
    elif format == "tsv":
        yield from read_table(stream, "\t", fields)
    elif format == "jsonl":
        yield from _json_lines(stream, fields)
    else:
        yield from _text_lines(stream)


def _text_lines(stream: BinaryIO) -> Iterator[Numbered]:
    for line in read_lines(stream):
        try:
            yield line.number, line.text()
        except InputError as error:
            yield line.number, error


def _json_lines(stream: BinaryIO, fields: Fields) -> Iterator[Numbered]:
    for line in read_lines(stream):
        if line.data is not None and not line.data.strip():
            continue
        try:
            value = parse_example(line.text())
            if has_lone_surrogate(value):
                raise InputError("the text has a lone surrogate, which no encoder can represent")
            yield line.number, value if isinstance(value, str) else fields.pick(value)
        except InputError as error:
            torn = "" if line.ended else " (the file's last line, without a newline: was it cut off?)"
            yield line.number, InputError(f"{error}{torn}")


@contextmanager
def _opened(source: str | Path | BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    if not isinstance(source, str | Path):
        yield str(getattr(source, "name", "input")), source
        return
    if str(source) == "-":
        yield "stdin", sys.stdin.buffer
        return
    path = Path(source)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed below; a failure inside the body is not one of opening
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{shorten(str(path))}: cannot be read: {reason}{_sibling(path)}") from error
    with stream:
        yield path.name, stream


def _sibling(path: Path) -> str:
    """Suggest the file of the same folder that was most likely meant."""
    try:
        near = closest(path.name, [item.name for item in path.parent.iterdir() if item.is_file()][:10_000])
    except (OSError, ValueError):
        return ""
    return f". Did you mean '{path.parent / near}'?" if near else ""
