"""Bars and heat maps as data: where a bar stands in percent, which of eight shades a cell has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_kit.explain.html_text import number

__all__ = ["SHADES", "Bar", "Bars", "Cell", "Heat", "HeatRow", "Spark", "bars", "heat", "shade", "spark"]

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
class Cell:
    """A number as written; its shade among its row's and among all of the map, -1 if it is not finite."""

    value: str
    shade: int
    shade_all: int


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A row of a heat map with its least and largest number."""

    name: str
    cells: tuple[Cell, ...]
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
        return Bar(label, number(float(value)), 0, 0)
    start, end = sorted((100 * -low / span, 100 * (value - low) / span))
    return Bar(label, number(float(value)), round(start, 2), round(end - start, 2), best, value < 0)


def shade(value: float, low: float, high: float) -> int:
    """Give the shade of `value` between `low` and `high`, 0 to 7; -1 if it is not finite."""
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
            Cell(number(value), shade(value, least, most), shade(value, low, high)) for value in line.tolist()
        )
        rows.append(HeatRow(name, cells, number(least), number(most)))
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
