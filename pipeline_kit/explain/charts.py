"""Numbers as pictures: where a bar stands in percent, which of eight shades a cell has, a vector as thin lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.contract.stages import Panel
from pipeline_kit.explain.blocks import Norms, Result, Text, Values
from pipeline_kit.explain.formats import number, numbers

SHADES = 8
DENSE = 24
_LINES = 400
_FEW = 64  # numbers of a vector that are drawn as bars, each with its label
_UNNAMED = 16  # so many without labels
_LABELS = 40  # rows of a heat map
_LISTED = 48
_SIGNS = 4


class Bar(NamedTuple):
    """A label, its number as written, and the bar's place in percent of the width."""

    label: str
    value: str
    x: float
    width: float
    best: bool = False
    negative: bool = False


class Bars(NamedTuple):
    """Bars on one scale; `zero` is where nought stands, in percent."""

    bars: tuple[Bar, ...]
    zero: float


class Heat(NamedTuple):
    """A heat map: for each row its name, cells, least and largest number.

    A cell is a number as written with its shade among its row's and among all, -1 if it is not finite.

    :param dense: whether there are too many columns to write the numbers into the cells.
    """

    what: str
    columns: Sequence[str]
    rows: tuple[tuple[str, tuple[tuple[str, int, int], ...], str, str], ...]
    dense: bool


class Spark(NamedTuple):
    """A long vector as thin lines: a path of an SVG of `width` by 40."""

    path: str
    width: int
    note: str


def bars(labels: Sequence[str], values: Sequence[float]) -> Bars:
    """Place bars for `values`; from 0 to 1 where they all are shares, else to the largest of them.

    What is not finite has no bar.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    if low >= 0 and high <= 1:
        high = 1.0
    span, best = (high - low) or 1.0, max(finite, default=math.nan)
    drawn = []
    for label, value in zip(labels, values, strict=True):
        start, end = sorted((-low, value - low)) if math.isfinite(value) else (0.0, 0.0)
        place, width = round(100 * start / span, 2), round(100 * (end - start) / span, 2)
        drawn.append(Bar(label, number(float(value)), place, width, value == best, value < 0))
    return Bars(tuple(drawn), round(-100 * low / span, 2))


def panel_bars(panel: Panel) -> Bars | None:
    """Return the bars of a panel's column of numbers, None if it names none that is there."""
    if panel.bar is None or panel.bar not in panel.columns:
        return None
    found = [row[list(panel.columns).index(panel.bar)] for row in panel.rows]
    return bars([""] * len(found), [float(x) if isinstance(x, int | float) else math.nan for x in found])


def shade(value: float, low: float, high: float) -> int:
    """Return the shade of `value` between `low` and `high`, 0 to 7; -1 if it is not finite."""
    if not math.isfinite(value):
        return -1
    return min(SHADES - 1, int(SHADES * (value - low) / (high - low))) if high > low else 0


def heat(what: str, names: Sequence[str], columns: Sequence[str], values: NDArray[Any]) -> Heat:
    """Make a heat map of `values`, ``[rows, columns]``; `names` are the rows'."""
    values = np.asarray(values, dtype=np.float64)
    low, high = _limits(values)
    rows = []
    for name, line in zip(names, values, strict=True):
        least, most = _limits(line)
        cells = tuple((number(x), shade(x, least, most), shade(x, low, high)) for x in line.tolist())
        rows.append((name, cells, number(least), number(most)))
    return Heat(what, columns, tuple(rows), len(columns) > DENSE)


def _limits(values: NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def spark(values: NDArray[Any]) -> Spark:
    """Draw a vector ``[N]`` as lines, at most 400: of a longer one every so-many numbers. What is not finite is 0."""
    step = -(-len(values) // _LINES)
    kept = np.nan_to_num(np.asarray(values[::step], dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = min(0.0, float(kept.min())), max(0.0, float(kept.max()))
    span = (high - low) or 1.0
    zero = 40 * high / span
    lines = [f"M{place + 0.5:g} {zero:.1f}V{40 * (high - value) / span:.1f}" for place, value in enumerate(kept)]
    return Spark("".join(lines), len(kept), f"every {step}th number" if step > 1 else "")


def picture(block: Values | Norms) -> Bars | Heat | Spark | None:
    """Choose the picture for one sequence's tensor by its shape; None if its numbers in short have to do."""
    if isinstance(block, Norms):
        return heat("layer", block.layers, block.tokens, block.values)
    values = block.values
    flat = values.reshape(-1)
    if not flat.size:
        return None
    if block.tokens and values.ndim in (1, 2):
        rows = values[None] if values.ndim == 1 else values.T
        names = [block.name] if values.ndim == 1 else _names(len(rows), block.labels)
        few = len(rows) <= (_LABELS if values.ndim == 1 or len(rows) == len(block.labels) else _UNNAMED)
        return heat("value", names, block.tokens, rows) if few else None
    if values.dtype.kind in "iub" or (values.ndim > 1 and max(values.shape) != flat.size):
        return None
    if flat.size <= (_FEW if flat.size == len(block.labels) else _UNNAMED):
        return bars(_names(flat.size, block.labels), flat.astype(np.float64).tolist())
    return spark(flat)


def _names(count: int, labels: Sequence[str]) -> Sequence[str]:
    return labels if len(labels) == count else [str(place) for place in range(count)]


def summary(values: NDArray[Any]) -> str:
    """Write a tensor in short: whole numbers one by one, of others the least, the largest and the mean."""
    if not values.size:
        return "empty"
    if values.dtype.kind in "iub":
        return numbers(values, _LISTED)
    wide = np.asarray(values, dtype=np.float64)
    finite = wide[np.isfinite(wide)]
    if not finite.size:
        return "no number is finite"
    least, most, mean = (number(float(value)) for value in (finite.min(), finite.max(), finite.mean()))
    return f"{least} to {most}, mean {mean}" + (f", {bad} not finite" if (bad := wide.size - finite.size) else "")


def level(score: float, scores: Sequence[float]) -> str:
    """Return the shade of one of `scores`: ``p1`` to ``p4``, ``n1`` to ``n4``, or ``p0``."""
    most = max((abs(each) for each in scores if math.isfinite(each)), default=0.0) or 1.0
    found = math.ceil(_SIGNS * abs(score) / most - 0.2) if math.isfinite(score) else 0
    return f"{'n' if score < 0 else 'p'}{min(_SIGNS, found)}" if found > 0 else "p0"


def result_blocks(result: Result) -> list[Text | Panel | Values]:
    """Sort what a result holds into facts, tables and vectors."""
    found: list[Text | Panel | Values] = []
    for key, value in result.value.items():
        listed = isinstance(value, list | tuple)
        if listed and value and all(isinstance(item, Mapping) for item in value):
            columns = tuple(dict.fromkeys(str(name) for record in value for name in record))
            rows = [tuple(_short(record.get(name, "")) for name in columns) for record in value]
            found.append(Panel(key, columns, rows))
        elif listed and len(value) > _FEW and all(isinstance(item, float) for item in value):
            found.append(Values("", key, "result", np.array(value)))
        else:
            found.append(Text(_short(value, 6), key))
    return found


def _short(value: Any, digits: int = 4) -> str:
    if isinstance(value, list | tuple) and value and all(isinstance(item, float | int) for item in value):
        more = f", … {len(value) - 8} more" if len(value) > 8 else ""
        return "[" + ", ".join(map(number, value[:8])) + more + "]"
    if isinstance(value, list | tuple | Mapping):
        text = json.dumps(value, ensure_ascii=False, default=str)
        return text if len(text) <= 300 else text[:299] + "…"
    return number(value, digits)
