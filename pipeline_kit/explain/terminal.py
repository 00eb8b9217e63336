"""A document for a terminal: the walk from text to result, readable at 80 columns."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline_kit.contract.stages import Panel
from pipeline_kit.errors import for_message
from pipeline_kit.explain import blocks as b
from pipeline_kit.explain.blocks import FULL, SHORT, Document, Limits, Section
from pipeline_kit.explain.compare import DIFFERS
from pipeline_kit.explain.document import document
from pipeline_kit.explain.formats import aligned, numbers, shape_of
from pipeline_kit.explain.trace import Trace

WIDTH = 80
"""Columns of plain text, which is as wide everywhere."""

_BAR, _LEAST_BAR = 20, 5
_LEAST_TEXT = 12
_CELL = 200
_LABELS = 6  # that have a column each; of more of them only the best is shown
_STEPS = (0.1, 0.4, 0.7)  # from which part of the largest score on a token has one, two and three signs
_STYLES = {"": "", "head": "bold underline", "note": "", "warn": "yellow", "fail": "red"}


def to_text(
    *traces: Trace, names: Sequence[str] = (), full: bool = False, times: bool = True, width: int = WIDTH
) -> str:
    """Return the walk as plain text, without colour and without blanks at the ends of lines."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, legacy_windows=False)
    print_document(console, *traces, names=names, full=full, times=times)
    return "\n".join(part.rstrip() for part in stream.getvalue().split("\n"))


def print_document(
    console: Console, *traces: Trace, names: Sequence[str] = (), full: bool = False, times: bool = True
) -> None:
    """Print the walk; of two traces the way through their stages, and where they part.

    :param names: what the pipelines are called.
    :param full: show all tokens and rows; else long ones lose their middle, with a count.
    :param times: show how long the stages took; without them the same run prints the same.
    """
    shown = document(*traces, names=names, limits=FULL if full else SHORT)
    draw = _Drawing(shown.limits, times)
    by_row = {"postprocessor", "result", *(name for trace in traces for row in trace.rows for name in row.views)}
    for heading, group in groupby(_sections(shown), key=_heading):
        given: list[b.Block] = []
        for section in group:
            if heading in by_row and len(shown.titles) > 1:
                given.append(b.Text(f"row {section.row}", kind="head"))
            given += section.blocks
        console.print(Rule(escaped(heading, style="bold"), align="left", style="dim"))
        for part in draw.parts(given):
            console.print(part)


def _sections(shown: Document) -> Iterator[Section]:
    """Return what there is room for; the config is what the command ``show`` prints."""
    if len(shown.sides) == 1:
        yield from shown.sides[0].sections
        return
    for side in shown.sides:
        yield replace(side.sections[0], heading=f"{side.mark}: {side.name}")
    yield from (section for section in shown.differences if section.row is not None)
    yield from (section for side in shown.sides for section in side.sections if section.heading == "notes")


def _heading(section: Section) -> str:
    return f"{section.heading} of row {section.row}" if section.heading == "text and tokens" else section.heading


def escaped(text: object, limit: int = 2000, style: str = "") -> Text:
    """Return a text without markup, control characters escaped, so that none of a user's reaches the terminal."""
    return Text(for_message(text if isinstance(text, str) else str(text), limit), style=style)


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2))


@dataclass(frozen=True)
class _Bar:
    """A bar that takes a share of its column, whose width depends on what stands beside it."""

    share: float
    style: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(_LEAST_BAR, _BAR)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("█" * round(min(_BAR, options.max_width) * self.share), style=self.style)


