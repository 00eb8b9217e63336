"""Where results go: JSON lines or tables on stdout, or a file that is complete or not there."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.text import Text

from pipeline_kit.cli.selection import Selection
from pipeline_kit.cli.stdio import flush_out, prepare_stdout, print_out, say, stdout
from pipeline_kit.cli.tables import console, print_lines, table
from pipeline_kit.contract.types import Example, Result, RunStats
from pipeline_kit.errors import RowFailure, StageError, UsageError, for_message, without_secrets
from pipeline_kit.files.atomic import atomic_writer, refuse_overlap
from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.read.paths import Record
from pipeline_kit.files.read.source import SourceRow
from pipeline_kit.files.storage.base import scheme_of
from pipeline_kit.files.write.base import FileFormat, StreamFormat, Write, ending_of
from pipeline_kit.files.write.formats import check_installed
from pipeline_kit.files.write.layout import ERROR, ID, Layout
from pipeline_kit.files.write.one_file import error_text, gzip_writer, rows_file

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig

FLUSH_SECONDS = 0.2
TABLE_ROWS = 200
_LONGEST_NAME = 120
OTHER_ENDINGS = (".arrow", ".bz2", ".feather", ".tsv", ".xls", ".xlsx", ".xz", ".zip", ".zst")


Sink = Callable[["OutputRow"], None]
"""Takes one row after the other."""


@contextmanager
def jsonl_sink(heading: Sequence[str] | None) -> Iterator[Sink]:
    """Print a line of JSON a row; with a `heading`, first one line that says which overrides made them."""
    prepare_stdout()
    flushed = time.monotonic()

    def write(row: OutputRow) -> None:
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

        def write_row(row: OutputRow) -> None:
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

    :param failed: called with each row with a result that the format cannot hold.
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
    title = None if heading is None else " ".join(heading) or "no overrides"
    waiting: list[OutputRow] = []

    def write(row: OutputRow) -> None:
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


def sweep_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Name the runs of a sweep by the overrides in which they differ: ``checkpoint=a,padding=none``.

    A name is safe in any folder: other characters are written as ``%2F``, and a long one ends with a hash.
    """
    varied = [place for place, texts in enumerate(zip(*jobs, strict=True)) if len(set(texts)) > 1]
    names: list[str] = []
    for job in jobs:
        text = ",".join(word.lstrip("+") for word in without_secrets(job[place] for place in varied))
        name = "".join(c if c.isalnum() or c in "=,.+-_" else f"%{ord(c):02X}" for c in text)
        if len(name.encode()) > _LONGEST_NAME:
            digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
            name = f"{name.encode()[:_LONGEST_NAME].decode(errors='ignore')}-{digest}"
        numbers = (f"-{number}" if number > 1 else "" for number in count(1))  # runs may differ in a secret alone
        names.append(next(name + number for number in numbers if name + number not in names))
    return names


def swept(path: Path, name: str) -> Path:
    """Return the file of a run of a sweep: ``out.jsonl`` becomes ``out.padding=none.jsonl``."""
    if path.suffix.lower() == ".gz":
        inner = swept(path.with_suffix(""), name)
        return inner.with_name(inner.name + path.suffix)
    return path.with_name(f"{path.stem}.{name}{path.suffix}") if name else path


def output_path(name: str | None, format: str | None, files: Sequence[FileFormat] = ("jsonl",)) -> Path | None:
    """Check ``--output`` and ``--format`` against each other.

    :param files: the formats that a file may have.
    :raises UsageError: for a table in a file, or a format that is not the one that the ending names.
    """
    if name is None:
        if format not in (None, "jsonl", "table"):
            raise UsageError(f"--format {format} is for files: pass --output FILE.{format}")
        return None
    if format == "table":
        raise UsageError(f"--format table is for a terminal; --output writes {' or '.join(files)}")
    if name == "-":
        raise UsageError("--output -: leave --output out to print to stdout")
    if scheme_of(name) is not None:
        raise UsageError(f"--output {for_message(name)}: this file is written on this machine only; name a path")
    if name.endswith("/"):
        raise UsageError(f"--output {for_message(name)}: is a folder; name a file in it")
    path = Path(name).expanduser()
    _check_ending(path, format, files)
    return path


