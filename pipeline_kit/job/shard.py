"""One shard: rows in, the bytes of its files and its dead letters out. Nothing here touches a disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline_kit.errors import StageError
from pipeline_kit.job.dead_letters import DeadLetter
from pipeline_kit.pipeline import Pipeline
from pipeline_kit.records import SourceRow
from pipeline_kit.sinks import Layout, Row, Schema, ShardFormat, UnwritableRows
from pipeline_kit.stats import RunStats
from pipeline_kit.types import Result, RowFailure

__all__ = ["Done", "encode", "results_of"]


@dataclass(frozen=True)
class Done:
    """What became of the rows of a shard: each is in exactly one of the two lists, both in input order."""

    rows: list[tuple[SourceRow, Row]]
    dead: list[DeadLetter]


def results_of(
    pipeline: Pipeline,
    rows: Sequence[SourceRow],
    layout: Layout,
    stats: RunStats,
    advanced: Callable[[RunStats], None],
) -> Done:
    """Run the pipeline on the rows of one shard.

    A shard is always run as a whole and by itself, so its batches, and with them the last bits of its numbers,
    are the same in a job that went through and in one that was taken up again.
    """
    readable = [row for row in rows if not isinstance(row.example, RowFailure)]
    outcomes = pipeline.outcomes([row.example for row in readable], stats)  # type: ignore[misc]
    good: list[tuple[SourceRow, Row]] = []
    dead: list[DeadLetter] = []
    for row in rows:
        unreadable = isinstance(row.example, RowFailure)
        outcome = row.example if isinstance(row.example, RowFailure) else next(outcomes)
        if unreadable:
            stats.rows += 1
            stats.failed += 1
        advanced(stats)
        found = outcome if isinstance(outcome, RowFailure) else _row(row, outcome, layout, stats)
        if isinstance(found, RowFailure):
            dead.append(DeadLetter(row.id, row.index, found))
        else:
            good.append((row, found))
    return Done(good, dead)


def encode(done: Done, format: ShardFormat, schema: Schema | None) -> tuple[Mapping[str, bytes], Done]:
    """Give the bytes of a shard's files; rows that the format cannot hold become dead letters.

    :returns: the bytes by the ending of each file's name, and what became of the rows.
    """
    try:
        return format.encode([row for _, row in done.rows], schema), done
    except UnwritableRows as error:
        refused = {failure.index: failure for failure in error.failures}
    kept = [pair for place, pair in enumerate(done.rows) if place not in refused]
    letters = [DeadLetter(done.rows[i][0].id, done.rows[i][0].index, failure) for i, failure in refused.items()]
    done = Done(kept, sorted([*done.dead, *letters], key=lambda letter: letter.index))
    return format.encode([row for _, row in done.rows], schema), done


def _row(source: SourceRow, result: Result, layout: Layout, stats: RunStats) -> Row | RowFailure:
    try:
        return layout.row(source.id, source.carried, result)
    except StageError as error:
        stats.failed += 1
        return RowFailure(source.index, "postprocessor", type(error).__name__, str(error))
