"""Runs a pipeline on a few examples and writes down what each stage took and returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from html import escape
from itertools import starmap
from time import perf_counter
from typing import Any, final

from pipeline_kit.contract.stages import Model, Panel, Seen
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, RunStats, Side, TokenBatch
from pipeline_kit.errors import RowFailure, for_message
from pipeline_kit.explain.blocks import StageTrace, Value
from pipeline_kit.explain.describe import (
    attention_arrays,
    batch_values,
    describe_value,
    layer_of,
    show_encodings,
    stage_source,
    to_numpy,
)
from pipeline_kit.explain.trace import BatchTrace, RowTrace, Trace
from pipeline_kit.explain.view import View, add_views
from pipeline_kit.runtime.calls import is_interruption
from pipeline_kit.runtime.frames import is_example, rows_of
from pipeline_kit.runtime.padding import equal_rows, split_rows
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.runtime.steps import StepPipeline

RowPlace = tuple[int, int]
MOST_PARTS = 3
"""For how many parts of an example, such as the pairs of fifty labels, the tokenizer is asked about its work."""


def explain(
    pipeline: Pipeline,
    examples: Example | Sequence[Example],
    *,
    attentions: bool = False,
    views: Mapping[str, View] | None = None,
) -> Trace:
    """Run `pipeline` on `examples` and return all that was seen; the results in it are those of ``pipeline(x)``.

    The code that runs is the pipeline's own. A stage without panels is shown by what it took and returned.

    :param examples: one example or several, which are then batched as in any run. All of what their batches held
        is kept, so give a few.
    :param attentions: also run the model once more for its attention weights, where it can give them.
    :param views: by name, what plugins show besides.
    :raises ExampleError: if `examples` is neither an example nor several.
    :raises UsageError: if one of `views` cannot show this pipeline.
    :raises StageError: if a stage breaks its contract, as in any run, or a view fails.
    """
    rows = listed(pipeline, examples)
    for view in (views or {}).values():
        view.check(pipeline)
    notes: list[str] = list(pipeline.description.get("notes", ()))
    seen, stats = Recorder(pipeline.model, notes), RunStats()

    def observe(stage: str, given: Any, gave: Any) -> None:
        seen.observe(stage, given, gave)
        if pipeline.observer is not None:
            pipeline.observer(stage, given, gave)

    start = perf_counter()
    outcomes = list(replace(pipeline, model=seen, observer=observe).results_or_failures(rows, stats))
    seconds = perf_counter() - start
    account = _Account(pipeline, seen, notes)
    batches = tuple(account.batch(number, found, attentions) for number, found in enumerate(seen.batches))
    traced = tuple(account.row(place, example, outcomes[place]) for place, example in enumerate(rows))
    if batches and not any(batch.layers for batch in batches):
        model = pipeline.description.get("model")
        compiled = isinstance(model, Mapping) and model.get("compile") is True
        notes.append(
            "a compiled network does not report its layers; model.compile=false shows them"
            if compiled
            else f"the model ({type(pipeline.model).__name__}) does not report its layers"
        )
    trace = Trace(
        task=str(pipeline.description.get("task", "")),
        config=pipeline.description,
        labels=pipeline.labels,
        stages=stage_traces(pipeline, seen, rows, outcomes, stats),
        rows=traced,
        batches=batches,
        seconds=seconds,
        notes=tuple(dict.fromkeys(notes)),
    )
    return add_views(pipeline, trace, [account.passed.get(place) for place in range(len(rows))], views or {})


@dataclass
class _Account:
    """Puts together what was seen of a run."""

    pipeline: Pipeline
    seen: Recorder
    notes: list[str]

    def __post_init__(self) -> None:
        """Find out whose each encoding is, and which batch it was in."""
        self._parts, self._encodings = self.seen.parts(), self.seen.encodings()
        # Encodings are told apart by what they are, not by what is in them: two texts may be the same.
        self._owners: dict[int, RowPlace] = {
            id(encoding): (row, place)
            for row, encodings in enumerate(self._encodings)
            for place, encoding in enumerate(encodings)
        }
        owners = list(self._owners.values())
        groups = equal_rows([encoding for encodings in self._encodings for encoding in encodings])
        self._equal = {owners[place]: [owners[twin] for twin in group] for group in groups for place in group}
        self._places: dict[RowPlace, RowPlace] = {}
        self.passed: dict[int, Seen] = {}
        """By row, what went through the postprocessor of those that have a result."""
        self._raw: dict[RowPlace, RowOutput] = {}
        self._reduced: dict[RowPlace, RowOutput] = {}

    def batch(self, number: int, found: SeenBatch, attentions: bool) -> BatchTrace:
        """Describe one batch; remembers what it returned for each of its rows."""
        batch, output, reduced = found.batch, found.output, found.reduced or found.output
        owners = tuple(self._owners[id(encoding)] for encoding in found.encodings)
        self._places.update({owner: (number, row) for row, owner in enumerate(owners)})
        self._raw.update(zip(owners, split_rows(output, batch), strict=True))
        self._reduced.update(zip(owners, split_rows(reduced, batch), strict=True))
        model, maps = self.pipeline.model, {}
        if attentions:
            maps, note = or_note(
                self.notes, "asking for attention", lambda: attention_arrays(model, batch, found.layers), ({}, "")
            )
            self.notes += [note] if note else []
        return BatchTrace(
            input_ids=to_numpy(batch.input_ids),
            attention_mask=to_numpy(batch.attention_mask),
            token_type_ids=None if batch.token_type_ids is None else to_numpy(batch.token_type_ids),
            side=batch.side,
            rows=owners,
            outputs=_arrays(output),
            reduced=_arrays(reduced),
            per_token=output.per_token | reduced.per_token,
            layers=tuple(layer_of(name, states, batch) for name, states in found.layers),
            attentions=maps,
            panels=or_note(self.notes, "the model's panels", lambda: tuple(model.panels(batch, output)), ()),
            seconds=found.seconds,
        )

    def row(self, place: int, example: Example, outcome: Result | RowFailure) -> RowTrace:
        """Describe one example."""
        encodings = self._encodings[place]
        result, failure = (None, outcome) if isinstance(outcome, RowFailure) else (outcome, None)
        if not encodings:
            return RowTrace(example, (), (), result, failure)
        sequences, note = show_encodings(self.pipeline.tokenizer, self._parts[place], encodings)
        self.notes += [note] if note else []
        panels = {"tokenizer": or_note(self.notes, "the tokenizer's panels", lambda: self._spelling(place), ())}
        owned = [self._computed((place, number)) for number in range(len(encodings))]
        if result is not None:
            raw, reduced = [self._raw[owner] for owner in owned], [self._reduced[owner] for owner in owned]
            # A copy: what the trace holds must stay what the pipeline computed.
            seen = self.passed[place] = Seen(example, encodings, raw, reduced, deepcopy(result), self.pipeline.labels)
            panels["postprocessor"] = or_note(
                self.notes, "the postprocessor's panels", lambda: tuple(self.pipeline.postprocessor.panels(seen)), ()
            )
        places = tuple(self._places.get(owner, (-1, -1)) for owner in owned)
        kept = {kind: found for kind, found in panels.items() if found}
        return RowTrace(example, sequences, places, result, failure, kept)

    def _computed(self, owner: RowPlace) -> RowPlace:
        """Return the encoding that was in a batch for this one: itself, or an equal one, see batching.deduplicate."""
        return owner if owner in self._places else next((o for o in self._equal[owner] if o in self._places), owner)

    def _spelling(self, place: int) -> tuple[Panel, ...]:
        """Ask the tokenizer about each part, which is what it was given."""
        tokenizer, parts, found = self.pipeline.tokenizer, self._parts[place], []
        for number, part in enumerate(parts[:MOST_PARTS]):
            panels = tokenizer.panels(part, [e for e in self._encodings[place] if e.part == number])
            name = f", part {number + 1} of {len(parts)}" if len(parts) > 1 else ""
            found += [replace(panel, title=panel.title + name) for panel in panels]
        return tuple(found)


def listed(pipeline: Pipeline, examples: Any) -> list[Example]:
    """Return what a call of `pipeline` takes as a list of examples."""
    return [examples] if is_example(examples) else list(rows_of(examples, pipeline.recipe.takes))


def _arrays(output: ModelOutput) -> dict[str, Any]:
    return {name: to_numpy(tensor) for name, tensor in output.tensors.items()}


def stage_traces(
    pipeline: Pipeline, seen: Recorder, examples: Sequence[Example], outcomes: Sequence[Any], stats: RunStats
) -> tuple[StageTrace, ...]:
    """Describe tokenizer, padding, model and postprocessor; of several batches or encodings the first one's values."""
    parts = [part for parts in seen.parts() for part in parts]
    encodings = [encoding for found in seen.encodings() for encoding in found]
    results: list[Result] = [outcome for outcome in outcomes if not isinstance(outcome, RowFailure)]
    batch, output, reduced = list[Value](), list[Value](), list[Value]()
    for first in seen.batches[:1]:
        batch += batch_values(first.batch)
        output += starmap(describe_value, first.output.tensors.items())
        reduced += starmap(describe_value, (first.reduced or first.output).tensors.items())
    ids = [describe_value("encodings", encodings)]
    for encoding in encodings[:1]:
        fields = ("input_ids", "token_type_ids", "special_tokens_mask", "offsets", "word_ids", "sequence_ids")
        ids += [describe_value(name, value) for name in fields if (value := getattr(encoding, name)) is not None]
    last = [describe_value("examples", examples), ids[0], *reduced]
    passed = {
        "tokenizer": ([describe_value("texts", parts)], ids),
        "padding": (ids[:1], batch),
        "model": (batch, output),
        "postprocessor": (last, [describe_value("results", results)]),
    }
    described, traces = pipeline.description, []
    for kind, (given, gave) in passed.items():
        stage = getattr(pipeline, kind)
        name = described.get(kind, {}).get("name") or getattr(stage, "name", None) or type(stage).__name__
        options = described.get("options", {}).get(kind, {})
        seconds = stats.seconds.get(kind, 0.0)
        traces.append(StageTrace(kind, str(name), stage_source(stage), options, tuple(given), tuple(gave), seconds))
    return tuple(traces)


