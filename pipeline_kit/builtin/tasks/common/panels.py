"""What the panels of the postprocessors share: numbers as text, folded lines, tables of bounded length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import window_weights
from pipeline_kit.contract.stages import Cell, Panel
from pipeline_kit.contract.types import Encoding
from pipeline_kit.errors import for_message

ROWS = 50
"""Rows that a panel's table has at most."""

WIDTH = 78
"""Columns that a line of a formula takes at most."""

_TERMS = 12


def panel_number(value: float) -> str:
    """Write `value` with six significant digits."""
    return f"{float(value):.6g}"


def minus(value: float, other: float) -> str:
    """Write the difference of two numbers, without two signs in a row."""
    return f"{panel_number(value)} {'+' if other < 0 else '-'} {panel_number(abs(other))}"


def named(name: str, limit: int = 22) -> str:
    """Return `name` for a formula: without line breaks, at most `limit` characters."""
    return for_message(name, limit)


def cell(text: str, most: int = 120) -> str:
    """Return `text` for a table; what is beyond `most` characters is left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(count: int, noun: str) -> str:
    """Return ``1 token``, ``2 tokens``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def wrap_terms(begin: str, terms: Sequence[str], joiner: str, ends: Sequence[str], brackets: str = "()") -> str:
    """Write ``begin (term joiner term …) ends`` in lines of at most `WIDTH` columns; of many terms only the first.

    :param joiner: what stands behind each term but the last, such as `` +``.
    :param brackets: what stands before the first term and behind the last one, a character each.
    """
    pieces = list(terms[:_TERMS])
    if len(terms) > _TERMS:
        pieces.append(f"… ({len(terms) - _TERMS} more)")
    words = [*[piece + joiner for piece in pieces[:-1]], pieces[-1] + brackets[1:]]
    words[0] = begin + brackets[:1] + words[0]
    return fold([*words, *ends])


def fold(words: Sequence[str]) -> str:
    """Write words in lines of at most `WIDTH` columns."""
    lines, line = [], ""
    for word in words:
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = "   "
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def first_rows(rows: Sequence[Sequence[Cell]], noun: str) -> tuple[Sequence[Sequence[Cell]], str]:
    """Return the first `ROWS` of `rows`, and a note of how many were left out; empty if none was."""
    left = len(rows) - ROWS
    return rows[:ROWS], f"{counted(left, noun)} left out" if left > 0 else ""


def notes(*parts: str) -> str:
    """Join what there is to say, each part a clause."""
    return "; ".join([part for part in parts if part])


def drop_window_column(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], windows: int
) -> tuple[Sequence[str], Sequence[Sequence[Cell]]]:
    """Take the first column, which names the window, off the table of a text that is whole."""
    return (columns, rows) if windows > 1 else (columns[1:], [row[1:] for row in rows])


Column = tuple[str, Sequence[Cell]]
Function = Literal["softmax", "sigmoid", "none"]

_FEW = 4  # terms of a sum that are written out


def exponentials(logits: NDArray[Any], among: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """Return ``exp(z - m)`` of `logits`, m, the largest logit of `among`, and the sum over `among`; float64."""
    among = among.astype(np.float64)
    peak = float(among.max())
    return np.exp(logits.astype(np.float64) - peak), peak, float(np.exp(among - peak).sum())


def softmax_lines(name: str, logit: float, among: NDArray[Any], noun: str) -> str:
    """Write the softmax of one logit over those of `among`, ``[n]``.

    :param noun: what there are n of, in the plural.
    """
    terms, peak, total = exponentials(among, among)
    listed = f" = {' + '.join([panel_number(term) for term in terms])}" if 1 < len(terms) <= _FEW else ""
    power = panel_number(float(np.exp(logit - peak)) / total)
    return "\n".join(
        (
            f"p = exp(z - m) / sum of exp(z - m) over {len(among)} {noun}, m = max z",
            f"m = {panel_number(peak)}",
            f"sum{listed} = {panel_number(total)}",
            f"p({named(name)}) = exp({minus(logit, peak)}) / {panel_number(total)} = {power}",
        )
    )


def sigmoid_lines(name: str, logit: float) -> str:
    """Write the sigmoid of one logit."""
    score = float(np.exp(-np.logaddexp(0.0, -float(logit))))
    return (
        "p = 1 / (1 + exp(-z))\n"
        + f"p({named(name)}) = 1 / (1 + exp({panel_number(-float(logit))})) = {panel_number(score)}"
    )


def mean_line(name: str, values: Sequence[float], weights: Sequence[float] | None = None) -> str:
    """Write the mean of `values`, weighted if there are weights."""
    if len(values) == 1:
        return f"{named(name, 30)} = {panel_number(values[0])}"
    if weights is None:
        terms, count = [panel_number(value) for value in values], float(len(values))
        mean = sum(values) / count
    else:
        terms = [
            f"{panel_number(weight)} * {panel_number(value)}" for weight, value in zip(weights, values, strict=True)
        ]
        count = float(sum(weights))
        mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / count
    return wrap_terms(f"{named(name, 30)} = ", terms, " +", (f"/ {panel_number(count)}", f"= {panel_number(mean)}"))


def activation_panel(
    title: str,
    names: Sequence[str],
    logits: NDArray[Any],
    scores: NDArray[Any],
    function: Function,
    *,
    heading: str = "label",
    among: NDArray[Any] | None = None,
    noun: str = "labels",
    extra: Sequence[Column] = (),
    best: int | None = None,
    note: str = "",
) -> Panel:
    """Show how logits ``[n]`` became scores ``[n]``: a row for each, the highest logit first.

    :param among: the logits that the softmax adds up, if there are more than the ones shown.
    :param extra: columns behind the first.
    :param best: the one whose formula is written; None for the highest.
    """
    order = np.argsort(-logits.astype(np.float64), kind="stable").tolist()
    best = order[0] if best is None else best
    columns: list[Column] = [(heading, list(names)), *extra, ("logit", [float(x) for x in logits])]
    among = logits if among is None else among
    if function == "softmax":
        columns.append(("exp(logit - max)", exponentials(logits, among)[0].tolist()))
        formula = softmax_lines(names[best], float(logits[best]), among, noun)
    elif function == "sigmoid":
        formula = sigmoid_lines(names[best], float(logits[best]))
    else:
        formula = f"score({named(names[best])}) = logit = {panel_number(float(logits[best]))}"
    columns.append(("score", [float(x) for x in scores]))
    rows, left = first_rows([[values[i] for _, values in columns] for i in order], noun.removesuffix("s"))
    shown = tuple(name for name, _ in columns)
    return Panel(title, shown, rows, "score", formula, notes(note, left))


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
    """Return for each part of an example the places of its windows in `encodings`."""
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
            begin, end = window.token_span or (None, None)
            counts: Cell = place == largest if how == "max" else weight
            rows.append((cell(item.name), window.window, begin, end, counts, float(found)))
    shown, left = first_rows(rows, "row")
    columns = (heading, "window", "from token", "to token", "counts" if how == "max" else "weight", value)
    note = notes(_SAYS[how], left)
    return [Panel(f"windows put together ({how})", columns, shown, value, _formula(items[best], how, value), note)]


def _formula(item: Item, how: str, value: str) -> str:
    name = f"{value}({named(item.name)})"
    if how == "mean":
        return mean_line(name, item.values, window_weights(item.windows).tolist())
    return wrap_terms(
        f"{name} = max", [panel_number(found) for found in item.values], ",", (f"= {panel_number(max(item.values))}",)
    )
