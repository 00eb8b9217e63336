"""Small parts of the terminal's view: safe text, tables, bars, panels."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline_kit.errors import shorten
from pipeline_kit.panels import Panel

__all__ = [
    "HEAD",
    "TAIL",
    "WIDTH",
    "Section",
    "as_text",
    "draw_panel",
    "indented",
    "line",
    "number",
    "print_sections",
    "safe",
    "table",
]

T = TypeVar("T")
HEAD, TAIL = 24, 6
"""Rows of a long table that are shown at its beginning and its end."""

WIDTH = 80
"""Columns of plain text, which is as wide everywhere."""

_BAR, _LEAST_BAR = 20, 5
_LEAST_TEXT = 12
_TEXT = 2000


@dataclass(frozen=True)
class Section:
    """A part of a view under a heading of its own."""

    heading: str
    parts: Sequence[RenderableType]


def print_sections(sections: Sequence[Section], console: Console) -> None:
    """Print the parts of a view, each under its heading."""
    for section in sections:
        console.print(Rule(Text(section.heading, style="bold"), align="left", style="dim"))
        for part in section.parts:
            console.print(part)


def as_text(sections: Sequence[Section], width: int = WIDTH) -> str:
    """Give the parts of a view as plain text, without colour and without blanks at the ends of lines."""
    stream = io.StringIO()
    print_sections(sections, Console(file=stream, width=width, color_system=None, legacy_windows=False))
    return "\n".join(part.rstrip() for part in stream.getvalue().split("\n"))


def safe(text: object, limit: int = _TEXT) -> Text:
    """Give a text without markup, control characters escaped, so that none of a user's reaches the terminal."""
    return Text(shorten(text if isinstance(text, str) else str(text), limit))


def line(text: str, style: str = "") -> Text:
    """Give a line of our own words; what a user wrote must have gone through :func:`safe` or ``shorten``."""
    return Text(text, style=style)


def indented(part: RenderableType) -> Padding:
    """Move a part in by two columns."""
    return Padding(part, (0, 0, 0, 2))


def number(value: Any) -> str:
    """Give a cell; floats with four digits behind the point."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.1e}"
    return shorten(value if isinstance(value, str) else str(value), 200)


def _abbreviated(items: Sequence[T], full: bool) -> tuple[Sequence[T], Sequence[T], int]:
    """Give the first and the last of a long list, and how many are left out between them."""
    if full or len(items) <= HEAD + TAIL + 4:
        return items, (), 0
    return items[:HEAD], items[-TAIL:], len(items) - HEAD - TAIL


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], full: bool, *, what: str = "rows") -> Table:
    """Draw a table; columns of numbers stand to the right, a long one loses its middle unless `full`.

    Cells may be :class:`~rich.text.Text`, strings or numbers.
    """
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    head, tail, gone = _abbreviated(rows, full)
    for place, name in enumerate(columns):
        cells = [row[place] for row in rows if row[place] is not None]
        numbers = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
        widest = max((_width(cell) for cell in cells), default=0)
        # A number is never broken; a heading above it may be.
        least = widest if numbers else min(widest, _LEAST_TEXT)
        side: Literal["left", "right"] = "right" if numbers else "left"
        drawn.add_column(safe(name, 80), justify=side, overflow="fold", min_width=least)
    for row in head:
        drawn.add_row(*map(_cell, row))
    if gone:
        # In the widest column of text, where it does not make the table wider.
        place = next((i for i, row in enumerate(zip(*head, strict=True)) if not isinstance(row[0], int | float)), 0)
        drawn.add_row(*(f"… {gone:,} more {what}" if i == place else "" for i in range(len(columns))), style="dim")
    for row in tail:
        drawn.add_row(*map(_cell, row))
    return drawn


def _width(cell: Any) -> int:
    return 0 if isinstance(cell, _Bar) else cell.cell_len if isinstance(cell, Text) else len(number(cell))


def _cell(value: Any) -> RenderableType:
    return value if isinstance(value, Text | _Bar) else Text(number(value))


def draw_panel(panel: Panel, full: bool) -> list[RenderableType]:
    """Draw what a stage tells: its heading, formula, table with bars, and note."""
    found: list[RenderableType] = [Text(shorten(panel.title, 200), style="bold")]
    if panel.formula:
        found += [indented(safe(part, 1000)) for part in panel.formula.split("\n")]
    if panel.columns and panel.rows:
        rows: list[list[Any]] = [[safe(c, 200) if isinstance(c, str) else c for c in row] for row in panel.rows]
        columns = list(panel.columns)
        if panel.bar in columns:
            place = columns.index(panel.bar)
            largest = max((size for row in panel.rows if (size := _size(row[place])) is not None), default=0.0) or 1.0
            rows = [[*row, _bar(row[place], largest)] for row in rows]
            columns.append("")
        found.append(indented(table(columns, rows, full)))
    if panel.note:
        found.append(indented(Text(shorten(panel.note, 1000), style="dim")))
    return found


def _size(value: object) -> float | None:
    """Give how far a number is from zero; None for what is no number that could be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return abs(float(value))


@dataclass(frozen=True)
class _Bar:
    """A bar that takes a share of its column, whose width depends on what stands beside it."""

    share: float
    style: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        del console, options
        return Measurement(_LEAST_BAR, _BAR)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        yield Text("█" * round(min(_BAR, options.max_width) * self.share), style=self.style)


def _bar(value: Any, largest: float) -> _Bar:
    size = _size(value) or 0.0
    return _Bar(size / largest, "red" if size and value < 0 else "green")
