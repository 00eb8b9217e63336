"""One example as a page shows it: its texts, tokens, tensors, layers, result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_kit.contract.stages import Panel
from pipeline_kit.contract.types import RowFailure
from pipeline_kit.explain.html_attention import AttentionView, TokenBudget, attention_view, columns_of, spelled
from pipeline_kit.explain.html_charts import (
    Bars,
    Heat,
    Spark,
    bars,
    example_text,
    excerpt,
    heat,
    html_number,
    invisible,
    spark,
)
from pipeline_kit.explain.trace import Attribution, BatchTrace, RowTrace, SequenceTrace, Trace

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token's chip; `joined` if it continues the word before it, `differs` shows what another trace has."""

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


def row_view(trace: Trace, place: int, marks: Mapping[int, Mapping[int, str]], room: TokenBudget, most: int) -> RowView:
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


def _sequence(trace: Trace, row: RowTrace, number: int, marks: Mapping[int, str], room: TokenBudget) -> SequenceView:
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


def _attention(batch: BatchTrace, line: int, names: Sequence[str], room: TokenBudget) -> AttentionView | None:
    maps = {name: values[line] for name, values in batch.attentions.items() if values.ndim == 4}
    if not maps:
        return None
    columns = columns_of(batch, line)
    return attention_view(maps, columns if len(columns) == len(names) else None, names, room)


MOST = 24
"""So many tokens have a bar: those that moved the result most, in the order of the text."""

_SHADES = 4


@dataclass(frozen=True, slots=True)
class ShadedToken:
    """A token with its score and shade (``p1`` to ``p4``, ``n1`` to ``n4`` or ''), or the text between two."""

    text: str
    score: str
    shade: str


@dataclass(frozen=True, slots=True)
class AttributionView:
    """One attribution of one sequence; each of `texts` is a text in pieces."""

    method: str
    target: str
    sequence: int
    error: str
    note: str
    bars: Bars
    left_out: int
    texts: tuple[tuple[ShadedToken, ...], ...]


def attribution_view(found: Attribution, sequence: SequenceTrace) -> AttributionView:
    """Draw `found`, which is of `sequence`."""
    scores = [float(score) for score in found.scores.tolist()]
    names = spelled(sequence)
    order = sorted(range(min(len(scores), len(names))), key=lambda place: -_size(scores[place]))
    shown = sorted(order[:MOST])
    error = (
        "the method promises no sum"
        if found.completeness_error is None
        else html_number(float(found.completeness_error))
    )
    return AttributionView(
        method=found.method,
        target=found.target,
        sequence=found.sequence,
        error=error,
        note=found.note,
        bars=bars([names[place] for place in shown], [scores[place] for place in shown]),
        left_out=len(order) - len(shown),
        texts=tuple(_pieces(sequence, scores, which) for which in range(len(sequence.source))),
    )


def _size(score: float) -> float:
    return abs(score) if math.isfinite(score) else 0.0


def _pieces(sequence: SequenceTrace, scores: list[float], which: int) -> tuple[ShadedToken, ...]:
    """Cut one of the texts where its tokens begin and end; tokens that overlap lose what was shown before."""
    text, at, pieces = sequence.source[which], 0, []
    most = max(map(_size, scores), default=0.0) or 1.0
    for token, score in zip(sequence.tokens, scores, strict=False):
        if token.start is None or token.end is None or token.special or (token.sequence or 0) != which:
            continue
        start, end = max(at, token.start), min(token.end, len(text))
        if end <= start:
            continue
        if start > at:
            pieces.append(ShadedToken(text[at:start], "", ""))
        pieces.append(ShadedToken(text[start:end], html_number(score), _shade(score, most)))
        at = end
    if at < len(text):
        pieces.append(ShadedToken(text[at:], "", ""))
    return tuple(pieces)


def _shade(score: float, most: float) -> str:
    level = math.ceil(_SHADES * _size(score) / most - 0.2)
    return f"{'n' if score < 0 else 'p'}{min(_SHADES, level)}" if level > 0 else ""


FEW = 64
"""As many numbers of a vector are drawn as bars, each with its label."""

_UNNAMED = 16

_LABELS = 40
_LISTED = 48
_ROWS = 50
_JSON = 4_000


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of one sequence, without padding: one of the four pictures, or only `summary`."""

    name: str
    origin: str
    shape: str
    dtype: str
    summary: str
    bars: Bars | None = None
    heat: Heat | None = None
    spark: Spark | None = None


@dataclass(frozen=True, slots=True)
class ValueTable:
    """A list of records in a result."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class ResultView:
    """A result: what is single, what is a table, what is a vector, and all of it as JSON, cut if long."""

    facts: tuple[tuple[str, str], ...]
    tables: tuple[ValueTable, ...]
    vectors: tuple[tuple[str, Spark, int], ...]
    json: str
    cut: int


