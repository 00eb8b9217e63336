"""Runs a pipeline over labelled rows and judges what it returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pipeline_kit.contract.evaluator import Evaluator, Verdict
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Example, Result, RunStats
from pipeline_kit.errors import InputError, RowFailure, UsageError, did_you_mean, for_message
from pipeline_kit.files.read.source import SourceRow

if TYPE_CHECKING:
    from pipeline_kit.runtime.pipeline import Pipeline

GOLD = "label"
"""The field with the label."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row.

    :param index: its place among all rows, from 0.
    :param id: where it stands, such as ``reviews.csv:17``, which counts lines from 1.
    :param gold: the label as the file has it.
    """

    index: int
    id: str
    example: dict[str, Any]
    gold: Any


def maker_of(task: str, registry: Registry) -> Any:
    """Return what makes the task's evaluator from an ``EvaluationContext``; raise UsageError if it has none."""
    known = [spec.name for spec in registry.specs("evaluator")]
    if task not in known:
        raise UsageError(
            f"task '{for_message(task, 60)}' cannot be evaluated; these can: {', '.join(known)}."
            + did_you_mean(task, known)
        )
    return registry.get("evaluator", task).load()


def labelled(rows: Iterable[SourceRow]) -> Iterator[Labelled | RowFailure]:
    """Part each row into example and label; a row that cannot be read stays a failure in its place."""
    for row in rows:
        if isinstance(row.example, RowFailure):
            yield row.example
        elif isinstance(row.example, str):
            problem = f"{row.id}: is a text alone; a labelled row has the fields of its task and '{GOLD}'"
            yield RowFailure(row.index, "input", "InputError", problem)
        else:
            example = {name: value for name, value in row.example.items() if name != GOLD}
            yield Labelled(row.index, row.id, example, row.example[GOLD])


@contextmanager
def in_row(row: Labelled) -> Iterator[None]:
    """Add the row's place to an InputError that the body raises."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{row.id}: {error}") from error


def check_rows(rows: Iterable[Labelled | RowFailure], evaluator: Evaluator) -> int:
    """Return the number of rows; raise InputError at the first unknown label, before a model is loaded."""
    count = 0
    for row in rows:
        count += 1
        if isinstance(row, Labelled):
            with in_row(row):
                evaluator.read(row.gold, row.example)
    return count


@dataclass
class Counts:
    """What was counted; metrics are over ``rows - failed``."""

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    seconds: float = 0.0
    stats: RunStats = field(default_factory=RunStats)


def run(
    pipeline: Pipeline,
    rows: Iterable[Labelled | RowFailure],
    evaluator: Evaluator,
    judged: Callable[[Labelled, Verdict], None] = lambda row, verdict: None,
    failed: Callable[[RowFailure], None] = lambda failure: None,
) -> Counts:
    """Judge every row that has a result, and call `judged` with it, `failed` with each other one.

    :raises InputError: if a label is unknown, or does not go with its example.
    :raises StageError: if a result lacks what is judged.
    """
    counts = Counts()
    waiting: deque[tuple[Labelled, Any, int]] = deque()

    def fail(failure: RowFailure) -> None:
        counts.failed += 1
        failed(failure)

    def examples() -> Iterator[Example]:
        for row in rows:
            counts.rows += 1
            if isinstance(row, RowFailure):
                fail(row)
                continue
            parts = evaluator.parts(row.example)
            with in_row(row):
                waiting.append((row, evaluator.read(row.gold, row.example), len(parts)))
            yield from parts

    start = perf_counter()
    outcomes: list[Result | RowFailure] = []
    for outcome in pipeline.judged_results(examples(), counts.stats):
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
        judged(row, verdict)
    counts.seconds = perf_counter() - start
    return counts


def report(counts: Counts, evaluator: Evaluator) -> dict[str, Any]:
    """Return counts, metrics and notes as JSON values; no metrics if no row has a result."""
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


def require_libraries() -> None:
    """Raise UsageError, saying what to install, before anything is loaded."""
    missing = [name for module, name in (("sklearn", "scikit-learn"), ("scipy", "scipy")) if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"evaluate needs {' and '.join(missing)}, which {verb} not installed: pip install 'pipeline-kit[evaluate]'"
        )
