"""The terminal's view of two pipelines on the same texts, with what differs marked by ``≠``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from pipeline_kit.errors import shorten
from pipeline_kit.explain.differences import apart, padding_of, result_differences, token_pairs
from pipeline_kit.explain.text import draw_flow
from pipeline_kit.explain.text_parts import Section, indented, line, number, safe, table
from pipeline_kit.explain.text_tokens import draw_example
from pipeline_kit.explain.trace import RowTrace, SequenceTrace, Token, Trace

__all__ = ["compare"]

_NUMBERS = 12
"""Numbers of a tensor's row that are set side by side."""


def compare(
    first: Trace, second: Trace, names: tuple[str, str], *, full: bool = False, times: bool = True
) -> list[Section]:
    """Give the parts of the comparison in their order.

    :param names: what the two pipelines are called.
    """
    found = [
        Section(f"{mark}: {shorten(name, 200)}", draw_flow(trace, times))
        for mark, name, trace in zip("AB", names, (first, second), strict=True)
    ]
    for place, (left, right) in enumerate(zip(first.rows, second.rows, strict=True)):
        parts = draw_example(left.example, full)
        for index in range(max(len(left.sequences), len(right.sequences))):
            parts += _sequence(first, second, place, index, full)
        parts += _result(left, right, full)
        found.append(Section(f"row {place}", parts))
    sides = zip("AB", (first, second), strict=True)
    notes = [safe(f"{mark}: {note}", 1000) for mark, trace in sides for note in trace.notes]
    return [*found, Section("notes", notes)] if notes else found


def _sequence(first: Trace, second: Trace, row: int, index: int, full: bool) -> list[RenderableType]:
    left, right = (_at(trace.rows[row], index) for trace in (first, second))
    pairs = token_pairs(left, right)
    different = sum(not pair.same for pair in pairs)
    counts = " and ".join(str(len(side.tokens)) if side is not None else "no" for side in (left, right))
    head = f"sequence {index}: {counts} tokens, " + (f"{different} lines differ" if different else "all the same")
    found: list[RenderableType] = [line(head, "bold")]
    rows = [[_mark(not pair.same), *_cells(pair.first), *_cells(pair.second)] for pair in pairs]
    if full or different:
        found.append(indented(table(("", "id A", "token A", "id B", "token B"), rows, full, what="lines")))
    padded = [padding_of(trace, row, index) for trace in (first, second)]
    cut = [side.truncated if side is not None else None for side in (left, right)]
    facts = [[_mark(padded[0] != padded[1]), "batch", *padded]]
    if any(cut):
        facts.append([_mark(cut[0] != cut[1]), "tokens cut off", *map(number, cut)])
    found.append(indented(table(("", "", "A", "B"), facts, True)))
    return found + _outputs(first, second, row, index)


def _at(row: RowTrace, index: int) -> SequenceTrace | None:
    return row.sequences[index] if index < len(row.sequences) else None


def _mark(differs: bool) -> Text:
    return Text("≠", style="bold yellow") if differs else Text(" ")


def _cells(token: Token | None) -> tuple[Any, Any]:
    if token is None:
        return None, Text("")
    return token.id, Text(shorten(token.text, 40), style="magenta" if token.special else "cyan")


def _outputs(first: Trace, second: Trace, row: int, index: int) -> list[RenderableType]:
    """Set what the model gave for a sequence side by side, one number for each label or one table cell."""
    left, right = (_given(trace, row, index) for trace in (first, second))
    found: list[RenderableType] = []
    for name in dict.fromkeys([*left, *right]):
        here, there = left.get(name), right.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = [None if side is None else str(list(side.shape)) for side in (here, there)]
            found.append(indented(table(("", name, "A", "B"), [[_mark(True), "shape", *shapes]], True)))
            continue
        found.append(indented(table(("", name, "A", "B", "B - A"), _numbers(first, second, here, there), True)))
    return found


def _given(trace: Trace, row: int, index: int) -> Mapping[str, np.ndarray[Any, Any]]:
    """Give the model's tensors of one sequence, padding taken off."""
    places = trace.rows[row].places
    batch_number, place = places[index] if index < len(places) else (-1, -1)
    if batch_number < 0:
        return {}
    batch = trace.batches[batch_number]
    kept = batch.attention_mask[place] == 1
    return {name: v[place][kept] if name in batch.per_token else v[place] for name, v in batch.outputs.items()}


def _numbers(first: Trace, second: Trace, here: np.ndarray[Any, Any], there: np.ndarray[Any, Any]) -> list[list[Any]]:
    labels = first.labels if here.shape == (len(first.labels),) else ()
    others = second.labels if labels and len(second.labels) == len(labels) else labels
    flat, beside = here.reshape(-1), there.reshape(-1)
    if flat.size > _NUMBERS:
        most = float(np.abs(flat.astype(np.float64) - beside.astype(np.float64)).max())
        return [[_mark(apart(most, 0.0)), f"{flat.size:,} numbers", None, None, f"at most {number(most)}"]]
    rows = []
    for place, (one, other) in enumerate(zip(flat.tolist(), beside.tolist(), strict=True)):
        name = str(place)
        if labels:
            name = labels[place] if labels[place] == others[place] else f"{labels[place]} | {others[place]}"
        rows.append([_mark(apart(one, other)), shorten(name, 60), one, other, other - one])
    return rows


def _result(left: RowTrace, right: RowTrace, full: bool) -> list[RenderableType]:
    limit = 1_000_000 if full else 200
    rows = [
        [_mark(apart(one, other)), shorten(key, 40), safe(_shown(one), limit), safe(_shown(other), limit)]
        for key, one, other in result_differences(left, right)
    ]
    return [line("result", "bold"), indented(table(("", "key", "A", "B"), rows, full))]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return number(value) if value is None or isinstance(value, float) else str(value)
