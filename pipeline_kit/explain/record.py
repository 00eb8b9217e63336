"""Runs a pipeline on a few examples and writes down what each stage took and returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, final

from pipeline_kit.checkpoint.json import read_json
from pipeline_kit.contract.stages import Model, Panel, Seen
from pipeline_kit.contract.types import (
    Checkpoint,
    Encoding,
    Example,
    ModelOutput,
    Result,
    RowOutput,
    RunStats,
    Side,
    TokenBatch,
)
from pipeline_kit.errors import CheckpointError, ExampleError, RowFailure, for_message
from pipeline_kit.explain.sequences import show_encodings
from pipeline_kit.explain.trace import BatchTrace, RowTrace, StageTrace, Trace, Value
from pipeline_kit.explain.values import (
    attention_arrays,
    batch_values,
    describe_value,
    layer_of,
    stage_source,
    to_numpy,
)
from pipeline_kit.runtime.calls import is_interruption
from pipeline_kit.runtime.padding import split_rows

if TYPE_CHECKING:
    from pipeline_kit.runtime.pipeline import Pipeline

RowPlace = tuple[int, int]
MOST_PARTS = 3
"""For how many parts of an example, such as the pairs of fifty labels, the tokenizer is asked about its work."""


def explain(pipeline: Pipeline, examples: Example | Sequence[Example], *, attentions: bool = False) -> Trace:
    """Run `pipeline` on `examples` and return all that was seen; the results in it are those of ``pipeline(x)``.

    The code that runs is the pipeline's own. A stage without panels is shown by what it took and returned.

    :param examples: one example or several, which are then batched as in any run. All of what their batches held
        is kept, so give a few.
    :param attentions: also run the model once more for its attention weights, where it can give them.
    :raises ExampleError: if `examples` is neither an example nor several.
    :raises StageError: if a stage breaks its contract, as in any run.
    """
    rows = _listed(examples)
    notes: list[str] = list(pipeline.description.get("notes", ()))
    watched = WatchedModel(pipeline.model, notes)
    seen, stats = Recorder(watched), RunStats()

    def observe(stage: str, given: Any, gave: Any) -> None:
        seen.observe(stage, given, gave)
        if pipeline.observer is not None:
            pipeline.observer(stage, given, gave)

    start = perf_counter()
    outcomes = list(replace(pipeline, model=watched, observer=observe).results_or_failures(rows, stats))
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
    return Trace(
        task=str(pipeline.description.get("task", "")),
        config=pipeline.description,
        labels=_labels(pipeline.description),
        stages=stage_traces(pipeline, seen, rows, outcomes, stats),
        rows=traced,
        batches=batches,
        seconds=seconds,
        notes=tuple(dict.fromkeys(notes)),
    )


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
        self._places: dict[RowPlace, RowPlace] = {}
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
            asked = or_note(
                self.notes, "asking for attention", lambda: attention_arrays(model, batch, found.layers), ({}, "")
            )
            maps, note = asked
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
        if result is not None:
            panels["postprocessor"] = or_note(
                self.notes, "the postprocessor's panels", lambda: self._arithmetic(place, example, result), ()
            )
        places = tuple(self._places.get((place, number), (-1, -1)) for number in range(len(encodings)))
        kept = {kind: found for kind, found in panels.items() if found}
        return RowTrace(example, sequences, places, result, failure, kept)

    def _spelling(self, place: int) -> tuple[Panel, ...]:
        """Ask the tokenizer about each part, which is what it was given."""
        tokenizer, parts, found = self.pipeline.tokenizer, self._parts[place], []
        for number, part in enumerate(parts[:MOST_PARTS]):
            panels = tokenizer.panels(part, [e for e in self._encodings[place] if e.part == number])
            name = f", part {number + 1} of {len(parts)}" if len(parts) > 1 else ""
            found += [replace(panel, title=panel.title + name) for panel in panels]
        return tuple(found)

    def _arithmetic(self, place: int, example: Example, result: Result) -> tuple[Panel, ...]:
        encodings: Sequence[Encoding] = self._encodings[place]
        owned = [(place, number) for number in range(len(encodings))]
        raw, reduced = [self._raw[owner] for owner in owned], [self._reduced[owner] for owner in owned]
        # A copy: what the trace holds must stay what the pipeline computed.
        return tuple(self.pipeline.postprocessor.panels(Seen(example, encodings, raw, reduced, deepcopy(result))))


def _listed(examples: Any) -> list[Example]:
    if isinstance(examples, str | Mapping):
        return [examples]
    if isinstance(examples, bytes | bytearray) or not hasattr(examples, "__iter__"):
        raise ExampleError(f"a pipeline takes a text, a mapping, or several of them, not {type(examples).__name__}")
    return list(examples)


def _arrays(output: ModelOutput) -> dict[str, Any]:
    return {name: to_numpy(tensor) for name, tensor in output.tensors.items()}


def _labels(description: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the label names of the pipeline's checkpoint; none where it has no folder."""
    told = description.get("checkpoint")
    path = told.get("path") if isinstance(told, Mapping) else None
    if not isinstance(path, str):
        return ()
    try:
        config = read_json(Path(path) / "config.json")
    except CheckpointError:
        return ()
    return Checkpoint(Path(path), path, config).labels if isinstance(config, Mapping) else ()


