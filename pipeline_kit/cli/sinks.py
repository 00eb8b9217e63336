"""Where results go: JSON lines or tables on stdout, or a file that is complete or not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from pipeline_kit.atomic import atomic_writer
from pipeline_kit.cli.rows import Row
from pipeline_kit.cli.streams import flush_out, prepare_stdout, print_out, say
from pipeline_kit.errors import UsageError, closest, shorten
from pipeline_kit.sinks import FILE_FORMATS, FileFormat, StreamFormat, check_installed, ending_of, json_line, rows_file
from pipeline_kit.sinks.base import Write
from pipeline_kit.sinks.files import error_text, gzip_writer
from pipeline_kit.sinks.layout import ERROR, ID
from pipeline_kit.types import RowFailure

__all__ = ["Sink", "columns_sink", "file_sink", "jsonl_sink", "numbered", "output_path", "table_sink"]

FLUSH_SECONDS = 0.2
TABLE_ROWS = 200
_OTHERS = (".arrow", ".bz2", ".feather", ".tsv", ".xls", ".xlsx", ".xz", ".zip", ".zst")


class Sink(Protocol):
    """Takes one row after the other."""

    def __call__(self, row: Row) -> None:
        """Take the next row."""
        ...


@contextmanager
def jsonl_sink(heading: Sequence[str] | None) -> Iterator[Sink]:
    """Print a line of JSON a row; with a `heading`, first one line that says which overrides made them."""
    prepare_stdout()
    flushed = time.monotonic()

    def write(row: Row) -> None:
        nonlocal flushed
        # A reader of the pipe should see results as they come, but a flush a row would cost more than some rows.
        due = time.monotonic() - flushed > FLUSH_SECONDS
        print_out(row.line, flush=due)
        if due:
            flushed = time.monotonic()

    if heading is not None:
        print_out(json_line({"overrides": list(heading)}))
    yield write
    flush_out()


@contextmanager
def file_sink(path: Path, heading: Sequence[str] | None) -> Iterator[Sink]:
    """Write a line of JSON a row to `path`, which appears when all rows are in it."""
    with ExitStack() as stack:
        file = stack.enter_context(atomic_writer(path))
        write: Write = file.write
        if path.suffix.lower() == ".gz":
            write = stack.enter_context(gzip_writer(write))

        def write_row(row: Row) -> None:
            write((row.line + "\n").encode("utf-8"))

        yield write_row
    _say_heading(path, heading)


@contextmanager
def columns_sink(
    path: Path,
    heading: Sequence[str] | None,
    format: StreamFormat,
    failed: Callable[[RowFailure], None],
    carry: Sequence[str] = (),
) -> Iterator[Sink]:
    """Write rows to `path` in a format with columns; a row that failed says why in the column ``error``.

    :param failed: told of each row with a result that the format cannot hold.
    :param carry: the columns of the input that such a row keeps, as it keeps its id.
    """
    keep = (ID, *carry)

    def refused(failure: RowFailure) -> str:
        failed(failure)
        return error_text(failure)

    with rows_file(path, format, refused, keep=keep, gzip=path.suffix.lower() == ".gz") as add:
        yield lambda row: add(
            row.value if row.failure is None else {**row.front, ERROR: error_text(row.failure)}, size=len(row.line)
        )
    _say_heading(path, heading)


def _say_heading(path: Path, heading: Sequence[str] | None) -> None:
    if heading is not None:
        say(f"{path}: {' '.join(heading) or 'no overrides'}")


@contextmanager
def table_sink(heading: Sequence[str] | None, paused: Callable[[], AbstractContextManager[None]]) -> Iterator[Sink]:
    """Print tables of `TABLE_ROWS` rows for a person to read.

    :param paused: entered while a table is printed, to take a progress bar out of its way.
    """
    from pipeline_kit.cli.table import print_table

    title = None if heading is None else " ".join(heading) or "no overrides"
    waiting: list[Row] = []

    def write(row: Row) -> None:
        waiting.append(row)
        if len(waiting) >= TABLE_ROWS:
            with paused():
                print_table(waiting, title)
            waiting.clear()

    try:
        yield write
    finally:
        if waiting:
            with paused():
                print_table(waiting, title)


def numbered(path: Path, number: int) -> Path:
    """Give the file of the n-th run of a sweep: ``out.jsonl`` becomes ``out.0.jsonl``."""
    if path.suffix.lower() == ".gz":
        inner = numbered(path.with_suffix(""), number)
        return inner.with_name(inner.name + path.suffix)
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def output_path(name: str | None, format: str | None, files: Sequence[FileFormat] = ("jsonl",)) -> Path | None:
    """Check ``--output`` and ``--format`` against each other.

    :param files: the formats that a file may have.
    :raises UsageError: for a table in a file, or a format that is none or not the one that the ending names.
    """
    formats = ("jsonl", "table", *(known for known in files if known != "jsonl"))
    if format not in (None, *formats):
        near = closest(format, formats)
        hint = f". Did you mean '{near}'?" if near else ""
        raise UsageError(f"--format {shorten(format, 40)}: the formats are {', '.join(formats)}{hint}")
    if name is None:
        if format in FILE_FORMATS[1:]:
            raise UsageError(f"--format {format} is for files: give --output FILE.{format}")
        return None
    if format == "table":
        raise UsageError(f"--format table is for a terminal; --output writes {' or '.join(files)}")
    if name == "-":
        raise UsageError("--output -: leave --output out to print to stdout")
    if name.endswith("/"):
        raise UsageError(f"--output {shorten(name)}: is a folder; name a file in it")
    path = Path(name).expanduser()
    _check_ending(path, format, files)
    return path


def _check_ending(path: Path, format: str | None, files: Sequence[FileFormat]) -> None:
    shown, ending, suffix = shorten(str(path)), ending_of(path), path.suffix.lower()
    if files == ("jsonl",):
        if ending not in (None, "jsonl") or suffix in (*_OTHERS, ".gz"):
            raise UsageError(f"--output {shown}: results are written as JSON lines; name the file .jsonl")
        return
    if suffix in _OTHERS:
        endings = ", ".join(f".{known}" for known in files)
        raise UsageError(
            f"--output {shown}: no {suffix} files are written; name the file {endings}, .jsonl.gz or .csv.gz"
        )
    if format is not None and ending not in (None, format):
        raise UsageError(f"--output {shown}: the ending says {ending}, the format asked for is {format}; leave one out")
    chosen = format or ending or "jsonl"
    if chosen == "parquet":
        if suffix == ".gz":
            raise UsageError(f"--output {shown}: Parquet is compressed inside; name the file .parquet")
        check_installed("parquet")