def _check_ending(path: Path, format: str | None, files: Sequence[FileFormat]) -> None:
    shown, ending, suffix = for_message(str(path)), ending_of(path), path.suffix.lower()
    if files == ("jsonl",):
        if ending not in (None, "jsonl") or suffix in (*OTHER_ENDINGS, ".gz"):
            raise UsageError(f"--output {shown}: results are written as JSON lines; name the file .jsonl")
        return
    if suffix in OTHER_ENDINGS:
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


MOST_WAITING = 1024


class Outcomes(Protocol):
    """The one thing of a :class:`~pipeline_kit.runtime.pipeline.Pipeline` that is needed here."""

    def results_or_failures(
        self, examples: Iterable[Example], stats: RunStats | None = None
    ) -> Iterator[Result | RowFailure]:
        """Return a result or a failure for each example, in order."""
        ...


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One row of the output.

    :param example: what went in; None if the row could not be read.
    :param value: `front` and the result, or `front` and ``{"error": {...}}``.
    :param line: `value` as one line of JSON.
    :param failure: why there is no result; None if there is one.
    :param front: the row's id and the columns carried from the input, where these are asked for.
    """

    example: Example | None
    value: dict[str, Any]
    line: str
    failure: RowFailure | None = None
    front: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Read:
    """A row of the input: its number, what was read, what goes in front of its result."""

    index: int
    record: Record | Example
    front: Mapping[str, Any] = field(default_factory=dict)


def run_rows(pipeline: Outcomes, records: Iterable[Record], stats: RunStats) -> Iterator[OutputRow]:
    """Run `pipeline` on the examples among `records`; return one row for each record, in order.

    No more than `MOST_WAITING` failed records wait for the example before them, so memory stays bounded
    even for a stream of nothing but bad rows.
    """
    return _run(pipeline, (_Read(index, record) for index, record in enumerate(records)), stats)


def run_source(pipeline: Outcomes, rows: Iterable[SourceRow], stats: RunStats, layout: Layout) -> Iterator[OutputRow]:
    """Run `pipeline` as :func:`run_rows` does; each row has its id and its carried columns where `layout` has them.

    A failure has the row's number in the whole input, whatever part of it was chosen.
    """
    return _run(pipeline, (_Read(row.index, row.example, layout.row(row.id, row.carried, {})) for row in rows), stats)


def _run(pipeline: Outcomes, reads: Iterator[_Read], stats: RunStats) -> Iterator[OutputRow]:
    while True:
        first = next(reads, None)
        if first is None:
            return
        yield from _stretch(pipeline, chain([first], reads), stats)


def _stretch(pipeline: Outcomes, reads: Iterator[_Read], stats: RunStats) -> Iterator[OutputRow]:
    """Run until the records end or `MOST_WAITING` bad ones wait."""
    waiting: deque[_Read] = deque()
    bad = 0

    def examples() -> Iterator[Example]:
        nonlocal bad
        for read in reads:
            waiting.append(read)
            if not isinstance(read.record, RowFailure):
                yield read.record
                continue
            bad += 1
            if bad >= MOST_WAITING:
                return

    def unreadable() -> Iterator[OutputRow]:
        nonlocal bad
        while waiting and isinstance(failure := waiting[0].record, RowFailure):
            read = waiting.popleft()
            bad -= 1
            stats.rows += 1
            stats.failed += 1
            yield _failed(None, failure, read)

    for outcome in pipeline.results_or_failures(examples(), stats):
        yield from unreadable()
        yield _row(waiting.popleft(), outcome, stats)
    yield from unreadable()


def _row(read: _Read, outcome: Result | RowFailure, stats: RunStats) -> OutputRow:
    example = read.record
    assert not isinstance(example, RowFailure), "those never reach the pipeline"
    if isinstance(outcome, RowFailure):
        return _failed(example, outcome, read)
    try:
        value = _joined(read.front, outcome)
        return OutputRow(example, value, json_line(value), front=read.front)
    except (TypeError, ValueError, RecursionError, StageError) as error:
        stats.failed += 1
        problem = str(error) if isinstance(error, StageError) else f"the result cannot be written as JSON: {error}"
        return _failed(example, RowFailure(read.index, "postprocessor", type(error).__name__, problem), read)


def _joined(front: Mapping[str, Any], result: Result) -> Result:
    if not front:
        return result
    shared = next((key for key in result if key in front), None)
    if shared is not None:
        shown = for_message(shared, 80)
        raise StageError(f"the result's key '{shown}' is a column of the input too; leave it out of input.carry")
    return {**front, **result}


def _failed(example: Example | None, failure: RowFailure, read: _Read) -> OutputRow:
    error = {"stage": failure.stage, "type": failure.error, "message": for_message(failure.message, 500)}
    value = {**read.front, "error": error}
    return OutputRow(example, value, json_line(value), replace(failure, index=read.index), read.front)


CELL = 72


def print_table(rows: Sequence[OutputRow], title: str | None = None) -> None:
    """Print `rows`, one column for each key that any of them has.

    Cells are plain text: markup and control characters of a row never reach the terminal.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row.value))
    inputs = any(row.example is not None for row in rows)
    screen = console()
    if title is not None:
        print_lines([title], screen)
    words = [key for key in keys if not all(isinstance(row.value.get(key, 0.0), int | float) for row in rows)]
    shown = table("input" if inputs else None, *keys, wrap=True, left=words)
    for row in rows:
        cells = [Text(_input(row.example))] if inputs else []
        style = "red" if row.failure is not None else None
        shown.add_row(*cells, *(Text(_cell(row.value[key]) if key in row.value else "") for key in keys), style=style)
    screen.print(shown)


