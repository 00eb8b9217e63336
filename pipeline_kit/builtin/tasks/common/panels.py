"""What the panels of the postprocessors share: numbers as text, folded lines, tables of bounded length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import RankedParts, window_weights
from pipeline_kit.contract.stages import Cell, Panel, Seen
from pipeline_kit.contract.types import Encoding
from pipeline_kit.errors import for_message

ROWS = 50
"""Rows that a panel's table has at most."""

WIDTH = 78
"""Columns that a line of a formula takes at most."""

_TERMS = 12


def digits(value: float) -> str:
    """Write `value` with six significant digits."""
    return f"{float(value):.6g}"


def minus(value: float, other: float) -> str:
    """Write the difference of two numbers, without two signs in a row."""
    return f"{digits(value)} {'+' if other < 0 else '-'} {digits(abs(other))}"


def named(name: str, limit: int = 22) -> str:
    """Return `name` for a formula: without line breaks, at most `limit` characters."""
    return for_message(name, limit)


def cell(text: str, most: int = 120) -> str:
    """Return `text` for a table; what is beyond `most` characters is left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(count: int, noun: str) -> str:
    """Return ``1 token``, ``2 tokens``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def wrapped(begin: str, terms: Sequence[str], joiner: str, ends: Sequence[str], brackets: str = "()") -> str:
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


def notes(*parts: str) -> str:
    """Join what there is to say, each part a clause."""
    return "; ".join([part for part in parts if part])


def table_panel(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    noun: str,
    *said: str,
    bar: str | None = None,
    formula: str = "",
    windows: int = 2,
    left: int = 0,
) -> Panel:
    """Make a panel of the first `ROWS` of `rows`; its note has what is `said` and how many were left out.

    :param noun: what a row is.
    :param windows: of how many the text is; the first column, which names the window, goes where it is whole.
    :param left: how many rows were left out already.
    """
    left += max(0, len(rows) - ROWS)
    note = notes(*said, f"{counted(left, noun)} left out" if left else "")
    first = int(windows < 2)
    return Panel(title, tuple(columns[first:]), [row[first:] for row in rows[:ROWS]], bar, formula, note)


Column = tuple[str, Sequence[Cell]]
Function = Literal["softmax", "sigmoid", "none"]

_FEW = 4  # terms of a sum that are written out


def exponentials(logits: NDArray[Any], among: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """Return ``exp(z - m)`` of `logits`, m, the largest logit of `among`, and the sum over `among`; float64."""
    among = among.astype(np.float64)
    peak = float(among.max())
    return np.exp(logits.astype(np.float64) - peak), peak, float(np.exp(among - peak).sum())


def softmax_lines(name: str, logit: float, among: NDArray[Any], noun: str) -> str:
    """Write the softmax of one logit over those of `among`, ``[n]``, which are n of `noun`, a plural."""
    terms, peak, total = exponentials(among, among)
    listed = f" = {' + '.join([digits(term) for term in terms])}" if 1 < len(terms) <= _FEW else ""
    power = digits(float(np.exp(logit - peak)) / total)
    return "\n".join(
        (
            f"p = exp(z - m) / sum of exp(z - m) over {len(among)} {noun}, m = max z",
            f"m = {digits(peak)}",
            f"sum{listed} = {digits(total)}",
            f"p({named(name)}) = exp({minus(logit, peak)}) / {digits(total)} = {power}",
        )
    )


def sigmoid_lines(name: str, logit: float) -> str:
    """Write the sigmoid of one logit."""
    score = float(np.exp(-np.logaddexp(0.0, -float(logit))))
    return "p = 1 / (1 + exp(-z))\n" + f"p({named(name)}) = 1 / (1 + exp({digits(-float(logit))})) = {digits(score)}"


def mean_line(name: str, values: Sequence[float], weights: Sequence[float] | None = None) -> str:
    """Write the mean of `values`, weighted if there are weights."""
    if len(values) == 1:
        return f"{named(name, 30)} = {digits(values[0])}"
    pairs = list(zip(weights or [1.0] * len(values), values, strict=True))
    terms = [f"{digits(weight)} * {digits(value)}" if weights else digits(value) for weight, value in pairs]
    count = float(sum(weight for weight, _ in pairs))
    mean = sum(weight * value for weight, value in pairs) / count
    return wrapped(f"{named(name, 30)} = ", terms, " +", (f"/ {digits(count)}", f"= {digits(mean)}"))


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
        formula = f"score({named(names[best])}) = logit = {digits(float(logits[best]))}"
    columns.append(("score", [float(x) for x in scores]))
    rows = [[values[i] for _, values in columns] for i in order]
    noun = noun.removesuffix("s")
    return table_panel(title, [name for name, _ in columns], rows, noun, note, bar="score", formula=formula)


_SAYS = {
    "mean": "weight: how many tokens of the text a window stands for; what several windows share counts once in all",
    "max": "the window with the largest value counts",
}


@dataclass(frozen=True)
class Item:
    """Something that has a value in each of its windows: a label, a document."""

    name: str
    windows: Sequence[Encoding]
    values: Sequence[float]


def merge_panels(
    items: Sequence[Item], how: Literal["mean", "max"], value: str, *, heading: str = "label"
) -> list[Panel]:
    """Show the value of each item in each window and what was made of them; nothing if all texts are whole.

    :param items: the formula is that of the first.
    :param value: what the values are, such as ``score``.
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
    columns = (heading, "window", "from token", "to token", "counts" if how == "max" else "weight", value)
    name, values = f"{value}({named(items[0].name)})", items[0].values
    if how == "mean":
        formula = mean_line(name, values, window_weights(items[0].windows).tolist())
    else:
        terms = [digits(found) for found in values]
        formula = wrapped(f"{name} = max", terms, ",", (f"= {digits(max(values))}",))
    title = f"windows put together ({how})"
    return [table_panel(title, columns, rows, "row", _SAYS[how], bar=value, formula=formula)]


def ranked_items(names: Sequence[str], seen: Seen, values: Sequence[float], ranked: RankedParts) -> list[Item]:
    """Return each part with its values in all its windows, the one with the highest merged value first."""
    parts = [(i, seen.places(i)) for i in ranked.order]
    return [Item(names[i], [seen.encodings[at] for at in own], [values[at] for at in own]) for i, own in parts]
