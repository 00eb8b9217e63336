"""Attributions in a terminal: the text coloured by its tokens' scores, and bars with their numbers.

A sign goes with every colour, so that nothing is lost without one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline_kit.errors import shorten
from pipeline_kit.explain.trace import Attribution, RowTrace, Token, Trace

__all__ = ["draw"]

_BARS = 24  # tokens that get a bar; of more, those with the largest scores
_HALF = 12  # characters of a bar on either side of zero
_TOKEN = 24
_STYLES = {1: "green", -1: "red", 0: "dim"}
_STEPS = (0.1, 0.4, 0.7)
"""From which part of the largest score on a token has one, two and three signs."""


def draw(trace: Trace) -> RenderableType:
    """Draw all attributions of `trace`; nothing where there are none. Readable at 80 columns and without colour."""
    return Group(*(part for number, row in enumerate(trace.rows) for part in _row(trace, number, row)))


def _row(trace: Trace, number: int, row: RowTrace) -> Iterator[RenderableType]:
    for found in row.attributions:
        heading = Text(f"{found.method}: {found.target}", style="bold")
        if len(trace.rows) > 1:
            heading = Text(f"example {number + 1}: ") + heading
        if len(row.sequences) > 1:
            heading.append(f" (sequence {found.sequence + 1} of {len(row.sequences)})")
        tokens = row.sequences[found.sequence].tokens
        yield heading
        yield Padding(_text(tokens, found), (0, 2))
        yield _bars(tokens, found)
        yield Padding(Text(_said(found), style="dim"), (0, 2, 1, 2))


def _text(tokens: tuple[Token, ...], found: Attribution) -> Text:
    """Write the tokens in their order, each with signs for how strong its score is."""
    text = Text()
    largest = _largest(found)
    for place, (token, score) in enumerate(zip(tokens, found.scores.tolist(), strict=True)):
        strength = sum(_part(score, largest) >= step for step in _STEPS)
        sign = (score > 0) - (score < 0) if strength else 0
        style = _STYLES[sign] + (" bold" if strength == len(_STEPS) else "")
        text.append(" " if place else "")
        text.append(_shown(token) + ("⁺" if sign > 0 else "⁻") * strength, style)
    return text


def _bars(tokens: tuple[Token, ...], found: Attribution) -> Table:
    largest = _largest(found)
    order = np.argsort(-np.abs(found.scores), kind="stable")[:_BARS]
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for name in ("token", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("-" + " " * (2 * _HALF - 1) + "+", no_wrap=True)
    for place in sorted(order.tolist()):
        score = float(found.scores[place])
        length = round(_HALF * _part(score, largest))
        left, right = ("█" * length, "") if score < 0 else ("", "█" * length)
        bar = Text(f"{left:>{_HALF}}|{right}", _STYLES[(score > 0) - (score < 0)])
        table.add_row(Text(_shown(tokens[place]), "dim" if tokens[place].special else ""), f"{score:+.4f}", bar)
    if len(tokens) > _BARS:
        table.caption = f"{_BARS} of {len(tokens)} tokens, those with the largest scores"
    return table


def _said(found: Attribution) -> str:
    error = found.completeness_error
    return f"completeness error {'not defined' if error is None else f'{error:.4f}'}; {found.note}"


def _largest(found: Attribution) -> float:
    scores = np.abs(found.scores[np.isfinite(found.scores)])
    return float(scores.max()) if len(scores) else 0.0


def _part(score: float, largest: float) -> float:
    """Give how large a score is as a part of the largest; 0 for one that is no number."""
    return abs(score) / largest if largest and np.isfinite(score) else 0.0


def _shown(token: Token) -> str:
    return shorten(token.text, _TOKEN)
