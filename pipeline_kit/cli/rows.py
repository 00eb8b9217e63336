"""Puts what the pipeline gives and the rows that never reached it back into one order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

from pipeline_kit.errors import StageError, shorten
from pipeline_kit.records import Record, SourceRow
from pipeline_kit.sinks import Layout
from pipeline_kit.sinks.json_text import json_line
from pipeline_kit.stats import RunStats
from pipeline_kit.types import Example, Result, RowFailure

__all__ = ["Outcomes", "Row", "json_line", "run_rows", "run_source"]

MOST_WAITING = 1024


class Outcomes(Protocol):
    """The one thing of a :class:`~pipeline_kit.pipeline.Pipeline` that is needed here."""

    def outcomes(self, examples: Iterable[Example], stats: RunStats | None = None) -> Iterator[Result | RowFailure]:
        """Give a result or a failure for each example, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
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


def run_rows(pipeline: Outcomes, records: Iterable[Record], stats: RunStats) -> Iterator[Row]:
    """Run `pipeline` on the examples among `records`; give one row for each record, in order.

    No more than `MOST_WAITING` failed records wait for the example before them, so memory stays bounded
    even for a stream of nothing but bad rows.
    """
    return _run(pipeline, (_Read(index, record) for index, record in enumerate(records)), stats)


def run_source(pipeline: Outcomes, rows: Iterable[SourceRow], stats: RunStats, layout: Layout) -> Iterator[Row]:
    """Run `pipeline` as :func:`run_rows` does; each row has its id and its carried columns where `layout` has them.

    A failure has the row's number in the whole input, whatever part of it was chosen.
    """
    return _run(pipeline, (_Read(row.index, row.example, layout.row(row.id, row.carried, {})) for row in rows), stats)


def _run(pipeline: Outcomes, reads: Iterator[_Read], stats: RunStats) -> Iterator[Row]:
    while True:
        first = next(reads, None)
        if first is None:
            return
        yield from _stretch(pipeline, chain([first], reads), stats)


def _stretch(pipeline: Outcomes, reads: Iterator[_Read], stats: RunStats) -> Iterator[Row]:
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

    def unreadable() -> Iterator[Row]:
        nonlocal bad
        while waiting and isinstance(failure := waiting[0].record, RowFailure):
            read = waiting.popleft()
            bad -= 1
            stats.rows += 1
            stats.failed += 1
            yield _failed(None, failure, read)

    for outcome in pipeline.outcomes(examples(), stats):
        yield from unreadable()
        yield _row(waiting.popleft(), outcome, stats)
    yield from unreadable()


def _row(read: _Read, outcome: Result | RowFailure, stats: RunStats) -> Row:
    example = read.record
    assert not isinstance(example, RowFailure), "those never reach the pipeline"
    if isinstance(outcome, RowFailure):
        return _failed(example, outcome, read)
    try:
        value = _joined(read.front, outcome)
        return Row(example, value, json_line(value), front=read.front)
    except (TypeError, ValueError, RecursionError, StageError) as error:
        stats.failed += 1
        problem = str(error) if isinstance(error, StageError) else f"the result cannot be written as JSON: {error}"
        return _failed(example, RowFailure(read.index, "postprocessor", type(error).__name__, problem), read)


def _joined(front: Mapping[str, Any], result: Result) -> Result:
    if not front:
        return result
    shared = next((key for key in result if key in front), None)
    if shared is not None:
        shown = shorten(shared, 80)
        raise StageError(f"the result's key '{shown}' is a column of the input too; leave it out of input.carry")
    return {**front, **result}


def _failed(example: Example | None, failure: RowFailure, read: _Read) -> Row:
    error = {"stage": failure.stage, "type": failure.error, "message": shorten(failure.message, 500)}
    value = {**read.front, "error": error}
    return Row(example, value, json_line(value), replace(failure, index=read.index), read.front)
