"""Several pipelines as one: each step runs on fields of the example or on earlier results, over one stream of rows."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from threading import RLock
from typing import Any

from pipeline_kit.contract.fields import is_missing, lacks_value, read_fields, text_of
from pipeline_kit.contract.types import Example, Result, RunStats
from pipeline_kit.errors import ExampleError, MissingValueError, RowFailure, UsageError
from pipeline_kit.runtime.frames import SizedRows
from pipeline_kit.runtime.pipeline import Pipeline, Recipe
from pipeline_kit.runtime.stage_runner import Outcome
from pipeline_kit.runtime.wiring import Wiring

MOST_WAITING = 8 * 2048
"""How many rows that a step does not run on wait, at the most, until it runs on those before them."""

# A sentence ends with marks, and closing quotes, before a space that no small letter follows; with a mark of Chinese
# or Japanese; at an empty line. Possessive, or a text of nothing but points would take the square of its length.
_ENDS = (
    r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s++[^a-z]|\s*+\Z)",  # noqa: RUF001 - a quotation mark is meant
    r"[。！？]++[」』）”]*+",  # noqa: RUF001 - these marks are meant
    r"(?=\n[^\S\n]*+\n)",
)
_SENTENCE = re.compile(rf"\S.*?(?:{'|'.join(_ENDS)}|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A part of a pipeline; one without a pipeline of its own splits a text into sentences."""

    wiring: Wiring
    pipeline: Pipeline | None


@dataclass
class _Row:
    """A row on its way: the example's fields, then each step's result by its name."""

    index: int
    values: dict[str, Any]
    failure: RowFailure | None = None


Run = Callable[[str, Pipeline, Iterable[Example], Sequence[int]], Iterable[Any]]
"""Runs a step's pipeline on examples; the last argument grows by the row of each, where that is watched."""


@dataclass(repr=False)
class StepPipeline(Pipeline):
    """A pipeline that runs others one after another; a result holds each step's result under the step's name.

    Its own stages are those of the last step. Each step is a stream over the one before it: rows keep their order,
    and no more of them are held than two windows and `MOST_WAITING` rows a step.
    """

    steps: Mapping[str, Step] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: Mapping[str, Step], recipe: Recipe, **parts: Any) -> StepPipeline:
        """Put `steps` together, of which the last has a pipeline; `parts` are fields of the whole."""
        turn, found = RLock(), {}
        for name, step in steps.items():  # threads take turns at all models: steps may share one
            own = step.pipeline
            found[name] = replace(step, pipeline=own and replace(own, locks=replace(own.locks, model=turn)))
        last = [*found.values()][-1].pipeline
        stages = {item.name: getattr(last, item.name) for item in fields(Pipeline)}
        return cls(**stages | {"adapter": None, "recipe": recipe} | parts, steps=found)

    def _released(self) -> list[Any]:
        """See :class:`Pipeline`; of all steps."""
        steps = [step.pipeline for step in self.steps.values() if step.pipeline is not None]
        return [*super()._released(), *(stage for own in steps for stage in own._released())]

    def _facts(self) -> dict[str, str]:
        return {"steps": ", ".join(self.steps), "device": super()._facts()["device"]}

    @property
    def pinned_options(self) -> Mapping[str, Any]:
        """See :class:`Pipeline`; by step."""
        return {name: dict(step.pipeline.pinned_options) for name, step in self.steps.items() if step.pipeline}

    def results_or_failures(self, examples: Iterable[Example], stats: RunStats | None = None) -> Iterator[Outcome]:
        """See :class:`Pipeline`; the stage of a failure begins with the step's name: ``sentiment.model``."""
        stats = stats or RunStats()
        count = len(examples) if isinstance(examples, Sized) else None

        def run(name: str, own: Pipeline, inputs: Iterable[Example], numbers: Sequence[int]) -> Iterable[Any]:
            rows = inputs if count is None else SizedRows(inputs, count)
            for outcome in self._watched(name, own, numbers).results_or_failures(rows, stats):
                stats.rows -= 1  # the step counted it; here each row counts once, at the end
                stats.failed -= isinstance(outcome, RowFailure)
                yield outcome

        for outcome in self.outcomes(examples, run):
            stats.rows += 1
            stats.failed += isinstance(outcome, RowFailure)
            yield outcome

    def judged_results(self, examples: Iterable[Example], stats: RunStats | None = None) -> Iterator[Outcome]:
        """See :class:`Pipeline`; the results of the last step."""
        *_, last = self.steps
        for row, outcome in enumerate(self.results_or_failures(examples, stats)):
            found = outcome if isinstance(outcome, RowFailure) else outcome[last]
            problem = f"the step '{last}' did not run on this row, see its 'when'"
            yield RowFailure(row, last, "NoResult", problem) if found is None else found

    def stream_text(self, example: Example, stats: RunStats | None = None) -> Iterator[str]:
        """Raise UsageError: only one pipeline's text comes in pieces."""
        raise UsageError(f"a pipeline of the steps {', '.join(self.steps)} returns no text in pieces; call it")

    def outcomes(self, examples: Iterable[Example], run: Run) -> Iterator[Outcome]:
        """Return what becomes of each example when `run` runs the steps."""
        rows: Iterator[_Row] = (self._row(index, example) for index, example in enumerate(examples))
        for name, step in self.steps.items():
            rows = _through(name, step, rows, run, self.calls.watch is not None)
        for row in rows:
            yield row.failure if row.failure is not None else {name: row.values[name] for name in self.steps}

    def _row(self, index: int, example: Example) -> _Row:
        try:
            if is_missing(example):
                raise MissingValueError
            return _Row(index, dict(read_fields(example, self.recipe.takes)))
        except ExampleError as error:
            return _Row(index, {}, RowFailure.of(index, "input", error))

    def _watched(self, name: str, pipeline: Pipeline, numbers: Sequence[int]) -> Pipeline:
        """Return a step's pipeline; who watches or observes the whole is called by it."""
        watch, calls = self.calls.watch, pipeline.calls
        if watch is not None:
            calls = replace(calls, watch=lambda stage, rows: watch(f"{name}.{stage}", [numbers[row] for row in rows]))
        return replace(pipeline, calls=calls, observer=self.observer or pipeline.observer)