def _size(value: object) -> float:
    """Return how far a number is from zero; 0 for what is not a number that could be drawn."""
    drawn = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return abs(float(value)) if drawn else 0.0  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Drawing:
    limits: Limits
    times: bool

    def parts(self, given: Sequence[b.Block]) -> list[RenderableType]:
        """Draw blocks in their order; those of one tensor, or of attention, become one table."""
        together: dict[Any, list[Any]] = {}
        for place, block in enumerate(given):
            key = block.name if isinstance(block, b.Values) else type(block)
            joined = isinstance(block, b.Values | b.Attention)
            together.setdefault(key if joined else place, []).append(block)
        return [part for group in together.values() for part in getattr(self, type(group[0]).__name__.lower())(*group)]

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], what: str = "rows") -> RenderableType:
        """Draw a table; columns of numbers stand to the right, a long one loses its middle.

        Cells may be :class:`~rich.text.Text`, strings or numbers.
        """
        drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        head, tail = self.limits.rows
        gone = len(rows) - head - tail if len(rows) > head + tail + 4 else 0
        shown = [[*map(_cell, row)] for row in ((*rows[:head], *rows[-tail:]) if gone else rows)]
        for place, name in enumerate(columns):
            cells = [row[place] for row in rows if row[place] is not None]
            numeric = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
            widest = max((cell.cell_len for row in shown if isinstance(cell := row[place], Text)), default=0)
            # A number is never broken; a heading above it may be.
            least = widest if numeric else min(widest, _LEAST_TEXT)
            side: Literal["left", "right"] = "right" if numeric else "left"
            drawn.add_column(escaped(name, 80), justify=side, overflow="fold", min_width=least)
        for at, row in enumerate(shown):
            if gone and at == head:
                # In the first column of text, where it does not make the table wider.
                place = next((i for i, cell in enumerate(rows[0]) if not isinstance(cell, int | float)), 0)
                drawn.add_row(*(f"… {gone:,} more {what}" if i == place else "" for i in range(len(row))), style="dim")
            drawn.add_row(*row)
        return _indented(drawn)

    def panel(self, panel: Panel) -> Iterator[RenderableType]:
        """Draw what a stage shows: its heading, formula, table with bars, and note."""
        if panel.title:
            yield escaped(panel.title, _CELL, "bold")
        if panel.formula:
            yield from (_indented(escaped(part, 1000)) for part in panel.formula.split("\n"))
        if panel.columns and panel.rows:
            rows: list[Sequence[Any]] = list(panel.rows)
            columns = list(panel.columns)
            if panel.bar in columns:
                place = columns.index(panel.bar)
                largest = max(_size(row[place]) for row in rows) or 1.0
                rows = [[*row, _bar(row[place], largest)] for row in rows]
                columns.append("")
            yield self.table(columns, rows)
        if panel.note:
            yield _indented(escaped(panel.note, 1000, "dim"))

    def text(self, block: b.Text) -> Iterator[RenderableType]:
        limit = 1000 if block.kind else self.limits.characters
        shown = escaped(block.text, limit, _STYLES[block.kind])
        if len(block.text) > limit:
            shown.append(f" ({len(block.text):,} characters)", style="dim")
        yield Text.assemble((f"{for_message(block.label, 80)}: ", "bold"), shown) if block.label else shown

    def flow(self, block: b.Flow) -> Iterator[RenderableType]:
        """Draw the way through the stages: which they are, what they take and return, how long they took."""
        yield escaped(block.words, 400)
        rows = [
            [escaped(stage.kind, 60, "bold"), stage.name, *passes, f"{stage.seconds * 1000:,.1f} ms"]
            for stage, passes in zip(block.stages, block.passes, strict=True)
        ]
        columns = ("", "stage", "takes", "gives", "time")
        yield self.table(columns, rows) if self.times else self.table(columns[:-1], [row[:-1] for row in rows])

    def tokentable(self, block: b.TokenTable) -> Iterator[RenderableType]:
        """Draw the tokens of one sequence, and what is in no sequence."""
        yield escaped(block.title, _CELL, "bold")
        at, kinds = block.columns.index("token"), block.column("kind")
        rows = [
            [escaped(cell, 60, "magenta" if kind else "cyan") if i == at else cell for i, cell in enumerate(row)]
            for row, kind in zip(block.rows, kinds, strict=True)
        ]
        yield self.table(block.columns, rows, "tokens")
        if block.cut:
            yield from map(_indented, self.text(b.Text(block.lost or "", f"cut off: {block.cut}")))

    def grid(self, block: b.Grid) -> Iterator[RenderableType]:
        """Draw a batch's ids, mask and segment ids as they went to the model; padding is dim and in brackets."""
        yield Text(block.title, style="bold")
        width, most = block.ids.shape[1], self.limits.columns
        kept = list(range(width)) if width <= most + 4 else [*range(most - 4), *range(width - 4, width)]
        rows: list[list[Any]] = []
        for row, (name, _, _) in enumerate(block.sequences):
            rows.append([name, "ids", _ids(block.ids[row], block.mask[row], kept)])
            rows.append(["", "mask", _flags(block.mask[row], kept)])
            if block.types is not None:
                rows.append(["", "types", _flags(block.types[row], kept)])
        yield self.table(("sequence", "", f"{width} tokens"), rows)

    def norms(self, block: b.Norms) -> Iterator[RenderableType]:
        """Draw nothing: the table of layers sums them up."""
        return iter(())

    def attention(self, *given: b.Attention) -> Iterator[RenderableType]:
        """Draw for each layer what the first token of each sequence attends to most, all heads together."""
        rows: list[list[Any]] = []
        for name in dict.fromkeys(name for block in given for name in block.maps):
            for block in given:
                weights, columns = block.maps[name], block.columns
                first = 0 if columns is None or weights.shape[1] <= columns.max() else int(columns[0])
                mean = weights.mean(axis=0)[first]
                mean = mean if columns is None or len(mean) <= columns.max() else mean[columns]
                best = np.argsort(-mean, kind="stable")[:3] if len(mean) == len(block.tokens) else ()
                most = ", ".join(f"{for_message(block.tokens[i], 20)} {mean[i]:.2f}" for i in best)
                rows.append([name, block.sequence, shape_of(weights.shape), most])
        yield Text("attention, mean of all heads", style="bold")
        yield self.table(("attention", "sequence", "shape", "the first token attends most to"), rows)

    def values(self, *given: b.Values) -> Iterator[RenderableType]:
        """Draw a tensor, sequence by sequence; with label names where it has one number for each of them."""
        first = given[0]
        shapes = {shape_of(block.values.shape) for block in given}
        origin = "" if first.origin == "model" else f", {first.origin}"
        shape = shapes.pop() if len(shapes) == 1 else "of each sequence"
        yield escaped(f"{first.name} {shape} {first.values.dtype}{origin}", _CELL, "bold")
        if first.labels and first.tokens and first.values.ndim == 2:
            for block in given:
                scores = list(zip(block.tokens, block.values, strict=True))
                yield self._scores(f"token of {block.sequence}", scores, block.labels)
        elif first.labels and first.values.ndim == 1:
            yield self._scores("sequence", [(block.sequence, block.values) for block in given], first.labels)
        else:
            yield self.table(
                ("sequence", "first numbers"), [[block.sequence, numbers(block.values, 8)] for block in given]
            )

    def _scores(self, first: str, named: Sequence[tuple[str, Any]], labels: Sequence[str]) -> RenderableType:
        if len(labels) <= _LABELS:
            return self.table((first, *labels), [[name, *map(float, scores)] for name, scores in named])
        best = [(name, int(scores.argmax()), scores) for name, scores in named]
        rows = [[name, labels[place], float(scores[place])] for name, place, scores in best]
        return self.table((first, f"best of {len(labels)} labels", "its number"), rows)

    def marked(self, block: b.Marked) -> Iterator[RenderableType]:
        """Draw a text with its labels in brackets; parts with scores have signs for how strong those are."""
        if block.title:
            yield escaped(block.title, _CELL, "bold")
        largest = max(map(_size, block.scores), default=0.0) or 1.0
        text, most = Text(), self.limits.characters // 4
        for piece, mark in block.pieces:
            if mark is None:
                gone, half = len(piece) - most, most // 2
                shown = piece if gone <= 0 else f"{piece[:half]} … {gone:,} more … {piece[-half:]}"
                shown = shown if shown == "\n" else escaped(shown, 10_000).plain
                text.append(shown, "dim" if block.scores else "")
            elif isinstance(mark, str):
                text.append(escaped(f"[{piece} {mark}]", _CELL).plain, "bold cyan")
            else:
                strength = sum(_size(mark) / largest >= step for step in _STEPS)
                sign, colour = ("⁻", "red") if mark < 0 else ("⁺", "green")
                style = f"{colour}{' bold' if strength == len(_STEPS) else ''}" if strength else "dim"
                text.append(escaped(piece, 24).plain + sign * strength, style)
        yield Padding(text, (0, 2))

    def result(self, block: b.Result) -> Iterator[RenderableType]:
        yield _indented(escaped(json.dumps(block.value, ensure_ascii=False, default=str), self.limits.json))


def _cell(value: Any) -> RenderableType:
    if isinstance(value, Text | _Bar):
        return value
    return escaped(aligned(value), _CELL, "bold yellow" if value == DIFFERS else "")


def _bar(value: Any, largest: float) -> _Bar:
    size = _size(value)
    return _Bar(size / largest, "red" if size and value < 0 else "green")


def _ids(ids: Any, mask: Any, kept: Sequence[int]) -> Text:
    shown, last = Text(), -1
    for place in kept:
        if place:
            shown.append(" " if place == last + 1 else f" … {place - last - 1} more … ")
        shown.append(f"{ids[place]}" if mask[place] else f"[{ids[place]}]", style="" if mask[place] else "dim")
        last = place
    return shown


def _flags(values: Any, kept: Sequence[int]) -> Text:
    gaps = zip(kept, [-1, *kept], strict=False)
    return Text("".join(f"{'' if place == last + 1 else ' … '}{values[place]}" for place, last in gaps))
