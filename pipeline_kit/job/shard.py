"""One shard: rows in; files, dead letters and a receipt out. The process that makes a shard writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import RowFailure, StageError, for_message
from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.read.plan import Stretch
from pipeline_kit.files.read.source import Source, SourceRow
from pipeline_kit.files.write.base import OutputValues, Schema, UnwritableRowsError
from pipeline_kit.files.write.formats import ShardFormat
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.job.folder import DEAD, JobFolder
from pipeline_kit.job.receipt import Receipt, shard_name
from pipeline_kit.runtime.calls import Watch
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.runtime.stage_runner import Outcome

PROGRESS_ROWS = 32
"""After how many rows a shard reports its progress again."""

LONGEST = 200


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row that failed.

    :param id: the row's id, as in the output.
    :param index: its number in the whole input.
    :param failure: the stage, the error's class and its message.
    """

    id: str
    index: int
    failure: RowFailure

    @property
    def line(self) -> str:
        """What is written, a line of JSON: the text itself is not, it stands in the input."""
        error, message = for_message(self.failure.error, 80), for_message(self.failure.message, LONGEST)
        content = {"id": self.id, "index": self.index, "stage": self.failure.stage, "error": error, "message": message}
        return json_line(content) + "\n"


@dataclass(frozen=True)
class ShardTask:
    """A shard to be made. A task and its result hold plain data alone, so that they can go to another machine.

    :param rows: its rows, or which rows of the input its maker reads.
    :param schema: what all shards agree on; None if no shard has settled that yet, or there is nothing to settle.
    :param before: what stands for the shard, of which `rows` failed and are run again.
    :param run_alone: numbers of rows that are run one by one: in an earlier try one of them took too long.
    :param timed_out: rows that took too long even alone, by number.
    """

    number: int
    rows: Sequence[SourceRow] | Stretch
    schema: Schema | None = None
    before: Receipt | None = None
    run_alone: frozenset[int] = frozenset()
    timed_out: Mapping[int, RowFailure] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardOffer:
    """A shard that was made and waits to be written, until the ledger has agreed.

    :param dead: how many rows failed; `first` is the first of them.
    :param schema: what these rows would settle for all shards.
    """

    number: int
    rows: int
    dead: int
    first: DeadLetter | None
    schema: Schema | None


@dataclass(frozen=True)
class ShardResult:
    """A shard that is written.

    :param receipt: what stands for it now; None if rows were run again and none of them has a result.
    :param before: what stood for it before, of which rows were run again.
    :param schema: what the files were written by.
    :param stats: of this shard.
    """

    number: int
    receipt: Receipt | None
    before: Receipt | None
    schema: Schema | None
    stats: RunStats


@final
class ShardMaker:
    """Runs the pipeline on the rows of one shard after another, and writes what it returns."""

    def __init__(
        self,
        pipeline: Pipeline,
        source: Source,
        layout: Layout,
        format: ShardFormat,
        folder: JobFolder,
        job: str,
        *,
        free: bool,
    ) -> None:
        """Write shards of the job whose key is `job`, see `Manifest.key`, into `folder`.

        :param source: where rows are read from that a task only names.
        :param free: whether any number of rows may fail, so that the ledger need not be asked.
        """
        self._pipeline, self._source, self._layout, self._format = pipeline, source, layout, format
        self._folder, self._job, self._free = folder, job, free
        self._made: _Made | None = None

    def make(
        self, task: ShardTask, progress: Callable[[RunStats], None], watch: Watch | None = None
    ) -> ShardOffer | ShardResult:
        """Make a shard. It is written at once, unless its schema is new or rows failed that are counted.

        A shard is always run as a whole and by itself, so its batches, and with them the last bits of its numbers,
        are the same in a job that went through and in one that was resumed.

        :param progress: called now and then with the counts so far.
        :param watch: called with each stage and the input's numbers of the rows that it works on.
        :raises OutputError: if the shard cannot be written.
        """
        stats, rows = RunStats(), rows_of(task, self._source)
        made, outcomes = _Made(task, rows, stats), _outcomes(self._pipeline, task, rows, stats, watch)
        for place, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
            if not isinstance(outcome, RowFailure):
                try:
                    made.good.append((row, self._layout.row(row.id, row.carried, outcome)))
                except StageError as error:
                    stats.failed += 1
                    outcome = RowFailure.of(row.index, "postprocessor", error)
            if isinstance(outcome, RowFailure):
                made.dead.append(DeadLetter(row.id, row.index, outcome))
            if place % PROGRESS_ROWS == 0:
                progress(stats)
        schema = self._format.schema([values for _, values in made.good]) if task.schema is None else task.schema
        made.encode(self._format, schema)
        self._made = made
        if self._is_counted(made) or (schema is not None and task.schema is None):
            return made.offer
        return self.write(schema)

    def write(self, schema: Schema | None) -> ShardOffer | ShardResult:
        """Write the shard that was made last; or offer it again, if more rows fail by this schema than by its own.

        :param schema: what all shards agree on by now.
        :raises OutputError: if it cannot be written.
        """
        assert self._made is not None, "a shard is made before it is written"
        made = self._made
        if schema != made.schema:
            dead = len(made.dead)
            made.encode(self._format, schema)
            if len(made.dead) > dead and self._is_counted(made):
                return made.offer
        self._made, task, before = None, made.task, made.task.before
        if before is not None and len(made.dead) == len(made.rows):
            return ShardResult(task.number, None, before, schema, made.stats)  # the old dead letters hold it all
        receipt, contents = made.receipt(self._job)
        stands = self._folder.write_shard(receipt, contents, before)
        return ShardResult(task.number, stands, before, schema, made.stats)

    def _is_counted(self, made: _Made) -> bool:
        """Return whether the ledger counts the rows that failed before they are written."""
        return bool(made.dead) and not self._free and made.task.before is None


