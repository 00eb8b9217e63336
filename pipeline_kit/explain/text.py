"""A trace for a terminal: the walk from text to result, readable at 80 columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline_kit.errors import shorten
from pipeline_kit.explain.text_batches import draw_grid, draw_model, draw_outputs, same_arrays
from pipeline_kit.explain.text_parts import WIDTH, Section, as_text, draw_panel, indented, line, safe
from pipeline_kit.explain.text_tokens import draw_example, draw_sequence, name_of
from pipeline_kit.explain.trace import RowTrace, StageTrace, Trace, Value

__all__ = ["draw_flow", "sections", "to_text"]

_SEQUENCES, _PANELS = 4, 8
"""Of one example that are shown, unless all of it is asked for."""


def to_text(trace: Trace, *, width: int = WIDTH, full: bool = False, times: bool = True) -> str:
    """Give the walk as plain text, see :func:`sections`."""
    return as_text(sections(trace, full=full, times=times), width)


def sections(trace: Trace, *, full: bool = False, times: bool = True) -> list[Section]:
    """Give the parts of the walk in their order.

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
        found.append(Section("notes", [safe(note, 1000) for note in trace.notes]))
    return [section for section in found if section.parts]


def draw_flow(trace: Trace, times: bool = True) -> list[RenderableType]:
    """Draw the way through the stages: which they are, what they take and give, how long they took."""
    flow = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    names = ("", "stage", "takes", "gives", "time") if times else ("", "stage", "takes", "gives")
    for name in names:
        flow.add_column(name, overflow="fold", justify="right" if name == "time" else "left", no_wrap=name == "time")
    for stage in trace.stages:
        cells = [Text(stage.kind, style="bold"), safe(stage.name, 60), *_passes(stage)]
        flow.add_row(*cells, *([f"{stage.seconds * 1000:,.1f} ms"] if times else []))
    checkpoint, device = (trace.config.get(name) for name in ("checkpoint", "device"))
    words = [trace.task or "pipeline"]
    words += [f"with {checkpoint['name']}"] if isinstance(checkpoint, dict) else []
    words += [f"on {device['name']} in {device['dtype']}"] if isinstance(device, dict) else []
    return [safe(" ".join(words), 400), flow]


def _passes(stage: StageTrace) -> tuple[Text, Text]:
    given, gave = stage.inputs, stage.outputs
    if stage.kind == "tokenizer":
        gave = gave[:1]
    if stage.kind == "postprocessor":
        given = tuple(value for value in given if value.name not in ("examples", "encodings")) or given[:1]
    return _described(given), _described(gave)


def _described(values: Sequence[Value]) -> Text:
    """Give the first value with its type and shape, of the others the names."""
    if not values:
        return Text("nothing")
    first, rest = values[0], [shorten(value.name, 24) for value in values[1:] if value.shape]
    shape = f" [{', '.join(map(str, first.shape))}]" if first.shape else ""
    kind = f"{first.dtype or first.type}{shape}"
    if first.type.startswith("list of "):
        kind = f"{first.shape[0]} {first.type.removeprefix('list of ')}"
    return Text(", ".join([f"{shorten(first.name, 24)}: {kind}", *rest]))


def _row(trace: Trace, number: int, full: bool) -> list[RenderableType]:
    row = trace.rows[number]
    found = draw_example(row.example, full)
    shown = row.sequences if full else row.sequences[:_SEQUENCES]
    for sequence in shown:
        found += draw_sequence(name_of(number, sequence, row), sequence, full)
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
    drawn = import_module("pipeline_kit.explain.attribution_text").draw(trace)
    return list(drawn) if isinstance(drawn, list | tuple) else [drawn]


def _results(rows: Sequence[RowTrace], full: bool) -> list[RenderableType]:
    found: list[RenderableType] = []
    for number, row in enumerate(rows):
        if row.failure is not None:
            failure = row.failure
            told = f"row {number} failed in the stage {failure.stage}: {failure.error}: {failure.message}"
            found.append(Text(shorten(told, 1000), style="red"))
        else:
            text = json.dumps(row.result, ensure_ascii=False, default=str)
            found += [line(f"row {number}", "bold"), indented(safe(text, 1_000_000 if full else 600))]
    return found
