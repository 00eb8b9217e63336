"""Small parts of the terminal's view: safe text, tables, bars, panels."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline_kit.contract.stages import Panel
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import for_message
from pipeline_kit.explain.trace import RowTrace, SequenceTrace, Token

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
    """Return the parts of a view as plain text, without colour and without blanks at the ends of lines."""
    stream = io.StringIO()
    print_sections(sections, Console(file=stream, width=width, color_system=None, legacy_windows=False))
    return "\n".join(part.rstrip() for part in stream.getvalue().split("\n"))


def escaped(text: object, limit: int = _TEXT) -> Text:
    """Return a text without markup, control characters escaped, so that none of a user's reaches the terminal."""
    return Text(for_message(text if isinstance(text, str) else str(text), limit))


def line(text: str, style: str = "") -> Text:
    """Return a line of our own words; what a user wrote must have gone through :func:`safe` or ``shorten``."""
    return Text(text, style=style)


def indented(part: RenderableType) -> Padding:
    """Move a part in by two columns."""
    return Padding(part, (0, 0, 0, 2))


def format_number(value: Any) -> str:
    """Return a cell; floats with four digits behind the point."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.1e}"
    return for_message(value if isinstance(value, str) else str(value), 200)


def _abbreviated(items: Sequence[T], full: bool) -> tuple[Sequence[T], Sequence[T], int]:
    """Return the first and the last of a long list, and how many are left out between them."""
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
        drawn.add_column(escaped(name, 80), justify=side, overflow="fold", min_width=least)
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
    return 0 if isinstance(cell, _Bar) else cell.cell_len if isinstance(cell, Text) else len(format_number(cell))


def _cell(value: Any) -> RenderableType:
    return value if isinstance(value, Text | _Bar) else Text(format_number(value))


def draw_panel(panel: Panel, full: bool) -> list[RenderableType]:
    """Draw what a stage shows: its heading, formula, table with bars, and note."""
    found: list[RenderableType] = [Text(for_message(panel.title, 200), style="bold")]
    if panel.formula:
        found += [indented(escaped(part, 1000)) for part in panel.formula.split("\n")]
    if panel.columns and panel.rows:
        rows: list[list[Any]] = [[escaped(c, 200) if isinstance(c, str) else c for c in row] for row in panel.rows]
        columns = list(panel.columns)
        if panel.bar in columns:
            place = columns.index(panel.bar)
            largest = max((size for row in panel.rows if (size := _size(row[place])) is not None), default=0.0) or 1.0
            rows = [[*row, _bar(row[place], largest)] for row in rows]
            columns.append("")
        found.append(indented(table(columns, rows, full)))
    if panel.note:
        found.append(indented(Text(for_message(panel.note, 1000), style="dim")))
    return found


def _size(value: object) -> float | None:
    """Return how far a number is from zero; None for what is not a number that could be drawn."""
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


_CHARACTERS = 400
"""Of a text that are shown, unless all of it is asked for."""


def token_name(row: int, sequence: SequenceTrace, of: RowTrace) -> str:
    """Return the short name of a sequence: ``0``, ``0.2`` for the third part, ``0w1`` for the second window."""
    several = len({other.part for other in of.sequences}) > 1
    windows = sum(other.part == sequence.part for other in of.sequences) > 1
    return f"{row}{f'.{sequence.part}' if several else ''}{f'w{sequence.window}' if windows else ''}"


def draw_example(example: Example, full: bool) -> list[RenderableType]:
    """Show what went in, field by field."""
    limit = 1_000_000 if full else _CHARACTERS
    if not isinstance(example, Mapping):
        return [_text(example, limit)]
    fields = [(for_message(str(name), 40), _text(value, limit)) for name, value in example.items()]
    return [Text.assemble((f"{name}: ", "bold"), value) for name, value in fields]


def _text(value: Any, limit: int) -> Text:
    text = value if isinstance(value, str) else str(value)
    shown = escaped(text, limit)
    if len(text) > limit:
        shown.append(f" ({len(text):,} characters)", style="dim")
    return shown


def draw_sequence(name: str, sequence: SequenceTrace, full: bool) -> list[RenderableType]:
    """Show the tokens of one sequence, and what is in no sequence."""
    tokens = sequence.tokens
    special = sum(token.special for token in tokens)
    head = f"sequence {name}: {len(tokens):,} tokens" + (f", {special} of them special" if special else "")
    if sequence.span is not None:
        head += f", window {sequence.window} with the text's tokens {sequence.span[0]} to {sequence.span[1]}"
    found: list[RenderableType] = [line(head, "bold")]
    columns = _columns(tokens)
    rows = [[_token_cell(column, place, token, sequence) for column in columns] for place, token in enumerate(tokens)]
    found.append(indented(table(columns, rows, full, what="tokens")))
    if sequence.truncated or sequence.truncated_chars:
        found.append(indented(_cut(sequence, full)))
    return found


def _columns(tokens: Sequence[Token]) -> list[str]:
    """Return the columns that hold anything."""
    known: dict[str, bool] = {
        "#": True,
        "id": True,
        "token": True,
        "in the text": any(token.start is not None for token in tokens),
        "place": any(token.start is not None for token in tokens),
        "word": any(token.word is not None for token in tokens),
        "text": len({token.sequence for token in tokens if token.sequence is not None}) > 1,
        "type": any(token.type for token in tokens),
        "": any(token.special for token in tokens),
    }
    return [name for name, wanted in known.items() if wanted]


def _token_cell(column: str, place: int, token: Token, sequence: SequenceTrace) -> Any:
    if column == "in the text":
        return escaped(_source(token, sequence), 60)
    if column == "place":
        return None if token.start is None else f"{token.start}-{token.end}"
    if column == "":
        return Text("special", style="magenta") if token.special else Text("")
    cells: dict[str, Any] = {
        "#": place,
        "id": token.id,
        "token": Text(for_message(token.text, 60), style="magenta" if token.special else "cyan"),
        "word": token.word,
        "text": token.sequence,
        "type": token.type,
    }
    return cells[column]


def _source(token: Token, sequence: SequenceTrace) -> str:
    if token.start is None or token.sequence is None or token.sequence >= len(sequence.source):
        return ""
    return sequence.source[token.sequence][token.start : token.end]


def _cut(sequence: SequenceTrace, full: bool) -> Text:
    counts = [f"{sequence.truncated:,} tokens"] if sequence.truncated else []
    counts += [f"{sequence.truncated_chars:,} characters before tokenizing"] if sequence.truncated_chars else []
    shown = Text(f"cut off: {' and '.join(counts)}", style="yellow")
    if sequence.cut is not None:
        shown.append(": ").append_text(_text(sequence.cut, 1_000_000 if full else _CHARACTERS))
    return shown
