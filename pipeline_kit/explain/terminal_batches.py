"""The terminal's view of batches: the padded grid, the layers, attention, and what the model returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline_kit.errors import for_message
from pipeline_kit.explain.terminal_parts import draw_panel, indented, line, table, token_name
from pipeline_kit.explain.trace import Attribution, BatchTrace, RowTrace, Token, Trace

_COLUMNS = 16
"""Tokens of a row of the grid that are shown, unless all of it is asked for."""

_LABELS = 6
"""Labels that have a column each; of more of them only the best is shown."""

Array = np.ndarray[Any, Any]


def sequence_name(trace: Trace, place: tuple[int, int]) -> str:
    """Return the short name of the sequence that a batch's row holds."""
    row = trace.rows[place[0]]
    return token_name(place[0], row.sequences[place[1]], row)


def draw_grid(trace: Trace, number: int, full: bool) -> list[RenderableType]:
    """Show a batch's ids, mask and segment ids as they went to the model; padding is dim and in brackets."""
    batch = trace.batches[number]
    count, width = batch.input_ids.shape
    padding = int((batch.attention_mask == 0).sum())
    head = f"batch {number}: {count} rows of {width} tokens, "
    head += f"{padding} of {count * width} places are padding, on the {batch.side}" if padding else "no padding"
    found: list[RenderableType] = [line(head, "bold")]
    kept = list(range(width)) if full or width <= _COLUMNS + 4 else [*range(_COLUMNS - 4), *range(width - 4, width)]
    rows: list[list[Any]] = []
    for row in range(count):
        name = sequence_name(trace, batch.rows[row])
        mask = batch.attention_mask[row]
        rows.append([name, "ids", _ids(batch.input_ids[row], mask, kept)])
        rows.append(["", "mask", _flags(mask, kept)])
        if batch.token_type_ids is not None:
            rows.append(["", "types", _flags(batch.token_type_ids[row], kept)])
    found.append(indented(table(("sequence", "", f"{width} tokens"), rows, full)))
    return found


def _ids(ids: Array, mask: Array, kept: Sequence[int]) -> Text:
    shown, last = Text(), -1
    for place in kept:
        if place:
            shown.append(" " if place == last + 1 else f" … {place - last - 1} more … ")
        shown.append(f"{ids[place]}" if mask[place] else f"[{ids[place]}]", style="" if mask[place] else "dim")
        last = place
    return shown


def _flags(values: Array, kept: Sequence[int]) -> Text:
    shown, last = "", -1
    for place in kept:
        shown += ("" if place == last + 1 else " … ") + str(values[place])
        last = place
    return Text(shown)


def draw_layers(batch: BatchTrace, full: bool) -> list[RenderableType]:
    """Show each layer's shape and the norms of its vectors, padding left out."""
    if not batch.layers:
        return []
    rows: list[list[Any]] = []
    for layer in batch.layers:
        norms = layer.norms
        if norms.shape == batch.attention_mask.shape:
            norms = norms[batch.attention_mask == 1]
        numbers = (float(norms.mean()), float(norms.min()), float(norms.max())) if norms.size else (None, None, None)
        rows.append([layer.name, _shape(layer.shape), layer.dtype, *numbers])
    columns = ("hidden states", "shape", "dtype", "mean norm", "least", "largest")
    return [line("length of the tokens' vectors, layer by layer", "bold"), indented(table(columns, rows, full))]


def draw_attention(trace: Trace, number: int, full: bool) -> list[RenderableType]:
    """Show for each layer what the first token of each sequence attends to most, all heads together."""
    batch = trace.batches[number]
    rows: list[list[Any]] = []
    for name, weights in batch.attentions.items():
        for row, place in enumerate(batch.rows):
            tokens = trace.rows[place[0]].sequences[place[1]].tokens
            start = 0 if batch.side == "right" else batch.input_ids.shape[1] - len(tokens)
            query = start if weights.shape[2] == batch.input_ids.shape[1] else 0
            mean = weights[row].mean(axis=0)[query, start : start + len(tokens)]
            best = np.argsort(-mean, kind="stable")[:3] if len(mean) == len(tokens) else ()
            most = ", ".join(f"{for_message(tokens[i].text, 20)} {mean[i]:.2f}" for i in best)
            rows.append([name, sequence_name(trace, place), _shape(weights.shape), most])
    if not rows:
        return []
    columns = ("attention", "sequence", "shape", "the first token attends most to")
    return [line("attention, mean of all heads", "bold"), indented(table(columns, rows, full))]


def draw_model(trace: Trace, number: int, full: bool) -> list[RenderableType]:
    """Show all that is known of what the model did with a batch."""
    batch = trace.batches[number]
    found: list[RenderableType] = []
    for panel in batch.panels:
        found += draw_panel(panel, full)
    found += draw_layers(batch, full)
    found += draw_attention(trace, number, full)
    for name, values in batch.outputs.items():
        found += draw_outputs(trace, batch, name, values, full)
    return found


