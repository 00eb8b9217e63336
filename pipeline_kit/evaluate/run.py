"""Runs a pipeline over labelled rows and judges what it gives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol

from pipeline_kit.evaluate.base import Evaluator, Verdict
from pipeline_kit.evaluate.rows import Labelled, in_row, read_gold
from pipeline_kit.stats import RunStats
from pipeline_kit.types import Example, Result, RowFailure

__all__ = ["Counts", "Outcomes", "Watcher", "report", "run"]


class Outcomes(Protocol):
    """The one thing of a :class:`~pipeline_kit.pipeline.Pipeline` that is needed here."""

    def outcomes(self, examples: Iterable[Example], stats: RunStats | None = None) -> Iterator[Result | RowFailure]:
        """Give a result or a failure for each example, in order."""
        ...


@dataclass
class Counts:
    """What was counted; metrics are over ``rows - failed``."""

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    seconds: float = 0.0
    stats: RunStats = field(default_factory=RunStats)


@dataclass(frozen=True)
class Watcher:
    """Who is told of each row."""

    judged: Callable[[Labelled, Verdict], None] = lambda row, verdict: None
    failed: Callable[[RowFailure], None] = lambda failure: None


_NOBODY = Watcher()


def run(
    pipeline: Outcomes, rows: Iterable[Labelled | RowFailure], evaluator: Evaluator, watcher: Watcher = _NOBODY
) -> Counts:
    """Judge every row that gives a result. No more rows are held than the pipeline holds.

    :raises InputError: if a label is none, or does not go with its example.
    :raises StageError: if a result lacks what is judged.
    """
    counts = Counts()
    waiting: deque[tuple[Labelled, Any, int]] = deque()

    def fail(failure: RowFailure) -> None:
        counts.failed += 1
        watcher.failed(failure)

    def examples() -> Iterator[Example]:
        for row in rows:
            counts.rows += 1
            if isinstance(row, RowFailure):
                fail(row)
                continue
            parts = evaluator.parts(row.example)
            waiting.append((row, read_gold(evaluator, row), len(parts)))
            yield from parts

    start = perf_counter()
    outcomes: list[Result | RowFailure] = []
    for outcome in pipeline.outcomes(examples(), counts.stats):
        outcomes.append(outcome)
        row, gold, parts = waiting[0]
        if len(outcomes) < parts:
            continue
        waiting.popleft()
        failures = [item for item in outcomes if isinstance(item, RowFailure)]
        results = [item for item in outcomes if not isinstance(item, RowFailure)]
        outcomes = []
        if failures:
            fail(replace(failures[0], index=row.index))
            continue
        counts.truncated += any("truncated" in result for result in results)
        with in_row(row):
            verdict = evaluator.add(gold, results)
        watcher.judged(row, verdict)
    counts.seconds = perf_counter() - start
    return counts


def report(counts: Counts, evaluator: Evaluator) -> dict[str, Any]:
    """Give counts, metrics and notes as JSON values; no metrics if no row gave a result."""
    evaluated = counts.rows - counts.failed
    notes: tuple[str, ...] = ("no row gave a result, so there is nothing to measure",)
    values: dict[str, Any] = {}
    if evaluated:
        metrics = evaluator.metrics()
        values, notes = metrics.values, metrics.notes
        if counts.failed:
            notes = (f"{counts.failed:,} rows failed and are not in the metrics", *notes)
    return {
        "rows": counts.rows,
        "evaluated": evaluated,
        "failed": counts.failed,
        "truncated": counts.truncated,
        "seconds": counts.seconds,
        "rows_per_second": counts.rows / max(counts.seconds, 1e-9),
        "metrics": values,
        "notes": list(notes),
    }
