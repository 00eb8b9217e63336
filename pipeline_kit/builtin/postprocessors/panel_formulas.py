"""The arithmetic of the postprocessors with its numbers, as lines of text and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline_kit.builtin.postprocessors.panel_lines import bounded, folded, minus, named, notes, number
from pipeline_kit.panels import Cell, Panel

__all__ = ["Column", "activation_panel", "exponentials", "mean_line", "sigmoid_lines", "softmax_lines"]

Array = np.ndarray[Any, Any]
Column = tuple[str, Sequence[Cell]]
Function = Literal["softmax", "sigmoid", "none"]

_FEW = 4  # terms of a sum that are written out


def exponentials(logits: Array, among: Array) -> tuple[Array, float, float]:
    """Give ``exp(z - m)`` of `logits`, m, the largest logit of `among`, and the sum over `among`; float64."""
    among = among.astype(np.float64)
    peak = float(among.max())
    return np.exp(logits.astype(np.float64) - peak), peak, float(np.exp(among - peak).sum())


def softmax_lines(name: str, logit: float, among: Array, noun: str) -> str:
    """Write the softmax of one logit over those of `among`, ``[n]``.

    :param noun: what there are n of, in the plural.
    """
    terms, peak, total = exponentials(among, among)
    listed = f" = {' + '.join([number(term) for term in terms])}" if 1 < len(terms) <= _FEW else ""
    power = number(float(np.exp(logit - peak)) / total)
    return "\n".join(
        (
            f"p = exp(z - m) / sum of exp(z - m) over {len(among)} {noun}, m = max z",
            f"m = {number(peak)}",
            f"sum{listed} = {number(total)}",
            f"p({named(name)}) = exp({minus(logit, peak)}) / {number(total)} = {power}",
        )
    )


def sigmoid_lines(name: str, logit: float) -> str:
    """Write the sigmoid of one logit."""
    score = float(np.exp(-np.logaddexp(0.0, -float(logit))))
    return f"p = 1 / (1 + exp(-z))\np({named(name)}) = 1 / (1 + exp({number(-float(logit))})) = {number(score)}"


def mean_line(name: str, values: Sequence[float], weights: Sequence[float] | None = None) -> str:
    """Write the mean of `values`, weighted if there are weights."""
    if len(values) == 1:
        return f"{named(name, 30)} = {number(values[0])}"
    if weights is None:
        terms, count = [number(value) for value in values], float(len(values))
        mean = sum(values) / count
    else:
        terms = [f"{number(weight)} * {number(value)}" for weight, value in zip(weights, values, strict=True)]
        count = float(sum(weights))
        mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / count
    return folded(f"{named(name, 30)} = ", terms, " +", (f"/ {number(count)}", f"= {number(mean)}"))


def activation_panel(
    title: str,
    names: Sequence[str],
    logits: Array,
    scores: Array,
    function: Function,
    *,
    heading: str = "label",
    among: Array | None = None,
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
        formula = f"score({named(names[best])}) = logit = {number(float(logits[best]))}"
    columns.append(("score", [float(x) for x in scores]))
    rows, left = bounded([[values[i] for _, values in columns] for i in order], noun.removesuffix("s"))
    shown = tuple(name for name, _ in columns)
    return Panel(title, shown, rows, "score", formula, notes(note, left))
