"""From a label for each token to one for each word, and from those to entities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline_kit.builtin.postprocessors.entity_labels import LabelTable
from pipeline_kit.builtin.postprocessors.entity_windows import Tokens

__all__ = ["LABELS", "SCORES", "Aggregation", "Pieces", "group", "pieces_of_tokens", "pieces_of_words"]

Aggregation = Literal["none", "simple", "first", "average", "max"]
LABELS, SCORES = "labels", "scores"

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Pieces:
    """``P`` runs of the text in order, each with a label: tokens, words or entities.

    :param starts: where each begins, ``[P]``.
    :param ends: where each ends, ``[P]``.
    :param labels: the number of its label, ``[P]``.
    :param scores: its score, ``[P]``.
    """

    starts: Ints
    ends: Ints
    labels: Ints
    scores: np.ndarray[Any, Any]


def pieces_of_tokens(tokens: Tokens, table: LabelTable) -> Pieces:
    """Give each token by itself.

    Where an entity would begin within a character, all tokens of that character take what its first one has.
    """
    labels, scores = tokens.values[LABELS], tokens.values[SCORES]
    torn = _fresh(labels, table) & tokens.inside
    if torn.any():
        firsts = np.flatnonzero(~tokens.inside)
        owner = np.cumsum(~tokens.inside) - 1
        takes = np.isin(owner, owner[torn])
        labels = np.where(takes, labels[firsts][owner], labels)
        scores = np.where(takes, scores[firsts][owner], scores)
    return Pieces(tokens.starts, tokens.ends, labels, scores)


def pieces_of_words(tokens: Tokens, begins: Bools, how: Aggregation) -> Pieces:
    """Give each word one label: that of its first token, of its best one, or the best of the mean scores.

    :param begins: whether a word begins with the token, ``[N]``.
    :param how: ``first`` (and ``none``), ``max`` or ``average``.
    """
    at = np.flatnonzero(begins)
    lasts = np.append(at[1:], len(begins)) - 1
    scores = tokens.values[SCORES]
    if how == "average":
        means = np.add.reduceat(scores, at, axis=0, dtype=np.float64) / (lasts - at + 1)[:, None]
        labels = means.argmax(axis=1)
        chosen = means[np.arange(len(at)), labels]
    else:
        best = at
        if how == "max":
            owner = np.cumsum(begins) - 1
            hits = np.flatnonzero(scores == np.maximum.reduceat(scores, at)[owner])
            best = hits[np.searchsorted(owner[hits], np.arange(len(at)))]  # the first of equal ones
        labels, chosen = tokens.values[LABELS][best], scores[best]
    return Pieces(tokens.starts[at], tokens.ends[lasts], labels, chosen)


def group(pieces: Pieces, table: LabelTable, inside: Bools | None = None) -> Pieces:
    """Join neighbours of one tag, unless the second one's label begins an entity; the score is their mean.

    :param inside: where no entity may begin, ``[P]``.
    """
    fresh = _fresh(pieces.labels, table)
    if inside is not None:
        fresh &= ~inside
    at = np.flatnonzero(fresh)
    lasts = np.append(at[1:], len(fresh)) - 1
    means = np.add.reduceat(pieces.scores, at, dtype=np.float64) / (lasts - at + 1)
    return Pieces(pieces.starts[at], pieces.ends[lasts], pieces.labels[at], means)


def _fresh(labels: Ints, table: LabelTable) -> Bools:
    """Tell where an entity begins, by labels alone."""
    fresh = table.begins[labels]
    fresh[:1] = True
    tags = table.tags[labels]
    fresh[1:] |= tags[1:] != tags[:-1]
    return fresh
