"""Attributions as bars and as text whose tokens are shaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline_kit.explain.html_batches import spelled
from pipeline_kit.explain.html_charts import Bars, bars
from pipeline_kit.explain.html_text import number
from pipeline_kit.explain.trace import Attribution, SequenceTrace

__all__ = ["AttributionView", "Piece", "attribution_view"]

MOST = 24
"""So many tokens have a bar: those that moved the result most, in the order of the text."""

_SHADES = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """A token with its score and shade (``p1`` to ``p4``, ``n1`` to ``n4`` or ''), or the text between two."""

    text: str
    score: str
    shade: str


@dataclass(frozen=True, slots=True)
class AttributionView:
    """One attribution of one sequence; each of `texts` is a text in pieces."""

    method: str
    target: str
    sequence: int
    error: str
    note: str
    bars: Bars
    left_out: int
    texts: tuple[tuple[Piece, ...], ...]


def attribution_view(found: Attribution, sequence: SequenceTrace) -> AttributionView:
    """Draw `found`, which is of `sequence`."""
    scores = [float(score) for score in found.scores.tolist()]
    names = spelled(sequence)
    order = sorted(range(min(len(scores), len(names))), key=lambda place: -_size(scores[place]))
    shown = sorted(order[:MOST])
    error = (
        "the method promises no sum" if found.completeness_error is None else number(float(found.completeness_error))
    )
    return AttributionView(
        method=found.method,
        target=found.target,
        sequence=found.sequence,
        error=error,
        note=found.note,
        bars=bars([names[place] for place in shown], [scores[place] for place in shown]),
        left_out=len(order) - len(shown),
        texts=tuple(_pieces(sequence, scores, which) for which in range(len(sequence.source))),
    )


def _size(score: float) -> float:
    return abs(score) if math.isfinite(score) else 0.0


def _pieces(sequence: SequenceTrace, scores: list[float], which: int) -> tuple[Piece, ...]:
    """Cut one of the texts where its tokens begin and end; tokens that overlap lose what was shown before."""
    text, at, pieces = sequence.source[which], 0, []
    most = max(map(_size, scores), default=0.0) or 1.0
    for token, score in zip(sequence.tokens, scores, strict=False):
        if token.start is None or token.end is None or token.special or (token.sequence or 0) != which:
            continue
        start, end = max(at, token.start), min(token.end, len(text))
        if end <= start:
            continue
        if start > at:
            pieces.append(Piece(text[at:start], "", ""))
        pieces.append(Piece(text[start:end], number(score), _shade(score, most)))
        at = end
    if at < len(text):
        pieces.append(Piece(text[at:], "", ""))
    return tuple(pieces)


def _shade(score: float, most: float) -> str:
    level = math.ceil(_SHADES * _size(score) / most - 0.2)
    return f"{'n' if score < 0 else 'p'}{min(_SHADES, level)}" if level > 0 else ""
