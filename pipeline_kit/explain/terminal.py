"""A trace for a terminal: the walk from text to result, readable at 80 columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline_kit.errors import for_message
from pipeline_kit.explain.differences import apart, padding_of, result_differences, token_pairs
from pipeline_kit.explain.terminal_batches import draw_grid, draw_model, draw_outputs, same_arrays
from pipeline_kit.explain.terminal_parts import (
    WIDTH,
    Section,
    as_text,
    draw_example,
    draw_panel,
    draw_sequence,
    escaped,
    format_number,
    indented,
    line,
    table,
    token_name,
)
from pipeline_kit.explain.trace import RowTrace, SequenceTrace, StageTrace, Token, Trace, Value

_SEQUENCES, _PANELS = 4, 8
"""Of one example that are shown, unless all of it is asked for."""


def to_text(trace: Trace, *, width: int = WIDTH, full: bool = False, times: bool = True) -> str:
    """Return the walk as plain text, see :func:`sections`."""
    return as_text(sections(trace, full=full, times=times), width)


def sections(trace: Trace, *, full: bool = False, times: bool = True) -> list[Section]:
    """Return the parts of the walk in their order.

    :param full: show all tokens and rows; else long ones lose their middle, with a count.
    :param times: show how long the stages took; without them the same run prints the same.
    """
    found = [Section("pipeline", draw_flow(trace, times))]
    for number in range(len(trace.rows)):
        found.append(Section(f"text and tokens of row {number}", _row(trace, number, full)))
    batches = range(len(trace.batches))
    if batches:
        found.append(Section("batch", [part for number in batches for part in draw_grid(trace, number, full)]))
        found.append(Section("model", [part for number in batches for part in draw_model(trace, number, full)]))
    found.append(Section("postprocessor", _postprocessor(trace, full)))
    attributions = _attributions(trace)
    if attributions:
        found.append(Section("attribution", attributions))
    found.append(Section("result", _results(trace.rows, full)))
    if trace.notes:
        found.append(Section("notes", [escaped(note, 1000) for note in trace.notes]))
    return [section for section in found if section.parts]


def draw_flow(trace: Trace, times: bool = True) -> list[RenderableType]:
    """Draw the way through the stages: which they are, what they take and give, how long they took."""
    flow = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    names = ("", "stage", "takes", "gives", "time") if times else ("", "stage", "takes", "gives")
    for name in names:
        flow.add_column(name, overflow="fold", justify="right" if name == "time" else "left", no_wrap=name == "time")
    for stage in trace.stages:
        cells = [Text(stage.kind, style="bold"), escaped(stage.name, 60), *_passes(stage)]
        flow.add_row(*cells, *([f"{stage.seconds * 1000:,.1f} ms"] if times else []))
    checkpoint, device = (trace.config.get(name) for name in ("checkpoint", "device"))
    words = [trace.task or "pipeline"]
    words += [f"with {checkpoint['name']}"] if isinstance(checkpoint, dict) else []
    words += [f"on {device['name']} in {device['dtype']}"] if isinstance(device, dict) else []
    return [escaped(" ".join(words), 400), flow]


def _passes(stage: StageTrace) -> tuple[Text, Text]:
    given, gave = stage.inputs, stage.outputs
    if stage.kind == "tokenizer":
        gave = gave[:1]
    if stage.kind == "postprocessor":
        given = tuple(value for value in given if value.name not in ("examples", "encodings")) or given[:1]
    return _described(given), _described(gave)


def _described(values: Sequence[Value]) -> Text:
    """Return the first value with its type and shape, of the others the names."""
    if not values:
        return Text("nothing")
    first, rest = values[0], [for_message(value.name, 24) for value in values[1:] if value.shape]
    shape = f" [{', '.join(map(str, first.shape))}]" if first.shape else ""
    kind = f"{first.dtype or first.type}{shape}"
    if first.type.startswith("list of "):
        kind = f"{first.shape[0]} {first.type.removeprefix('list of ')}"
    return Text(", ".join([f"{for_message(first.name, 24)}: {kind}", *rest]))


def _row(trace: Trace, number: int, full: bool) -> list[RenderableType]:
    row = trace.rows[number]
    found = draw_example(row.example, full)
    shown = row.sequences if full else row.sequences[:_SEQUENCES]
    for sequence in shown:
        found += draw_sequence(token_name(number, sequence, row), sequence, full)
    if len(shown) < len(row.sequences):
        found.append(line(f"… {len(row.sequences) - len(shown)} more sequences", "dim"))
    panels = row.panels.get("tokenizer", ())
    for panel in panels if full else panels[:_PANELS]:
        found += draw_panel(panel, full)
    if len(panels) > _PANELS and not full:
        found.append(line(f"… {len(panels) - _PANELS} more panels", "dim"))
    return found


def _postprocessor(trace: Trace, full: bool) -> list[RenderableType]:
    found: list[RenderableType] = []
    for number, row in enumerate(trace.rows):
        panels = row.panels.get("postprocessor", ())
        if panels and len(trace.rows) > 1:
            found.append(line(f"row {number}", "bold underline"))
        for panel in panels:
            found += draw_panel(panel, full)
    if not any(row.panels.get("postprocessor") for row in trace.rows):
        for batch in trace.batches:
            if not same_arrays(batch.outputs, batch.reduced):
                for name, values in batch.reduced.items():
                    found += draw_outputs(trace, batch, name, values, full)
    return found


def _attributions(trace: Trace) -> list[RenderableType]:
    if not any(row.attributions for row in trace.rows):
        return []
    drawn = import_module("pipeline_kit.explain.terminal_batches").draw_attribution(trace)
    return list(drawn) if isinstance(drawn, list | tuple) else [drawn]


def _results(rows: Sequence[RowTrace], full: bool) -> list[RenderableType]:
    found: list[RenderableType] = []
    for number, row in enumerate(rows):
        if row.failure is not None:
            failure = row.failure
            told = f"row {number} failed in the stage {failure.stage}: {failure.error}: {failure.message}"
            found.append(Text(for_message(told, 1000), style="red"))
        else:
            text = json.dumps(row.result, ensure_ascii=False, default=str)
            found += [line(f"row {number}", "bold"), indented(escaped(text, 1_000_000 if full else 600))]
    return found


_NUMBERS = 12
"""Numbers of a tensor's row that are set side by side."""


