"""What the panels of the postprocessors share: numbers as text, folded lines, tables of bounded length."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_kit.errors import shorten
from pipeline_kit.panels import Cell

__all__ = ["ROWS", "WIDTH", "bounded", "cell", "counted", "folded", "minus", "named", "notes", "number", "slimmed"]

ROWS = 50
"""Rows that a panel's table has at most."""

WIDTH = 78
"""Columns that a line of a formula takes at most."""

_TERMS = 12
_CELL = 120


def number(value: float) -> str:
    """Write `value` with six significant digits."""
    return f"{float(value):.6g}"


def minus(value: float, other: float) -> str:
    """Write the difference of two numbers, without two signs in a row."""
    return f"{number(value)} {'+' if other < 0 else '-'} {number(abs(other))}"


def named(name: str, limit: int = 22) -> str:
    """Give `name` for a formula: without line breaks, at most `limit` characters."""
    return shorten(name, limit)


def cell(text: str) -> str:
    """Give `text` for a table; the end of a long one is left out."""
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def counted(count: int, noun: str) -> str:
    """Give ``1 token``, ``2 tokens``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def folded(begin: str, terms: Sequence[str], joiner: str, ends: Sequence[str], brackets: str = "()") -> str:
    """Write ``begin (term joiner term …) ends`` in lines of at most `WIDTH` columns; of many terms only the first.

    :param joiner: what stands behind each term but the last, such as `` +``.
    :param brackets: what stands before the first term and behind the last one, a character each.
    """
    pieces = list(terms[:_TERMS])
    if len(terms) > _TERMS:
        pieces.append(f"… ({len(terms) - _TERMS} more)")
    words = [*[piece + joiner for piece in pieces[:-1]], pieces[-1] + brackets[1:]]
    words[0] = begin + brackets[:1] + words[0]
    lines, line = [], ""
    for word in [*words, *ends]:
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = "   "
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def bounded(rows: Sequence[Sequence[Cell]], noun: str) -> tuple[Sequence[Sequence[Cell]], str]:
    """Give the first `ROWS` of `rows`, and a note of how many were left out; empty if none was."""
    left = len(rows) - ROWS
    return rows[:ROWS], f"{counted(left, noun)} left out" if left > 0 else ""


def notes(*parts: str) -> str:
    """Join what there is to say, each part a clause."""
    return "; ".join([part for part in parts if part])


def slimmed(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], windows: int
) -> tuple[Sequence[str], Sequence[Sequence[Cell]]]:
    """Take the first column, which names the window, off the table of a text that is whole."""
    return (columns, rows) if windows > 1 else (columns[1:], [row[1:] for row in rows])
