"""The terminal's view of texts, tokens, and what was cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pipeline_kit.errors import shorten
from pipeline_kit.explain.text_parts import indented, line, safe, table
from pipeline_kit.explain.trace import RowTrace, SequenceTrace, Token
from pipeline_kit.types import Example

__all__ = ["draw_example", "draw_sequence", "name_of"]

_CHARACTERS = 400
"""Of a text that are shown, unless all of it is asked for."""


def name_of(row: int, sequence: SequenceTrace, of: RowTrace) -> str:
    """Give the short name of a sequence: ``0``, ``0.2`` for the third part, ``0w1`` for the second window."""
    several = len({other.part for other in of.sequences}) > 1
    windows = sum(other.part == sequence.part for other in of.sequences) > 1
    return f"{row}{f'.{sequence.part}' if several else ''}{f'w{sequence.window}' if windows else ''}"


def draw_example(example: Example, full: bool) -> list[RenderableType]:
    """Show what went in, field by field."""
    limit = 1_000_000 if full else _CHARACTERS
    if not isinstance(example, Mapping):
        return [_text(example, limit)]
    fields = [(shorten(str(name), 40), _text(value, limit)) for name, value in example.items()]
    return [Text.assemble((f"{name}: ", "bold"), value) for name, value in fields]


def _text(value: Any, limit: int) -> Text:
    text = value if isinstance(value, str) else str(value)
    shown = safe(text, limit)
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
    rows = [[_cell(column, place, token, sequence) for column in columns] for place, token in enumerate(tokens)]
    found.append(indented(table(columns, rows, full, what="tokens")))
    if sequence.truncated or sequence.truncated_chars:
        found.append(indented(_cut(sequence, full)))
    return found


def _columns(tokens: Sequence[Token]) -> list[str]:
    """Give the columns that hold anything."""
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


def _cell(column: str, place: int, token: Token, sequence: SequenceTrace) -> Any:
    if column == "in the text":
        return safe(_source(token, sequence), 60)
    if column == "place":
        return None if token.start is None else f"{token.start}-{token.end}"
    if column == "":
        return Text("special", style="magenta") if token.special else Text("")
    cells: dict[str, Any] = {
        "#": place,
        "id": token.id,
        "token": Text(shorten(token.text, 60), style="magenta" if token.special else "cyan"),
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
