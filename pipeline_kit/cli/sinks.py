"""Where results go: JSON lines or tables on stdout, or a file that is complete or not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from pipeline_kit.atomic import atomic_writer
from pipeline_kit.cli.rows import Row, json_line
from pipeline_kit.cli.streams import flush_out, prepare_stdout, print_out, say
from pipeline_kit.errors import UsageError, shorten

__all__ = ["Sink", "file_sink", "jsonl_sink", "numbered", "output_path", "table_sink"]

FLUSH_SECONDS = 0.2
TABLE_ROWS = 200


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
    with atomic_writer(path) as file:
        yield lambda row: file.write(row.line + "\n")
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
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def output_path(name: str | None, format: str | None) -> Path | None:
    """Check ``--output`` and ``--format`` against each other.

    :raises UsageError: for a table in a file, or a format that is none.
    """
    if format not in (None, "jsonl", "table"):
        raise UsageError(f"--format {shorten(format, 40)}: the formats are jsonl, table")
    if name is None:
        return None
    if format == "table":
        raise UsageError("--format table is for a terminal; --output writes jsonl")
    if name == "-":
        raise UsageError("--output -: leave --output out to print to stdout")
    if Path(name).suffix.lower() in (".csv", ".tsv", ".gz", ".parquet"):
        raise UsageError(f"--output {shorten(name)}: results are written as JSON lines; name the file .jsonl")
    if name.endswith("/"):
        raise UsageError(
            f"--output {shorten(name)}: is a folder; name a file in it (jobs that fill a folder come later)"
        )
    return Path(name).expanduser()
