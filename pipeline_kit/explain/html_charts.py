"""Bars and heat maps as data: where a bar stands in percent, which of eight shades a cell has."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHADES = 8
DENSE = 24
_LINES = 400

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """A label, its number as written, and the bar's place in percent of the width."""

    label: str
    value: str
    x: float
    width: float
    best: bool = False
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars on one scale; `zero` is where nought stands, in percent."""

    bars: tuple[Bar, ...]
    zero: float


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A number as written; its shade among its row's and among all of the map, -1 if it is not finite."""

    value: str
    shade: int
    shade_all: int


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A row of a heat map with its least and largest number."""

    name: str
    cells: tuple[HeatCell, ...]
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Heat:
    """A heat map; `dense` if there are too many columns to write the numbers into the cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    dense: bool
    what: str


@dataclass(frozen=True, slots=True)
class Spark:
    """A long vector as thin lines: a path of an SVG of `width` by 40."""

    path: str
    width: int
    zero: float
    note: str


def bars(labels: Sequence[str], values: Sequence[float]) -> Bars:
    """Place bars for `values`; from 0 to 1 where they all are shares, else to the largest of them.

    What is not finite has no bar.
    """
    finite = [value for value in values if math.isfinite(value)]
    low = min([0.0, *finite])
    high = max([0.0, *finite])
    if low >= 0 and high <= 1:
        high = 1.0
    span = (high - low) or 1.0
    best = max(finite, default=math.nan)
    return Bars(
        tuple(_bar(label, value, low, span, value == best) for label, value in zip(labels, values, strict=True)),
        round(-100 * low / span, 2),
    )


def _bar(label: str, value: float, low: float, span: float, best: bool) -> Bar:
    if not math.isfinite(value):
        return Bar(label, html_number(float(value)), 0, 0)
    start, end = sorted((100 * -low / span, 100 * (value - low) / span))
    return Bar(label, html_number(float(value)), round(start, 2), round(end - start, 2), best, value < 0)


def shade(value: float, low: float, high: float) -> int:
    """Return the shade of `value` between `low` and `high`, 0 to 7; -1 if it is not finite."""
    if not math.isfinite(value):
        return -1
    return min(SHADES - 1, int(SHADES * (value - low) / (high - low))) if high > low else 0


def heat(title: str, what: str, names: Sequence[str], columns: Sequence[str], values: Array) -> Heat:
    """Make a heat map.

    :param what: what a number is, such as ``norm``.
    :param names: of the rows.
    :param values: ``[rows, columns]``.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = _limits(values)
    rows = []
    for name, line in zip(names, values, strict=True):
        least, most = _limits(line)
        cells = tuple(
            HeatCell(html_number(value), shade(value, least, most), shade(value, low, high)) for value in line.tolist()
        )
        rows.append(HeatRow(name, cells, html_number(least), html_number(most)))
    return Heat(title, tuple(columns), tuple(rows), len(columns) > DENSE, what)


def _limits(values: Array) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def spark(values: Array) -> Spark:
    """Draw a vector ``[N]`` as lines, at most 400: of a longer one every so-many numbers."""
    step = -(-len(values) // _LINES)
    kept = np.nan_to_num(np.asarray(values[::step], dtype=np.float64))
    low, high = min(0.0, float(kept.min())), max(0.0, float(kept.max()))
    span = (high - low) or 1.0
    zero = 40 * high / span
    lines = [f"M{place + 0.5:g} {zero:.1f}V{40 * (high - value) / span:.1f}" for place, value in enumerate(kept)]
    note = f"every {step}th number" if step > 1 else ""
    return Spark("".join(lines), len(kept), round(zero, 1), note)


_KEPT = "\t\n\r"
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in _KEPT} | {0x7F: 0x2421}
_LONE = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp"})
_LISTED = 8
_LONGEST = 80


def clean(page: str) -> str:
    """Return `page` without what no UTF-8 file can hold (halves of surrogate pairs) and without control characters.

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
    """Return the beginning of `text` in one line of at most `width` characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width and len(text) <= 4 * width else line[: width - 1].rstrip() + "…"


def example_text(example: str | Mapping[str, Any]) -> str:
    """Return an example in one line: its text, or its first field's."""
    if isinstance(example, str):
        return example
    return " · ".join(value if isinstance(value, str) else str(value) for value in example.values())


def html_number(value: Any, digits: int = 4) -> str:
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