def stage_traces(
    pipeline: Pipeline, seen: Recorder, examples: Sequence[Example], outcomes: Sequence[Any], stats: RunStats
) -> tuple[StageTrace, ...]:
    """Describe tokenizer, padding, model and postprocessor; of several batches the first one's values are shown."""
    parts = [part for parts in seen.parts() for part in parts]
    encodings = [encoding for found in seen.encodings() for encoding in found]
    results: list[Result] = [outcome for outcome in outcomes if not isinstance(outcome, RowFailure)]
    batch: tuple[Value, ...] = ()
    output: tuple[Value, ...] = ()
    reduced: tuple[Value, ...] = ()
    if seen.batches:
        first = seen.batches[0]
        batch = batch_values(first.batch)
        output, reduced = (
            tuple(describe_value(name, tensor) for name, tensor in given.tensors.items())
            for given in (first.output, first.reduced or first.output)
        )
    texts, ids = describe_value("texts", parts), _encodings(encodings)
    return (
        _stage(pipeline, "tokenizer", pipeline.tokenizer, stats, (texts,), ids),
        _stage(pipeline, "padding", pipeline.padding, stats, ids[:1], batch),
        _stage(pipeline, "model", pipeline.model, stats, batch, output),
        _stage(
            pipeline,
            "postprocessor",
            pipeline.postprocessor,
            stats,
            (describe_value("examples", examples), *ids[:1], *reduced),
            (describe_value("results", results),),
        ),
    )


def _stage(
    pipeline: Pipeline, kind: str, stage: Any, stats: RunStats, given: tuple[Value, ...], gave: tuple[Value, ...]
) -> StageTrace:
    node = pipeline.description.get(kind)
    name = node.get("name") if isinstance(node, Mapping) else None
    if name is None:
        name = getattr(stage, "name", None) or type(stage).__name__
    options = pipeline.description.get("options")
    options = options.get(kind) if isinstance(options, Mapping) else None
    options = options if isinstance(options, Mapping) else {}
    return StageTrace(kind, str(name), stage_source(stage), options, given, gave, stats.seconds.get(kind, 0.0))


def _encodings(encodings: Sequence[Encoding]) -> tuple[Value, ...]:
    """Describe all encodings, then the fields that the first one has."""
    found = [describe_value("encodings", encodings)]
    if encodings:
        first = encodings[0]
        fields = ("input_ids", "token_type_ids", "special_tokens_mask", "offsets", "word_ids", "sequence_ids")
        found += [describe_value(name, getattr(first, name)) for name in fields if getattr(first, name) is not None]
    return tuple(found)


def or_note(notes: list[str], what: str, call: Any, otherwise: Any) -> Any:
    """Return what `call` returns; where a stage's account of itself fails, note that and return `otherwise`."""
    try:
        return call()
    except BaseException as error:
        if is_interruption(error):
            raise
        notes.append(f"{what} failed: {type(error).__name__}: {for_message(str(error))}")
        return otherwise


@final
class WatchedModel(Model):
    """Wraps a model; records what its layers return, and its run time."""

    def __init__(self, model: Model, notes: list[str]) -> None:
        """Watch `model`; what goes wrong with watching is added to `notes`."""
        self._model, self._notes = model, notes
        self.layers: Sequence[tuple[str, Any]] = ()
        self.seconds = 0.0

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """Those of the model."""
        return self._model.safe_padding_sides

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Run the model; what its layers returned is then in `layers`, the time it took in `seconds`."""
        with ExitStack() as stack:
            seen = or_note(
                self._notes, "watching the model", lambda: stack.enter_context(self._model.capture_layers()), ()
            )
            start = perf_counter()
            output = self._model.forward(batch)
            self.seconds = perf_counter() - start
        self.layers = tuple(seen)
        return output


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
@dataclass
class Recorder:
    """Keeps what a pipeline's observer is told.

    :ivar chunks: for each chunk its examples' parts, as the pipeline has them, and their encodings.
    :ivar batches: those that ran, in the order in which they did.
    """

    model: WatchedModel
    chunks: list[tuple[Sequence[Any], Sequence[Any]]] = field(default_factory=list)
    batches: list[SeenBatch] = field(default_factory=list)
    _padded: Sequence[Encoding] = ()

    def observe(self, stage: str, given: Any, gave: Any) -> None:
        """See :class:`pipeline_kit.runtime.pipeline.Pipeline`."""
        if stage == "tokenizer":
            self.chunks.append((given, gave))
        elif stage == "padding":
            self._padded = given
        elif stage == "model":
            self.batches.append(SeenBatch(self._padded, given, gave, self.model.layers, self.model.seconds))
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