def draw_comparison(
    first: Trace, second: Trace, names: tuple[str, str], *, full: bool = False, times: bool = True
) -> list[Section]:
    """Return the parts of the comparison in their order.

    :param names: what the two pipelines are called.
    """
    found = [
        Section(f"{mark}: {for_message(name, 200)}", draw_flow(trace, times))
        for mark, name, trace in zip("AB", names, (first, second), strict=True)
    ]
    for place, (left, right) in enumerate(zip(first.rows, second.rows, strict=True)):
        parts = draw_example(left.example, full)
        for index in range(max(len(left.sequences), len(right.sequences))):
            parts += _sequence(first, second, place, index, full)
        parts += _result(left, right, full)
        found.append(Section(f"row {place}", parts))
    sides = zip("AB", (first, second), strict=True)
    notes = [escaped(f"{mark}: {note}", 1000) for mark, trace in sides for note in trace.notes]
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
        facts.append([_mark(cut[0] != cut[1]), "tokens cut off", *map(format_number, cut)])
    found.append(indented(table(("", "", "A", "B"), facts, True)))
    return found + _outputs(first, second, row, index)


def _at(row: RowTrace, index: int) -> SequenceTrace | None:
    return row.sequences[index] if index < len(row.sequences) else None


def _mark(differs: bool) -> Text:
    return Text("≠", style="bold yellow") if differs else Text(" ")


def _cells(token: Token | None) -> tuple[Any, Any]:
    if token is None:
        return None, Text("")
    return token.id, Text(for_message(token.text, 40), style="magenta" if token.special else "cyan")


def _outputs(first: Trace, second: Trace, row: int, index: int) -> list[RenderableType]:
    """Set what the model returned for a sequence side by side, one number for each label or one table cell."""
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
    """Return the model's tensors of one sequence, padding taken off."""
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
        return [[_mark(apart(most, 0.0)), f"{flat.size:,} numbers", None, None, f"at most {format_number(most)}"]]
    rows = []
    for place, (one, other) in enumerate(zip(flat.tolist(), beside.tolist(), strict=True)):
        name = str(place)
        if labels:
            name = labels[place] if labels[place] == others[place] else f"{labels[place]} | {others[place]}"
        rows.append([_mark(apart(one, other)), for_message(name, 60), one, other, other - one])
    return rows


def _result(left: RowTrace, right: RowTrace, full: bool) -> list[RenderableType]:
    limit = 1_000_000 if full else 200
    rows = [
        [_mark(apart(one, other)), for_message(key, 40), escaped(_shown(one), limit), escaped(_shown(other), limit)]
        for key, one, other in result_differences(left, right)
    ]
    return [line("result", "bold"), indented(table(("", "key", "A", "B"), rows, full))]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return format_number(value) if value is None or isinstance(value, float) else str(value)
