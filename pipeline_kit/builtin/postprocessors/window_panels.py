"""How the windows of a long text, and the parts of an example, were put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline_kit.builtin.postprocessors.merge import window_weights
from pipeline_kit.builtin.postprocessors.panel_formulas import mean_line
from pipeline_kit.builtin.postprocessors.panel_lines import bounded, cell, folded, named, notes, number
from pipeline_kit.panels import Cell, Panel
from pipeline_kit.types import Encoding

__all__ = ["Item", "by_part", "merge_panels"]

_SAYS = {
    "mean": "weight: how many tokens of the text a window stands for; what several windows share counts once in all",
    "max": "the window with the largest value counts",
}


@dataclass(frozen=True)
class Item:
    """Something that has a value in each window: a label, a document.

    :param windows: its encodings, one for each of `values`.
    """

    name: str
    windows: Sequence[Encoding]
    values: Sequence[float]


def by_part(encodings: Sequence[Encoding]) -> list[range]:
    """Give for each part of an example the places of its windows in `encodings`."""
    starts = [i for i, encoding in enumerate(encodings) if not i or encoding.part != encodings[i - 1].part]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(encodings)], strict=True)]


def merge_panels(
    items: Sequence[Item], how: Literal["mean", "max"], value: str, *, heading: str = "label", best: int = 0
) -> list[Panel]:
    """Show the value of each item in each window and what was made of them; nothing if all texts are whole.

    :param value: what the values are, such as ``score``.
    :param best: the item whose formula is written.
    """
    if all(len(item.windows) == 1 for item in items):
        return []
    rows: list[Sequence[Cell]] = []
    for item in items:
        largest = int(np.argmax(item.values))
        weights = window_weights(item.windows).tolist()
        for place, (window, weight, found) in enumerate(zip(item.windows, weights, item.values, strict=True)):
            begin, end = window.span or (None, None)
            counts: Cell = place == largest if how == "max" else weight
            rows.append((cell(item.name), window.window, begin, end, counts, float(found)))
    shown, left = bounded(rows, "row")
    columns = (heading, "window", "from token", "to token", "counts" if how == "max" else "weight", value)
    note = notes(_SAYS[how], left)
    return [Panel(f"windows put together ({how})", columns, shown, value, _formula(items[best], how, value), note)]


def _formula(item: Item, how: str, value: str) -> str:
    name = f"{value}({named(item.name)})"
    if how == "mean":
        return mean_line(name, item.values, window_weights(item.windows).tolist())
    return folded(f"{name} = max", [number(found) for found in item.values], ",", (f"= {number(max(item.values))}",))
