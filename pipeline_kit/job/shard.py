"""One shard: rows in, the bytes of its files and its dead letters out. Nothing here touches a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import RowFailure, StageError
from pipeline_kit.files.read.source import SourceRow
from pipeline_kit.files.write.base import OutputValues, Schema, UnwritableRowsError
from pipeline_kit.files.write.formats import ShardFormat
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.job.folder import DeadLetter
from pipeline_kit.runtime.calls import Watch
from pipeline_kit.runtime.pipeline import Outcome, Pipeline

PROGRESS_ROWS = 32
"""After how many rows a shard reports its progress again."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to be made. A task and its result hold plain data alone, so that they can go to another machine.

    :param schema: what all shards agree on; None if no shard has settled that yet, or there is nothing to settle.
    :param run_alone: numbers of rows that are run one by one: in an earlier try one of them took too long.
    :param timed_out: rows that took too long even alone, by number.
    """

    number: int
    rows: Sequence[SourceRow]
    schema: Schema | None = None
    run_alone: frozenset[int] = frozenset()
    timed_out: Mapping[int, RowFailure] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardResult:
    """A shard that was made.

    :param files: the ending of each file's name, and its bytes.
    :param dead: the rows that failed, in input order; all others are in the files.
    :param schema: what the files were written by: that of the task, or what these rows would settle for all shards.
    :param stats: of this shard.
    """

    number: int
    first: int
    last: int
    rows: int
    files: Mapping[str, bytes]
    dead: Sequence[DeadLetter]
    schema: Schema | None
    stats: RunStats


def run_shard(
    pipeline: Pipeline,
    task: ShardTask,
    layout: Layout,
    format: ShardFormat,
    progress: Callable[[RunStats], None],
    watch: Watch | None = None,
) -> ShardResult:
    """Run the pipeline on the rows of one shard, and encode what it returns.

    A shard is always run as a whole and by itself, so its batches, and with them the last bits of its numbers,
    are the same in a job that went through and in one that was resumed.

    :param progress: called now and then with the counts so far.
    :param watch: called with each stage and the input's numbers of the rows that it works on.
    """
    stats, rows = RunStats(), task.rows
    good: list[tuple[SourceRow, OutputValues]] = []
    dead: list[DeadLetter] = []
    for place, (row, outcome) in enumerate(zip(rows, _outcomes(pipeline, task, stats, watch), strict=True)):
        if not isinstance(outcome, RowFailure):
            try:
                good.append((row, layout.row(row.id, row.carried, outcome)))
            except StageError as error:
                stats.failed += 1
                outcome = RowFailure.of(row.index, "postprocessor", error)
        if isinstance(outcome, RowFailure):
            dead.append(DeadLetter(row.id, row.index, outcome))
        if place % PROGRESS_ROWS == 0:
            progress(stats)
    schema = format.schema([values for _, values in good]) if task.schema is None else task.schema
    try:
        files = format.encode([values for _, values in good], schema)
    except UnwritableRowsError as error:
        refused = {failure.index: failure for failure in error.failures}
        dead += [DeadLetter(good[place][0].id, good[place][0].index, failure) for place, failure in refused.items()]
        stats.failed += len(refused)
        files = format.encode([values for place, (_, values) in enumerate(good) if place not in refused], schema)
    dead.sort(key=lambda letter: letter.index)
    return ShardResult(task.number, rows[0].index, rows[-1].index, len(rows), files, dead, schema, stats)


def _outcomes(pipeline: Pipeline, task: ShardTask, stats: RunStats, watch: Watch | None) -> Iterator[Outcome]:
    """Yield what became of each row, in order; those that are run alone come first."""

    def run(rows: Sequence[SourceRow]) -> Iterator[Outcome]:
        running = pipeline
        if watch is not None:
            calls = replace(pipeline.calls, watch=lambda stage, places: watch(stage, [rows[i].index for i in places]))
            running = replace(pipeline, calls=calls)
        return running.results_or_failures([row.example for row in rows], stats)  # type: ignore[misc]

    known: dict[int, Outcome] = dict(task.timed_out)
    known.update((row.index, row.example) for row in task.rows if isinstance(row.example, RowFailure))
    stats.rows += len(known)
    stats.failed += len(known)
    for row in task.rows:
        if row.index in task.run_alone and row.index not in known:
            known[row.index] = next(run([row]))
    together = run([row for row in task.rows if row.index not in known])
    for row in task.rows:
        yield known[row.index] if row.index in known else next(together)