def _input(example: Example | None) -> str:
    if example is None:
        return ""
    if isinstance(example, Mapping):
        return for_message(" | ".join(str(value) for value in example.values()), CELL)
    return for_message(example, CELL)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping) and value.keys() == {"stage", "type", "message"}:
        return for_message(f"{value['stage']}: {value['type']}: {value['message']}", 2 * CELL)
    if isinstance(value, Mapping):
        return for_message(" ".join(f"{key}={_cell(item)}" for key, item in value.items()), 2 * CELL)
    if isinstance(value, list):
        shown = ", ".join(_cell(item) for item in value[:4])
        return for_message(shown, 2 * CELL) + (f", … ({len(value)})" if len(value) > 4 else "")
    return for_message(value if isinstance(value, str) else str(value), 2 * CELL)


_CHECKPOINT_SUFFIXES = (".jinja", ".json", ".model", ".safetensors", ".spm", ".txt")


def check_outputs(
    outputs: Iterable[tuple[str, str | Path | None]],
    files: Sequence[str],
    selection: Selection,
    configs: Iterable[PipelineConfig],
) -> None:
    """See, before a model is loaded, that no output, nor the file behind stdout, is a file that is read.

    Those are the input, configs, plugins and what a checkpoint is made of.

    :param outputs: what will be written, each behind its flag; None where nothing is.
    :param files: the input as it was named.
    :raises UsageError: naming both.
    :raises CheckpointError: if a checkpoint is not there.
    """
    written: list[tuple[str, str | Path]] = [(flag, path) for flag, path in outputs if path is not None]
    if not written and (file := _file_behind_stdout()) is not None:
        written = [("stdout", file)]
    if written:
        checkpoints = dict.fromkeys(part.checkpoint.path for config in configs for part in config.parts.values())
        refuse_overlap(written, [*files, *selection.files, *(file for path in checkpoints for file in _files(path))])


def _file_behind_stdout() -> Path | None:
    """Return the file that a shell's ``>`` or ``>>`` put behind the stream of results."""
    try:
        path = Path(f"/dev/fd/{stdout().fileno()}")
    except (OSError, ValueError):  # a stream without a descriptor, as in a notebook
        return None
    return path if path.is_file() else None


def _files(checkpoint: str) -> list[Path]:
    from pipeline_kit.checkpoint.resolve import find_folder
    from pipeline_kit.checkpoint.scan import files_of

    folder = find_folder(checkpoint)
    return [] if folder is None else [path for path in files_of(folder) if path.suffix.lower() in _CHECKPOINT_SUFFIXES]
