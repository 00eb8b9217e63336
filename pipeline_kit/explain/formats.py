"""How numbers and texts are written, in a terminal and on a page alike."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_KEPT = "\t\n\r"
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp"})
_LISTED = 8
_LONGEST = 80


def aligned(value: Any) -> str:
    """Write a number for a column: floats with four digits behind the point; other things as text."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 0.0005 or value == 0 or value != value else f"{value:.1e}"
    return str(value)


def number(value: Any, digits: int = 4) -> str:
    """Write a number with so many digits that count; whole ones as they are, other things as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(value) >= 10_000 else str(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    text = f"{value:.{digits}g}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text


def numbers(values: Any, most: int) -> str:
    """Write the first `most` numbers of an array or a tensor, and how many more there are."""
    left = math.prod(values.shape) - most
    shown = " ".join(map(aligned, values.reshape(-1)[:most].tolist()))
    return shown + (f" … {left:,} more" if left > 0 else "")


def seconds(value: float) -> str:
    """Write a duration in the unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def shape_of(shape: Sequence[int]) -> str:
    """Write the shape of an array."""
    return "[" + ", ".join(map(str, shape)) + "]"


def visible(token: str) -> str:
    """Spell a token so that it is seen: spaces and invisible characters by sign or number; a very long one is cut."""
    if not token:
        return "(empty)"
    sign = "".join(
        "\N{OPEN BOX}" if char == " " else f"U+{ord(char):04X}" if unicodedata.category(char) in _UNSEEN else char
        for char in token[:_LONGEST]
    )
    return sign if len(token) <= _LONGEST else f"{sign}… ({len(token)} characters)"


def invisible(text: str) -> str:
    """Name the characters of `text` that cannot be seen, with their places; '' if there are none.

    Line ends and tabs are left out: they show.
    """
    found = [
        f"U+{ord(char):04X} at {place}"
        for place, char in enumerate(text)
        if char not in _KEPT and unicodedata.category(char) in _UNSEEN
    ]
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(found[:_LISTED]) + more


def excerpt(text: str, width: int = 60) -> str:
    """Return the beginning of `text` in one line of at most `width` characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width and len(text) <= 4 * width else line[: width - 1].rstrip() + "…"


def example_text(example: str | Mapping[str, Any]) -> str:
    """Return an example in one line: its text, or its fields'."""
    return example if isinstance(example, str) else " · ".join(map(str, example.values()))
