"""Attention of one sequence, small enough for a page: rounded, the least weights dropped, packed layer by layer."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_kit.contract.stages import Panel
from pipeline_kit.explain.html_charts import excerpt, html_number, seconds, visible
from pipeline_kit.explain.trace import BatchTrace, SequenceTrace, Trace

Array = np.ndarray[Any, Any]

WEIGHTS = 900_000
"""So many weights a page keeps in all, about three megabytes; one of 16 bits counts twice."""

_FINE = 150_000
_LEAST = 4


@dataclass(slots=True)
class TokenBudget:
    """How many weights the page may still take, and how many sequences ask for some."""

    sequences: int
    weights: int = WEIGHTS

    def take(self, lines: int, width: int, fine: bool) -> int:
        """Return how many weights each of `lines` lines may keep, 0 if that would be too few to be of use."""
        cost = 2 if fine else 1
        kept = min(width, self.weights // max(1, self.sequences) // max(1, lines) // cost)
        self.sequences -= 1
        if kept < min(_LEAST, width):
            return 0
        self.weights -= kept * lines * cost
        return kept


@dataclass(frozen=True, slots=True)
class AttentionView:
    """What the page's script draws; `data` is JSON text without ``<``, ``>`` and ``&``.

    :param layers: their names with the number of heads of each.
    """

    layers: tuple[tuple[str, int], ...]
    data: str
    note: str


def attention_view(
    maps: Mapping[str, Array], columns: Array | None, tokens: Sequence[str], room: TokenBudget
) -> AttentionView:
    """Pack the attention of one row of a batch.

    A weight ``w`` is kept as ``round(m * sqrt(w))`` with ``m`` 255, or 65535 where there are few: small weights
    keep their first digit. A layer is its heads' maps, one line a query, packed by zlib.

    :param maps: by layer, ``[heads, T, T]``, a query a line.
    :param columns: the places in ``T`` that hold tokens; None if lines are not the batch's columns.
    :param tokens: as shown, for the axes; numbers stand there where a map has another size.
    """
    cut = {name: _cut(values, columns) for name, values in maps.items()}
    lines = sum(values.shape[0] * values.shape[1] for values in cut.values())
    width = max((values.shape[2] for values in cut.values()), default=0)
    weights = sum(values.size for values in cut.values())
    fine = weights <= _FINE
    kept = room.take(lines, width, fine)
    if not kept:
        return AttentionView((), "", f"Left out: {html_number(weights)} weights are more than this page has room for.")
    share, packed = 0.0, []
    for name, values in cut.items():
        thin = _largest(values, kept)
        share += float(thin.sum()) / max(1e-9, float(values.sum())) / len(cut)
        packed.append({"name": name, "shape": values.shape, "data": _pack(thin, fine)})
    data = json.dumps({"bits": 16 if fine else 8, "tokens": list(tokens), "layers": packed})
    error = "0.00002" if fine else "0.004"
    note = f"Weights are rounded by up to {error}."
    if kept < width:
        note += f" Of each token's {width} weights the largest {kept} are here, {100 * share:.1f} % of the sum."
    return AttentionView(tuple((name, values.shape[0]) for name, values in cut.items()), _embed(data), note)


def _cut(values: Array, columns: Array | None) -> Array:
    values = np.nan_to_num(np.asarray(values, dtype=np.float32))
    if columns is None:
        return values
    if values.shape[1] > columns.max():
        values = values[:, columns]
    return values[:, :, columns] if values.shape[2] > columns.max() else values


def _largest(values: Array, kept: int) -> Array:
    if kept >= values.shape[-1]:
        return values
    places = np.argpartition(values, -kept, axis=-1)[..., -kept:]
    thin = np.zeros_like(values)
    np.put_along_axis(thin, places, np.take_along_axis(values, places, axis=-1), axis=-1)
    return thin


def _pack(values: Array, fine: bool) -> str:
    most, kind = (65535, "<u2") if fine else (255, "u1")
    whole = np.rint(most * np.sqrt(values.clip(0, 1))).astype(kind)
    return base64.b64encode(zlib.compress(whole.tobytes(), 9 if fine else 6)).decode("ascii")


def _embed(data: str) -> str:
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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
    """Return the columns of `batch` that hold tokens in `row`, ascending."""
    return np.flatnonzero(batch.attention_mask[row])


def spelled(sequence: SequenceTrace) -> tuple[str, ...]:
    """Return the tokens as a page shows them."""
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
