"""One example as a page shows it: its texts, tokens, tensors, layers, result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_kit.explain.html_attention import AttentionView, Room, attention_view
from pipeline_kit.explain.html_attribution import AttributionView, attribution_view
from pipeline_kit.explain.html_batches import columns_of, spelled
from pipeline_kit.explain.html_charts import Heat, heat
from pipeline_kit.explain.html_text import example_text, excerpt, invisible
from pipeline_kit.explain.html_values import ResultView, TensorView, result_view, tensor_view
from pipeline_kit.explain.trace import BatchTrace, RowTrace, SequenceTrace, Trace
from pipeline_kit.panels import Panel
from pipeline_kit.types import RowFailure

__all__ = ["RowView", "SequenceView", "TokenView", "fitting", "row_view", "shown_sequences"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token's chip; `joined` if it goes on with the word before it, `differs` tells what another trace has."""

    shown: str
    id: int
    offsets: str
    kind: str
    word: str
    type: str
    joined: bool
    special: bool
    second: bool
    differs: str


@dataclass(frozen=True, slots=True)
class SequenceView:
    """One sequence; `invisible` names characters that cannot be seen in its texts."""

    title: str
    source: tuple[str, ...]
    invisible: str
    truncated: int
    truncated_chars: int
    cut: str | None
    place: str
    tokens: tuple[TokenView, ...]
    tensors: tuple[TensorView, ...]
    norms: Heat | None
    attention: AttentionView | None


@dataclass(frozen=True, slots=True)
class RowView:
    """One example; `left_out` sequences have no room on the page."""

    title: str
    fields: tuple[tuple[str, str], ...]
    sequences: tuple[SequenceView, ...]
    left_out: int
    result: ResultView | None
    failure: RowFailure | None
    panels: tuple[tuple[str, Panel], ...]
    attributions: tuple[AttributionView, ...]


def fitting(lengths: Sequence[int], room: int) -> int:
    """Count how many of `lengths`, from the first on, fit into `room`: at least one, if there is any."""
    for place, length in enumerate(lengths):
        room -= length
        if room < 0:
            return max(1, place)
    return len(lengths)


def shown_sequences(row: RowTrace, most: int) -> int:
    """Count the sequences of an example that are shown where `most` tokens may be."""
    return fitting([len(sequence.tokens) for sequence in row.sequences], most)


def row_view(trace: Trace, place: int, marks: Mapping[int, Mapping[int, str]], room: Room, most: int) -> RowView:
    """Draw the example at `place`.

    :param marks: by sequence and token, how the token differs from another trace's.
    :param most: tokens that may be shown.
    """
    row = trace.rows[place]
    count = shown_sequences(row, most)
    fields = () if isinstance(row.example, str) else tuple((str(k), str(v)) for k, v in row.example.items())
    return RowView(
        title=excerpt(example_text(row.example), 90) or "(empty text)",
        fields=fields,
        sequences=tuple(_sequence(trace, row, number, marks.get(number, {}), room) for number in range(count)),
        left_out=len(row.sequences) - count,
        result=None if row.result is None else result_view(row.result),
        failure=row.failure,
        panels=tuple((kind, panel) for kind, panels in row.panels.items() for panel in panels),
        attributions=tuple(
            attribution_view(found, row.sequences[found.sequence])
            for found in row.attributions
            if 0 <= found.sequence < len(row.sequences)
        ),
    )


def _sequence(trace: Trace, row: RowTrace, number: int, marks: Mapping[int, str], room: Room) -> SequenceView:
    sequence = row.sequences[number]
    at, line = row.places[number] if number < len(row.places) else (-1, -1)
    batch = trace.batches[at] if 0 <= at < len(trace.batches) else None
    names = spelled(sequence)
    return SequenceView(
        title=_title(row, sequence),
        source=sequence.source,
        invisible="; ".join(found for found in map(invisible, sequence.source) if found),
        truncated=sequence.truncated,
        truncated_chars=sequence.truncated_chars,
        cut=sequence.cut,
        place="it reached no batch" if batch is None else _place(batch, at, line),
        tokens=_tokens(sequence, names, marks),
        tensors=() if batch is None else _tensors(batch, line, trace.labels, names),
        norms=None if batch is None else _norms(batch, line, names),
        attention=None if batch is None else _attention(batch, line, names, room),
    )


def _title(row: RowTrace, sequence: SequenceTrace) -> str:
    words = []
    if len({other.part for other in row.sequences}) > 1:
        words.append(f"part {sequence.part + 1}")
    if sum(other.part == sequence.part for other in row.sequences) > 1:
        words.append(f"window {sequence.window + 1}")
        if sequence.span is not None:
            words.append(f"tokens {sequence.span[0]} to {sequence.span[1] - 1} of the text")
    return ", ".join(words)


def _place(batch: BatchTrace, at: int, line: int) -> str:
    columns = columns_of(batch, line)
    width = batch.input_ids.shape[1]
    side = f", padding on the {batch.side}" if len(columns) < width else ""
    return f"batch {at + 1}, row {line + 1}: {len(columns)} of {width} columns{side}"


def _tokens(sequence: SequenceTrace, names: Sequence[str], marks: Mapping[int, str]) -> tuple[TokenView, ...]:
    views = []
    before: tuple[int | None, int | None] | None = None
    for place, (token, shown) in enumerate(zip(sequence.tokens, names, strict=True)):
        word = None if token.word is None else (token.sequence, token.word)
        views.append(
            TokenView(
                shown=shown,
                id=token.id,
                offsets="none" if token.start is None else f"{token.start} to {token.end}",
                kind="special" if token.special else ("pair" if token.sequence == 1 else "text"),
                word="none" if token.word is None else str(token.word),
                type="none" if token.type is None else str(token.type),
                joined=word is not None and word == before,
                special=token.special,
                second=token.sequence == 1,
                differs=marks.get(place, ""),
            )
        )
        before = word
    return tuple(views)


def _tensors(batch: BatchTrace, line: int, labels: Sequence[str], names: Sequence[str]) -> tuple[TensorView, ...]:
    views = []
    columns, width = columns_of(batch, line), batch.input_ids.shape[1]
    for origin, tensors in (("model", batch.outputs), ("reduced on the device", batch.reduced)):
        for name, values in tensors.items():
            if origin != "model" and name in batch.outputs and np.array_equal(values, batch.outputs[name]):
                continue
            own = values[line]
            per_token = name in batch.per_token and own.ndim > 0 and own.shape[0] == width
            views.append(tensor_view(name, origin, own[columns] if per_token else own, labels, names, per_token))
    return tuple(views)


def _norms(batch: BatchTrace, line: int, names: Sequence[str]) -> Heat | None:
    width, columns = batch.input_ids.shape[1], columns_of(batch, line)
    layers = [layer for layer in batch.layers if layer.norms.shape[-1] == width]
    if not layers or len(columns) != len(names):
        return None
    values = np.stack([layer.norms[line][columns] for layer in layers])
    rows = [f"{layer.name}" for layer in layers]
    return heat("hidden-state norms", "norm", rows, names, values)


def _attention(batch: BatchTrace, line: int, names: Sequence[str], room: Room) -> AttentionView | None:
    maps = {name: values[line] for name, values in batch.attentions.items() if values.ndim == 4}
    if not maps:
        return None
    columns = columns_of(batch, line)
    return attention_view(maps, columns if len(columns) == len(names) else None, names, room)
