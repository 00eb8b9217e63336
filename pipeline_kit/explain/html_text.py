"""Words and numbers as a page shows them: nothing invisible, nothing that breaks a line or a file."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

__all__ = ["clean", "example_text", "excerpt", "invisible", "number", "seconds", "visible"]

_KEPT = "\t\n\r"
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in _KEPT} | {0x7F: 0x2421}
_LONE = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp"})
_LISTED = 8
_LONGEST = 80


def clean(page: str) -> str:
    """Give `page` without what no UTF-8 file can hold (halves of surrogate pairs) and without control characters.

    Controls become their pictures, ``U+0000`` is ``U+2400``; a half of a pair becomes ``U+FFFD``.
    """
    return page.translate(_PICTURES | _LONE)


def visible(token: str) -> str:
    """Spell a token so that it is seen: spaces and invisible characters by sign or number; a very long one is cut."""
    if not token:
        return "(empty)"
    sign = "".join(_sign(char) for char in token[:_LONGEST])
    return sign if len(token) <= _LONGEST else f"{sign}… ({len(token)} characters)"


def _sign(char: str) -> str:
    if char == " ":
        return "\N{OPEN BOX}"
    return f"U+{ord(char):04X}" if unicodedata.category(char) in _UNSEEN else char


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
    """Give the beginning of `text` in one line of at most `width` characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width and len(text) <= 4 * width else line[: width - 1].rstrip() + "…"


def example_text(example: str | Mapping[str, Any]) -> str:
    """Give an example in one line: its text, or its first field's."""
    if isinstance(example, str):
        return example
    return " · ".join(value if isinstance(value, str) else str(value) for value in example.values())


def number(value: Any, digits: int = 4) -> str:
    """Write a number with so many digits that count; whole ones as they are, other things as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(value) >= 10_000 else str(value)
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.{digits}g}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text


def seconds(value: float) -> str:
    """Write a duration in the unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"