def tensor_view(
    name: str, origin: str, values: Array, labels: Sequence[str], tokens: Sequence[str], per_token: bool
) -> TensorView:
    """Choose the picture for one sequence's tensor.

    :param origin: where it comes from, ``model`` or ``reduced on the device``.
    :param values: without batch dimension and padding.
    :param tokens: as they are shown; one for each place of a `per_token` tensor.
    """
    shape = "[" + ", ".join(map(str, values.shape)) + "]"
    whole = values.dtype.kind in "iub"
    base = TensorView(name, origin, shape, str(values.dtype), _summary(values, whole))
    flat = values.reshape(-1)
    if not flat.size:
        return base
    if per_token and values.ndim in (1, 2) and len(values) == len(tokens):
        rows = values[None] if values.ndim == 1 else values.T
        names = _names(rows.shape[0], labels) if values.ndim == 2 else [name]
        few = len(rows) <= (_LABELS if values.ndim == 1 or len(rows) == len(labels) else _UNNAMED)
        return _with(base, heat=heat(name, name, names, tokens, rows)) if few else base
    if whole or (values.ndim > 1 and max(values.shape) != flat.size):
        return base
    if flat.size <= (FEW if flat.size == len(labels) else _UNNAMED):
        return _with(base, bars=bars(_names(flat.size, labels), flat.astype(np.float64).tolist()))
    return _with(base, spark=spark(flat))


def _with(
    view: TensorView, bars: Bars | None = None, heat: Heat | None = None, spark: Spark | None = None
) -> TensorView:
    return TensorView(view.name, view.origin, view.shape, view.dtype, view.summary, bars, heat, spark)


def _names(count: int, labels: Sequence[str]) -> list[str]:
    return list(labels) if len(labels) == count else [str(place) for place in range(count)]


def _summary(values: Array, whole: bool) -> str:
    if not values.size:
        return "empty"
    if whole:
        flat = values.reshape(-1)
        more = f" … {flat.size - _LISTED} more" if flat.size > _LISTED else ""
        return " ".join(map(str, flat[:_LISTED].tolist())) + more
    wide = np.asarray(values, dtype=np.float64)
    bad = int(np.count_nonzero(~np.isfinite(wide)))
    note = f", {bad} not finite" if bad else ""
    finite = wide[np.isfinite(wide)]
    if not finite.size:
        return "no number is finite"
    least, most, mean = (html_number(float(value)) for value in (finite.min(), finite.max(), finite.mean()))
    return f"{least} to {most}, mean {mean}{note}"


def result_view(result: Mapping[str, Any]) -> ResultView:
    """Sort what a result holds into facts, tables and vectors."""
    facts: list[tuple[str, str]] = []
    tables: list[ValueTable] = []
    vectors: list[tuple[str, Spark, int]] = []
    for key, value in result.items():
        if not isinstance(value, list | tuple | Mapping):
            facts.append((key, html_number(value, 6)))
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            tables.append(_table(key, value))
        elif isinstance(value, list | tuple) and len(value) > FEW and all(isinstance(item, float) for item in value):
            vectors.append((key, spark(np.array(value)), len(value)))
        else:
            facts.append((key, _short(value)))
    text = json.dumps(result, ensure_ascii=False, indent=2, default=str)
    return ResultView(tuple(facts), tuple(tables), tuple(vectors), text[:_JSON], max(0, len(text) - _JSON))


def _table(name: str, records: Sequence[Mapping[str, Any]]) -> ValueTable:
    columns = tuple(dict.fromkeys(str(key) for record in records for key in record))
    rows = tuple(tuple(_short(record.get(column, "")) for column in columns) for record in records[:_ROWS])
    return ValueTable(name, columns, rows, max(0, len(records) - _ROWS))


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and value and all(isinstance(item, float | int) for item in value):
        more = f", … {len(value) - 8} more" if len(value) > 8 else ""
        return "[" + ", ".join(html_number(item) for item in value[:8]) + more + "]"
    if isinstance(value, list | tuple | Mapping):
        text = json.dumps(value, ensure_ascii=False, default=str)
        return text if len(text) <= 300 else text[:299] + "…"
    return html_number(value)