def _through(name: str, step: Step, rows: Iterator[_Row], run: Run, watched: bool) -> Iterator[_Row]:
    """Run one step on a stream of rows; those it does not run on keep their places."""
    for row in rows:
        yield from _stretch(name, step, chain([row], rows), run, watched)


def _stretch(name: str, step: Step, rows: Iterator[_Row], run: Run, watched: bool) -> Iterator[_Row]:
    """Run until the rows end, or `MOST_WAITING` of them wait."""
    waiting: deque[tuple[_Row, list[Example | None] | None, int]] = deque()
    numbers: list[int] = []
    idle = 0

    def examples() -> Iterator[Example]:
        nonlocal idle
        for row in rows:
            inputs = _inputs(name, step, row)
            wanted = [example for example in inputs or () if example is not None]
            waiting.append((row, inputs, len(wanted)))
            if watched:  # the rows of a job's shard; those of a stream have no end
                numbers.extend([row.index] * len(wanted))
            yield from wanted
            idle += not wanted
            if idle >= MOST_WAITING:
                return

    def finished(outcomes: Sequence[Any]) -> _Row:
        nonlocal idle
        row, inputs, wanted = waiting.popleft()
        idle -= not wanted
        if row.failure is None:
            _set_result(row, name, inputs, outcomes, step.wiring.each != ())
        return row

    outcomes: list[Any] = []
    given = examples()
    for outcome in map(_split, given) if step.pipeline is None else run(name, step.pipeline, given, numbers):
        while not waiting[0][2]:
            yield finished(())
        outcomes.append(outcome)
        if len(outcomes) == waiting[0][2]:
            yield finished(outcomes)
            outcomes = []
    while waiting:
        yield finished(())


def _inputs(name: str, step: Step, row: _Row) -> list[Example | None] | None:
    try:
        return None if row.failure is not None else step.wiring.inputs(row.values)
    except LookupError as error:
        row.failure = RowFailure(row.index, f"{name}.take", "ExampleError", str(error.args[0]))
        return None


def _set_result(
    row: _Row, name: str, inputs: Sequence[Example | None] | None, outcomes: Sequence[Any], each: bool
) -> None:
    """Set what a step returned for a row, or why it failed; null where it did not run."""
    left = iter(outcomes)
    found = [None if example is None else next(left) for example in inputs or ()]
    for place, outcome in enumerate(found):
        if isinstance(outcome, RowFailure):
            message = f"item {place}: {outcome.message}" if each else outcome.message
            row.failure = replace(outcome, index=row.index, stage=f"{name}.{outcome.stage}", message=message)
            return
    row.values[name] = None if inputs is None else found if each else found[0]


def _split(example: Example) -> list[Result] | RowFailure:
    try:
        if lacks_value(example, ("text",)):
            raise MissingValueError
        return sentences(text_of(example["text"], "text"))  # type: ignore[index] # a step takes its fields by name
    except ExampleError as error:
        return RowFailure.of(0, "split", error)


def sentences(text: str) -> list[Result]:
    """Cut a text at the ends of its sentences; each has its ``text``, ``start`` and ``end`` in characters."""
    found = ((match.start(), match[0].rstrip()) for match in _SENTENCE.finditer(text))
    return [{"text": sentence, "start": start, "end": start + len(sentence)} for start, sentence in found]