def or_note(notes: list[str], what: str, call: Any, otherwise: Any) -> Any:
    """Return what `call` returns; where a stage's account of itself fails, note that and return `otherwise`."""
    try:
        return call()
    except BaseException as error:
        if is_interruption(error):
            raise
        notes.append(f"{what} failed: {type(error).__name__}: {for_message(str(error))}")
        return otherwise


@dataclass
class SeenBatch:
    """One batch that ran."""

    encodings: Sequence[Encoding]
    batch: TokenBatch
    output: ModelOutput
    layers: Sequence[tuple[str, Any]]
    seconds: float
    reduced: ModelOutput | None = None


@final
class Recorder(Model):
    """Stands for a pipeline's model and is its observer; keeps what passed between the stages.

    :ivar chunks: for each chunk its examples' parts, as the pipeline has them, and their encodings.
    :ivar batches: those that ran, in the order in which they did.
    """

    def __init__(self, model: Model, notes: list[str]) -> None:
        """Watch `model`; what goes wrong with watching is added to `notes`."""
        self._model, self._notes = model, notes
        self.chunks: list[tuple[Sequence[Any], Sequence[Any]]] = []
        self.batches: list[SeenBatch] = []
        self._padded: Sequence[Encoding] = ()
        self._layers: Sequence[tuple[str, Any]] = ()
        self._seconds = 0.0
        self._whole: ModelOutput | None = None

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """See :class:`Model`."""
        return self._model.deterministic

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """Those of the model."""
        return self._model.safe_padding_sides

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Run the model; note what its layers returned, and the time that it took."""
        with ExitStack() as stack:
            seen = or_note(
                self._notes, "watching the model", lambda: stack.enter_context(self._model.capture_layers()), ()
            )
            start = perf_counter()
            self._whole = self._model.forward(replace(batch, wanted=None))  # every token is looked at here
            self._seconds = perf_counter() - start
        self._layers = tuple(seen)
        return self._whole if batch.wanted is None else self._model.forward(batch)  # the pipeline's own, to the bit

    def observe(self, stage: str, given: Any, gave: Any) -> None:
        """See :class:`pipeline_kit.runtime.pipeline.Pipeline`."""
        if stage == "tokenizer":
            self.chunks.append((given, gave))
        elif stage == "padding":
            self._padded = given
        elif stage == "model":
            self.batches.append(SeenBatch(self._padded, given, self._whole or gave, self._layers, self._seconds))
        elif stage == "reduce":
            self.batches[-1].reduced = gave

    def parts(self) -> list[Sequence[Example]]:
        """Return for each example what was encoded for it; nothing where it could not be read."""
        found: list[Sequence[Example]] = []
        for given, _ in self.chunks:
            for item in given:
                parts = isinstance(item, Sequence) and not isinstance(item, str)
                single = isinstance(item, str | Mapping)
                found.append(tuple(item) if parts else (item,) if single else ())
        return found

    def encodings(self) -> list[Sequence[Encoding]]:
        """Return each example's encodings; nothing where there are none."""
        return [item if isinstance(item, list) else () for _, encoded in self.chunks for item in encoded]