@dataclass
class _Made:
    """What became of a shard's rows."""

    task: ShardTask
    rows: Sequence[SourceRow]
    stats: RunStats
    good: list[tuple[SourceRow, OutputValues]] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    files: Mapping[str, bytes] = field(default_factory=dict)
    schema: Schema | None = None

    @property
    def offer(self) -> ShardOffer:
        """What the ledger must know of it before it is written."""
        first = self.dead[0] if self.dead else None
        return ShardOffer(self.task.number, len(self.rows), len(self.dead), first, self.schema)

    def encode(self, format: ShardFormat, schema: Schema | None) -> None:
        """Encode the good rows; those that the format cannot hold become dead letters."""
        try:
            self.files = format.encode([values for _, values in self.good], schema)
        except UnwritableRowsError as error:
            refused = {failure.index: failure for failure in error.failures}
            self.dead += [DeadLetter(self.good[at][0].id, self.good[at][0].index, why) for at, why in refused.items()]
            self.stats.failed += len(refused)
            self.good = [row for place, row in enumerate(self.good) if place not in refused]
            self.files = format.encode([values for _, values in self.good], schema)
        self.dead.sort(key=lambda letter: letter.index)
        self.schema = schema

    def receipt(self, job: str) -> tuple[Receipt, dict[str, bytes]]:
        """Return the receipt, and the content of each file."""
        task, before, rows = self.task, self.task.before, self.rows
        retry = 0 if before is None else before.retry + 1
        name, dead = shard_name(task.number, retry), len(self.dead)
        contents = {name + suffix: content for suffix, content in self.files.items()}
        if dead:
            contents[f"{DEAD}/{name}.jsonl"] = "".join(letter.line for letter in self.dead).encode()
        files = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        sizes = {file: len(content) for file, content in contents.items()}
        counts = _numbers(self.stats)
        if before is None:
            place = (job, task.number, rows[0].index, rows[-1].index, len(rows), len(rows) - dead, dead)
            return Receipt(*place, files, sizes, counts), contents
        kept = [file for file in before.files if not file.startswith(DEAD)]
        return replace(
            before,
            written=before.written + len(rows) - dead,
            dead=dead,
            files={**{file: before.files[file] for file in kept}, **files},
            sizes={**{file: before.sizes[file] for file in kept}, **sizes},
            counts={file: before.counts.get(file, 0) + value for file, value in counts.items()},
            retry=retry,
        ), contents


def _numbers(stats: RunStats) -> dict[str, float]:
    seconds = {f"seconds.{stage}": value for stage, value in sorted(stats.seconds.items())}
    names = ("truncated_rows", "windows", "batches", "tokens", "repeats", "retries")
    return {**{name: getattr(stats, name) for name in names}, "slots": stats.padded_tokens, **seconds}


def rows_of(task: ShardTask, source: Source) -> Sequence[SourceRow]:
    """Return the rows of a task, which may have to be read.

    :raises InputError: if they cannot be read.
    """
    return source.read(task.rows) if isinstance(task.rows, Stretch) else task.rows


def _outcomes(
    pipeline: Pipeline, task: ShardTask, wanted: Sequence[SourceRow], stats: RunStats, watch: Watch | None
) -> Iterator[Outcome]:
    """Yield what became of each row, in order; those that are run alone come first."""

    def run(rows: Sequence[SourceRow]) -> Iterator[Outcome]:
        running = pipeline
        if watch is not None:
            calls = replace(pipeline.calls, watch=lambda stage, places: watch(stage, [rows[i].index for i in places]))
            running = replace(pipeline, calls=calls)
        return running.results_or_failures([row.example for row in rows], stats)  # type: ignore[misc]

    known: dict[int, Outcome] = dict(task.timed_out)
    known.update((row.index, row.example) for row in wanted if isinstance(row.example, RowFailure))
    stats.rows += len(known)
    stats.failed += len(known)
    for row in wanted:
        if row.index in task.run_alone and row.index not in known:
            known[row.index] = next(run([row]))
    together = run([row for row in wanted if row.index not in known])
    for row in wanted:
        yield known[row.index] if row.index in known else next(together)
