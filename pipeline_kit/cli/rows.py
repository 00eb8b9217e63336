"""Puts what the pipeline gives and the rows that never reached it back into one order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

from pipeline_kit.errors import shorten
from pipeline_kit.records import Record
from pipeline_kit.sinks.json_text import json_line
from pipeline_kit.stats import RunStats
from pipeline_kit.types import Example, Result, RowFailure

__all__ = ["Outcomes", "Row", "json_line", "run_rows"]

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
    :param value: the result, or ``{"error": {...}}``.
    :param line: `value` as one line of JSON.
    :param failure: why there is no result; None if there is one.
    """

    example: Example | None
    value: dict[str, Any]
    line: str
    failure: RowFailure | None = None


def run_rows(pipeline: Outcomes, records: Iterable[Record], stats: RunStats) -> Iterator[Row]:
    """Run `pipeline` on the examples among `records`; give one row for each record, in order.

    No more than `MOST_WAITING` failed records wait for the example before them, so memory stays bounded
    even for a stream of nothing but bad rows.
    """
    numbered = enumerate(records)
    while True:
        first = next(numbered, None)
        if first is None:
            return
        yield from _stretch(pipeline, chain([first], numbered), stats)


def _stretch(pipeline: Outcomes, numbered: Iterator[tuple[int, Record]], stats: RunStats) -> Iterator[Row]:
    """Run until the records end or `MOST_WAITING` bad ones wait."""
    read: deque[tuple[int, Record]] = deque()
    bad = 0

    def examples() -> Iterator[Example]:
        nonlocal bad
        for index, record in numbered:
            read.append((index, record))
            if not isinstance(record, RowFailure):
                yield record
                continue
            bad += 1
            if bad >= MOST_WAITING:
                return

    def unreadable() -> Iterator[Row]:
        nonlocal bad
        while read and isinstance(record := read[0][1], RowFailure):
            index, _ = read.popleft()
            bad -= 1
            stats.rows += 1
            stats.failed += 1
            yield _failed(None, replace(record, index=index))

    for outcome in pipeline.outcomes(examples(), stats):
        yield from unreadable()
        index, example = read.popleft()
        assert not isinstance(example, RowFailure)
        yield _row(index, example, outcome, stats)
    yield from unreadable()


def _row(index: int, example: Example, outcome: Result | RowFailure, stats: RunStats) -> Row:
    if isinstance(outcome, RowFailure):
        return _failed(example, replace(outcome, index=index))
    try:
        return Row(example, outcome, json_line(outcome))
    except (TypeError, ValueError, RecursionError) as error:
        stats.failed += 1
        problem = f"the result cannot be written as JSON: {error}"
        return _failed(example, RowFailure(index, "postprocessor", type(error).__name__, problem))


def _failed(example: Example | None, failure: RowFailure) -> Row:
    error = {"stage": failure.stage, "type": failure.error, "message": shorten(failure.message, 500)}
    return Row(example, {"error": error}, json_line({"error": error}), failure)