@dataclass(frozen=True)
class StepTraces:
    """The trace of each step that ran on any example, by name, and how many of the examples `failed`."""

    steps: Mapping[str, Trace]
    failed: int

    def to_dict(self, *, most: int | None = None) -> dict[str, Any]:
        """Return all of it as JSON values; see :meth:`pipeline_kit.explain.trace.Trace.to_dict`."""
        return {"steps": {name: trace.to_dict(most=most) for name, trace in self.steps.items()}}

    def _repr_html_(self) -> str:
        return "".join(f"<h2>{escape(name)}</h2>{trace._repr_html_()}" for name, trace in self.steps.items())


def explain_steps(pipeline: StepPipeline, examples: Example | Sequence[Example], **options: Any) -> StepTraces:
    """Run a pipeline with steps on `examples`, each step as :func:`pipeline_kit.explain.record.explain` does."""
    traces: dict[str, Trace] = {}

    def run(name: str, own: Pipeline, inputs: Iterable[Example], rows: Sequence[int]) -> Iterable[Any]:
        given = list(inputs)
        if not given:
            return []
        traces[name] = explain(own, given, **options)
        return [row.result if row.failure is None else row.failure for row in traces[name].rows]

    failed = sum(isinstance(outcome, RowFailure) for outcome in pipeline.outcomes(listed(pipeline, examples), run))
    return StepTraces({name: traces[name] for name in pipeline.steps if name in traces}, failed)
