"""How likely each span of a window's context is, without a table of T x T.

Letters in shapes: ``T`` tokens of a window, ``C`` those of the context in it, ``U`` units, ``S`` spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline_kit.types import Encoding

__all__ = [
    "Floats",
    "Ints",
    "Place",
    "Scores",
    "Spans",
    "null_token",
    "place_of",
    "probabilities",
    "shares",
    "spans",
    "units",
]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a window has its context, in tokens, and the token that stands for no answer, None if none does."""

    begin: int
    end: int
    null: int | None


@dataclass(frozen=True, slots=True)
class Scores:
    """The probabilities of a window's tokens.

    :param start: that the answer starts at a token, ``[C]``; the same for `end`.
    :param null: that there is no answer.
    :param weight: the logarithm of what start and end were divided by, to tell a window of large logits.
    """

    start: Floats
    end: Floats
    null: float
    weight: float


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans from one unit to another with their probabilities, ``[S]`` each, in the order of their units."""

    first: Ints
    last: Ints
    score: Floats


def place_of(encoding: Encoding) -> Place:
    """Find the second text of a pair and the token that stands for no answer."""
    sequences = encoding.sequence_ids
    assert sequences is not None, "`requires` names it"
    count = sequences.count(1)
    begin = sequences.index(1) if count else 0
    return Place(begin, begin + count, null_token(encoding.input_ids, sequences))


def null_token(ids: Sequence[int], sequences: Sequence[int | None]) -> int | None:
    """Find the special token that stands for the whole pair, on which models are trained to put 'no answer'.

    That is the first one of BERT, RoBERTa and their like, and the last one of XLNet; a separator, which a pair has
    twice, is none.
    """
    if sequences[0] is None:
        return 0
    if sequences[-1] is None:
        special = [id for id, sequence in zip(ids, sequences, strict=True) if sequence is None]
        return len(ids) - 1 if special.count(ids[-1]) == 1 else None
    return None


def probabilities(logits: np.ndarray[Any, Any], place: Place) -> Scores:
    """Scale logits ``[T, 2]``, for start and end, by a softmax over the context and the null token, in float64."""
    # The null token goes last; where there is none, a logit that has no probability.
    last = np.full((1, 2), np.finfo(np.float32).min) if place.null is None else logits[place.null][None]
    table = np.concatenate([logits[place.begin : place.end], last]).astype(np.float64, copy=False)
    peak = table.max(axis=0)
    table = np.exp(table - peak)
    total = table.sum(axis=0)
    table /= total
    return Scores(table[:-1, 0], table[:-1, 1], float(table[-1].prod()), float((peak + np.log(total)).sum()))


def shares(windows: Sequence[Scores]) -> list[float]:
    """Weight the windows of a context so that the probabilities of all of them together add up to 1.

    A window's share is its part in the sum of exp(start logit + end logit) over all windows. This is the "shared
    normalization" of https://arxiv.org/abs/1710.10723; it orders answers as the evaluation of SQuAD does, by their
    sums of logits.
    """
    weights = np.array([scores.weight for scores in windows])
    weights = np.exp(weights - weights.max())
    found: list[float] = (weights / weights.sum()).tolist()
    return found


def units(encoding: Encoding, place: Place, words: bool) -> Ints:
    """Give numbers from 0 to the parts of which answers are made: words where the tokenizer tells them, else tokens.

    :param words: False for tokens in any case.
    :returns: the unit of each token of the context, ``[C]``.
    """
    if not words or encoding.word_ids is None:
        return np.arange(place.end - place.begin)
    ids = encoding.word_ids[place.begin : place.end]
    known = np.array([-1 if word is None else word for word in ids], dtype=np.int64)
    begins = np.ones(len(ids), dtype=bool)
    begins[1:] = (known[1:] != known[:-1]) | (known[1:] < 0)
    return np.cumsum(begins) - 1


def spans(scores: Scores, unit: Ints, longest: int) -> Spans:
    """Give the probability of each span of at most `longest` tokens, added up over the spans of the same units.

    Start and end are independent, so the probability of a span is their product, and that of a span of words the
    sum over the tokens of its first and of its last word.

    :param unit: the unit of each token, ``[C]``.
    """
    count = len(unit)
    longest = min(longest, count)
    if not count:
        return Spans(unit, unit, scores.start)
    # Row i of [C, longest] holds the spans from token i to the ones behind it; beyond the last one there is none.
    ends = sliding_window_view(np.append(scores.end, np.zeros(longest - 1)), longest)
    lasts = sliding_window_view(np.append(unit, np.full(longest - 1, -1)), longest)
    inside = lasts >= 0
    keys = (unit[:, None] * (longest - 1) + lasts)[inside]  # first * longest + (last - first)
    size = (int(unit[-1]) + 1) * longest
    sums = np.bincount(keys, weights=(scores.start[:, None] * ends)[inside], minlength=size)
    there = np.flatnonzero(np.bincount(keys, minlength=size))
    first = there // longest
    return Spans(first, first + there % longest, np.asarray(sums[there], dtype=np.float64))
