"""The pipeline's steps with what went in, what came out, and how long each took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline_kit.explain.trace import StageTrace, Value
from pipeline_kit.explain.values import batch_values, describe, options_of, output_values, source_of
from pipeline_kit.explain.watching import Recorder
from pipeline_kit.stats import RunStats
from pipeline_kit.types import Encoding, Example, Result, RowFailure

if TYPE_CHECKING:
    from pipeline_kit.pipeline import Pipeline

__all__ = ["stage_traces"]


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
        batch, output = batch_values(first.batch), output_values(first.output)
        reduced = output_values(first.reduced or first.output)
    texts, ids = describe("texts", parts), _encodings(encodings)
    return (
        _stage(pipeline, "tokenizer", pipeline.tokenizer, stats, (texts,), ids),
        _stage(pipeline, "padding", pipeline.padding, stats, ids[:1], batch),
        _stage(pipeline, "model", pipeline.model, stats, batch, output),
        _stage(
            pipeline,
            "postprocessor",
            pipeline.postprocessor,
            stats,
            (describe("examples", examples), *ids[:1], *reduced),
            (describe("results", results),),
        ),
    )


def _stage(
    pipeline: Pipeline, kind: str, stage: Any, stats: RunStats, given: tuple[Value, ...], gave: tuple[Value, ...]
) -> StageTrace:
    node = pipeline.description.get(kind)
    name = node.get("name") if isinstance(node, Mapping) else None
    if name is None:
        name = getattr(stage, "name", None) or type(stage).__name__
    options = options_of(pipeline.description, kind)
    return StageTrace(kind, str(name), source_of(stage), options, given, gave, stats.seconds.get(kind, 0.0))


def _encodings(encodings: Sequence[Encoding]) -> tuple[Value, ...]:
    """Describe all encodings, then the fields that the first one has."""
    found = [describe("encodings", encodings)]
    if encodings:
        first = encodings[0]
        fields = ("input_ids", "token_type_ids", "special_tokens_mask", "offsets", "word_ids", "sequence_ids")
        found += [describe(name, getattr(first, name)) for name in fields if getattr(first, name) is not None]
    return tuple(found)