def draw_outputs(trace: Trace, batch: BatchTrace, name: str, values: Array, full: bool) -> list[RenderableType]:
    """Show a tensor of the model, row by row; with label names where it has one number for each of them."""
    head = line(f"{for_message(name, 80)} {_shape(values.shape)} {values.dtype}", "bold")
    labels = trace.labels
    labelled = len(labels) > 0 and values.ndim > 1 and values.shape[-1] == len(labels)
    if labelled and values.ndim == 2 and name not in batch.per_token:
        named = [(sequence_name(trace, place), values[row]) for row, place in enumerate(batch.rows)]
        return [head, indented(_scores("sequence", named, labels, full))]
    if labelled and values.ndim == 3 and name in batch.per_token:
        found: list[RenderableType] = [head]
        for row, place in enumerate(batch.rows):
            tokens = trace.rows[place[0]].sequences[place[1]].tokens
            start = 0 if batch.side == "right" else values.shape[1] - len(tokens)
            named = [(for_message(token.text, 40), values[row, start + i]) for i, token in enumerate(tokens)]
            found.append(indented(_scores(f"token of {sequence_name(trace, place)}", named, labels, full)))
        return found
    rows = [[sequence_name(trace, place), _numbers(values[row])] for row, place in enumerate(batch.rows)]
    return [head, indented(table(("sequence", "first numbers"), rows, full))]


def _scores(first: str, named: Sequence[tuple[str, Array]], labels: Sequence[str], full: bool) -> RenderableType:
    if len(labels) <= _LABELS:
        rows = [[name, *map(float, scores)] for name, scores in named]
        return table((first, *labels), rows, full)
    best = [(name, int(scores.argmax()), scores) for name, scores in named]
    rows = [[name, for_message(labels[place], 60), float(scores[place])] for name, place, scores in best]
    return table((first, f"best of {len(labels)} labels", "its number"), rows, full)


def _numbers(values: Array) -> str:
    flat = values.reshape(-1)
    shown = [f"{item:.4f}" if isinstance(item, float) else str(item) for item in flat[:8].tolist()]
    return " ".join(shown) + (f" … {flat.size:,} in all" if flat.size > 8 else "")


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def same_arrays(first: Mapping[str, Array], second: Mapping[str, Array]) -> bool:
    """Return whether two sets of tensors are the same, as where nothing was reduced."""
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k], equal_nan=True) for k in first)


_BARS = 24  # tokens that get a bar; of more, those with the largest scores
_HALF = 12  # characters of a bar on either side of zero
_TOKEN = 24
_STYLES = {1: "green", -1: "red", 0: "dim"}
_STEPS = (0.1, 0.4, 0.7)
"""From which part of the largest score on a token has one, two and three signs."""


def draw_attribution(trace: Trace) -> RenderableType:
    """Draw all attributions of `trace`; nothing where there are none. Readable at 80 columns and without colour."""
    return Group(*(part for number, row in enumerate(trace.rows) for part in _row(trace, number, row)))


def _row(trace: Trace, number: int, row: RowTrace) -> Iterator[RenderableType]:
    for found in row.attributions:
        heading = Text(f"{found.method}: {found.target}", style="bold")
        if len(trace.rows) > 1:
            heading = Text(f"example {number + 1}: ") + heading
        if len(row.sequences) > 1:
            heading.append(f" (sequence {found.sequence + 1} of {len(row.sequences)})")
        tokens = row.sequences[found.sequence].tokens
        yield heading
        yield Padding(_text(tokens, found), (0, 2))
        yield _bars(tokens, found)
        yield Padding(Text(_said(found), style="dim"), (0, 2, 1, 2))


def _text(tokens: tuple[Token, ...], found: Attribution) -> Text:
    """Write the tokens in their order, each with signs for how strong its score is."""
    text = Text()
    largest = _largest(found)
    for place, (token, score) in enumerate(zip(tokens, found.scores.tolist(), strict=True)):
        strength = sum(_part(score, largest) >= step for step in _STEPS)
        sign = (score > 0) - (score < 0) if strength else 0
        style = _STYLES[sign] + (" bold" if strength == len(_STEPS) else "")
        text.append(" " if place else "")
        text.append(_shown(token) + ("⁺" if sign > 0 else "⁻") * strength, style)
    return text


def _bars(tokens: tuple[Token, ...], found: Attribution) -> Table:
    largest = _largest(found)
    order = np.argsort(-np.abs(found.scores), kind="stable")[:_BARS]
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for name in ("token", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("-" + " " * (2 * _HALF - 1) + "+", no_wrap=True)
    for place in sorted(order.tolist()):
        score = float(found.scores[place])
        length = round(_HALF * _part(score, largest))
        left, right = ("█" * length, "") if score < 0 else ("", "█" * length)
        bar = Text(f"{left:>{_HALF}}|{right}", _STYLES[(score > 0) - (score < 0)])
        table.add_row(Text(_shown(tokens[place]), "dim" if tokens[place].special else ""), f"{score:+.4f}", bar)
    if len(tokens) > _BARS:
        table.caption = f"{_BARS} of {len(tokens)} tokens, those with the largest scores"
    return table


def _said(found: Attribution) -> str:
    error = found.completeness_error
    return f"completeness error {'not defined' if error is None else f'{error:.4f}'}; {found.note}"


def _largest(found: Attribution) -> float:
    scores = np.abs(found.scores[np.isfinite(found.scores)])
    return float(scores.max()) if len(scores) else 0.0


def _part(score: float, largest: float) -> float:
    """Return how large a score is as a part of the largest; 0 for one that is not a number."""
    return abs(score) / largest if largest and np.isfinite(score) else 0.0


def _shown(token: Token) -> str:
    return for_message(token.text, _TOKEN)
