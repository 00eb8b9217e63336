"""A padded batch as a grid, and one row of it without its padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_kit.explain.html_text import excerpt, seconds, visible
from pipeline_kit.explain.trace import BatchTrace, SequenceTrace, Trace
from pipeline_kit.panels import Panel

__all__ = ["CELLS", "BatchView", "GridCell", "GridRow", "batch_views", "columns_of", "spelled"]

Array = np.ndarray[Any, Any]

CELLS = 12_000
"""So many cells of grids a page draws in all."""


@dataclass(frozen=True, slots=True)
class GridCell:
    """One place of a batch as the model got it."""

    token: str
    id: int
    mask: int
    type: int | None


@dataclass(frozen=True, slots=True)
class GridRow:
    """A row of a batch; `number` is its example's, counted from 1."""

    name: str
    number: int
    cells: tuple[GridCell, ...]


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch; `rows` is cut where the page has no more room, which `note` says."""

    number: int
    shape: str
    padding: str
    seconds: str
    types: bool
    rows: tuple[GridRow, ...]
    panels: tuple[Panel, ...]
    outputs: tuple[tuple[str, str, str], ...]
    note: str


def columns_of(batch: BatchTrace, row: int) -> Array:
    """Give the columns of `batch` that hold tokens in `row`, ascending."""
    return np.flatnonzero(batch.attention_mask[row])


def spelled(sequence: SequenceTrace) -> tuple[str, ...]:
    """Give the tokens as a page shows them."""
    return tuple(visible(token.text) for token in sequence.tokens)


def batch_views(trace: Trace, room: int = CELLS) -> tuple[BatchView, ...]:
    """Draw all batches, the first rows of each until `room` cells are spent."""
    views = []
    for place, batch in enumerate(trace.batches):
        count, width = batch.input_ids.shape
        fit = min(count, room // max(1, width))
        room -= fit * width
        rows = tuple(_row(trace, batch, row) for row in range(fit))
        tokens = int(batch.attention_mask.sum())
        empty = count * width - tokens
        views.append(
            BatchView(
                number=place + 1,
                shape=f"{count} by {width}",
                padding=_padding(empty, count * width, batch.side),
                seconds=seconds(batch.seconds),
                types=batch.token_type_ids is not None,
                rows=rows,
                panels=tuple(batch.panels),
                outputs=tuple((name, _shape(values), str(values.dtype)) for name, values in batch.outputs.items()),
                note=f"{count - fit} of {count} rows are left out: the page has no room for them."
                if fit < count
                else "",
            )
        )
    return tuple(views)


def _padding(empty: int, places: int, side: str) -> str:
    if not empty:
        return "No padding."
    return f"{empty} of {places} places are padding, {100 * empty / places:.1f} %, on the {side}."


def _shape(values: Array) -> str:
    return "[" + ", ".join(map(str, values.shape)) + "]"


def _row(trace: Trace, batch: BatchTrace, row: int) -> GridRow:
    example, place = batch.rows[row]
    sequence = _sequence(trace, example, place)
    tokens = dict(zip(columns_of(batch, row).tolist(), spelled(sequence) if sequence else (), strict=False))
    types = batch.token_type_ids
    cells = tuple(
        GridCell(
            tokens.get(column, ""),
            int(batch.input_ids[row, column]),
            int(batch.attention_mask[row, column]),
            None if types is None else int(types[row, column]),
        )
        for column in range(batch.input_ids.shape[1])
    )
    name = excerpt(" · ".join(sequence.source), 40) or "(empty)" if sequence else f"example {example + 1}"
    if sequence and sequence.window:
        name += f" (window {sequence.window + 1})"
    return GridRow(name, example + 1, cells)


def _sequence(trace: Trace, example: int, place: int) -> SequenceTrace | None:
    sequences = trace.rows[example].sequences if 0 <= example < len(trace.rows) else ()
    return sequences[place] if 0 <= place < len(sequences) else None
