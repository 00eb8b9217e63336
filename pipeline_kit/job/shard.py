"""One shard: rows in, the bytes of its files and its dead letters out. Nothing here touches a disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline_kit.errors import StageError
from pipeline_kit.job.dead_letters import DeadLetter
from pipeline_kit.pipeline import Pipeline
from pipeline_kit.records import SourceRow
from pipeline_kit.sinks import Layout, Row, Schema, ShardFormat, UnwritableRows
from pipeline_kit.stats import RunStats
from pipeline_kit.types import Result, RowFailure

__all__ = ["Agree", "Finished", "Listener", "Work", "make"]

TOLD_ROWS = 32
"""After how many rows it is told again how far a shard is."""

Agree = Callable[[Sequence[Row]], Schema | None]
"""Gives what all shards agree on, settled from these rows if they are the first."""


class Listener:
    """Hears how a shard is being made. This one does nothing."""

    def told(self, stats: RunStats) -> None:
        """Hear how far the shard is."""

    def numbered(self, rows: Sequence[int]) -> None:
        """Hear which rows, numbered as in the input, the pipeline gets next; it counts them from 0."""


@dataclass(frozen=True)
class Work:
    """A shard to be made.

    :param alone: numbers of rows that are run one by one: in an earlier try one of them took too long.
    :param late: rows that took too long even alone, and what is said of them.
    """

    number: int
    rows: Sequence[SourceRow]
    alone: frozenset[int] = frozenset()
    late: Mapping[int, RowFailure] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A shard that was made.

    :param files: the ending of each file's name, and its bytes.
    :param dead: the rows that failed, in input order; all others are in the files.
    :param stats: of this shard.
    """

    number: int
    first: int
    last: int
    rows: int
    files: Mapping[str, bytes]
    dead: Sequence[DeadLetter]
    stats: RunStats


@dataclass(frozen=True)
class _Done:
    """What became of the rows of a shard: each is in exactly one of the two lists, both in input order."""

    rows: list[tuple[SourceRow, Row]]
    dead: list[DeadLetter]


def make(
    pipeline: Pipeline, work: Work, layout: Layout, format: ShardFormat, agree: Agree, listener: Listener
) -> Finished:
    """Run the pipeline on the rows of one shard, and encode what it gives.

    A shard is always run as a whole and by itself, so its batches, and with them the last bits of its numbers,
    are the same in a job that went through and in one that was taken up again.
    """
    stats = RunStats()
    done = _results(pipeline, work, layout, stats, listener)
    schema = agree([row for _, row in done.rows])
    failed = len(done.dead)
    files, done = _encoded(done, format, schema)
    stats.failed += len(done.dead) - failed
    rows = work.rows
    return Finished(work.number, rows[0].index, rows[-1].index, len(rows), files, done.dead, stats)


def _results(pipeline: Pipeline, work: Work, layout: Layout, stats: RunStats, listener: Listener) -> _Done:
    before: dict[int, Result | RowFailure] = dict(work.late)
    for row in work.rows:
        if isinstance(row.example, RowFailure):
            before[row.index] = row.example
    counted = len(before)
    for row in work.rows:
        if row.index in work.alone and row.index not in before:
            listener.numbered([row.index])
            before[row.index] = next(pipeline.outcomes([row.example], stats))  # type: ignore[list-item]
    together = [row for row in work.rows if row.index not in before]
    listener.numbered([row.index for row in together])
    outcomes = pipeline.outcomes([row.example for row in together], stats)  # type: ignore[misc]
    good: list[tuple[SourceRow, Row]] = []
    dead: list[DeadLetter] = []
    for place, row in enumerate(work.rows):
        outcome = before[row.index] if row.index in before else next(outcomes)
        found = outcome if isinstance(outcome, RowFailure) else _row(row, outcome, layout, stats)
        if isinstance(found, RowFailure):
            dead.append(DeadLetter(row.id, row.index, found))
        else:
            good.append((row, found))
        if place % TOLD_ROWS == 0:
            listener.told(stats)
    stats.rows += counted
    stats.failed += counted
    return _Done(good, dead)


def _encoded(done: _Done, format: ShardFormat, schema: Schema | None) -> tuple[Mapping[str, bytes], _Done]:
    """Give the bytes of a shard's files; rows that the format cannot hold become dead letters."""
    try:
        return format.encode([row for _, row in done.rows], schema), done
    except UnwritableRows as error:
        refused = {failure.index: failure for failure in error.failures}
    kept = [pair for place, pair in enumerate(done.rows) if place not in refused]
    letters = [DeadLetter(done.rows[i][0].id, done.rows[i][0].index, failure) for i, failure in refused.items()]
    done = _Done(kept, sorted([*done.dead, *letters], key=lambda letter: letter.index))
    return format.encode([row for _, row in done.rows], schema), done


def _row(source: SourceRow, result: Result, layout: Layout, stats: RunStats) -> Row | RowFailure:
    try:
        return layout.row(source.id, source.carried, result)
    except StageError as error:
        stats.failed += 1
        return RowFailure(source.index, "postprocessor", type(error).__name__, str(error))
