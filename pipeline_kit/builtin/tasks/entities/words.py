"""From a label for each token to one for each word, and from those to entities."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.entities.labels import LabelTable
from pipeline_kit.contract.types import Encoding, RowOutput
from pipeline_kit.errors import StageError

Aggregation = Literal["none", "simple", "first", "average", "max"]
LABELS, SCORES = "labels", "scores"


@dataclass(frozen=True)
class Pieces:
    """``P`` runs of tokens in order: tokens, words or entities, each with a label's number and a score.

    :param starts: the first token of each, ``[P]``.
    :param ends: the one behind its last, ``[P]``.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[Any]


def pieces_of_tokens(tokens: Tokens, table: LabelTable) -> Pieces:
    """Return each token by itself; those of a torn character all take what its first one has."""
    labels, scores = tokens.values[LABELS], tokens.values[SCORES]
    torn = _fresh(labels, table) & tokens.inside
    if torn.any():
        firsts = np.flatnonzero(~tokens.inside)
        owner = np.cumsum(~tokens.inside) - 1
        takes = np.isin(owner, owner[torn])
        labels = np.where(takes, labels[firsts][owner], labels)
        scores = np.where(takes, scores[firsts][owner], scores)
    places = np.arange(len(labels))
    return Pieces(places, places + 1, labels, scores)


def pieces_of_words(tokens: Tokens, begins: NDArray[np.bool_], how: Aggregation) -> Pieces:
    """Return each word one label: that of its first token, of its best one, or the best of the mean scores.

    :param begins: whether a word begins with the token, ``[N]``.
    :param how: ``first`` (and ``none``), ``max`` or ``average``.
    """
    at = np.flatnonzero(begins)
    ends = np.append(at[1:], len(begins))
    scores = tokens.values[SCORES]
    if how == "average":
        means = np.add.reduceat(scores, at, axis=0, dtype=np.float64) / (ends - at)[:, None]
        labels = means.argmax(axis=1)
        chosen = means[np.arange(len(at)), labels]
    else:
        best = at
        if how == "max":
            owner = np.cumsum(begins) - 1
            hits = np.flatnonzero(scores == np.maximum.reduceat(scores, at)[owner])
            best = hits[np.searchsorted(owner[hits], np.arange(len(at)))]  # the first of equal ones
        labels, chosen = tokens.values[LABELS][best], scores[best]
    return Pieces(at, ends, labels, chosen)


def group(pieces: Pieces, table: LabelTable, inside: NDArray[np.bool_] | None = None) -> Pieces:
    """Join neighbours of one tag to entities, none of which begins `inside` a character; the score is their mean."""
    fresh = _fresh(pieces.labels, table)
    if inside is not None:
        fresh &= ~inside
    at = np.flatnonzero(fresh)
    lasts = np.append(at[1:], len(fresh)) - 1
    means = np.add.reduceat(pieces.scores, at, dtype=np.float64) / (lasts - at + 1)
    return Pieces(pieces.starts[at], pieces.ends[lasts], pieces.labels[at], means)


def _fresh(labels: NDArray[np.int64], table: LabelTable) -> NDArray[np.bool_]:
    """Return where an entity begins, by labels alone."""
    fresh = table.begins[labels]
    fresh[:1] = True
    tags = table.tags[labels]
    fresh[1:] |= tags[1:] != tags[:-1]
    return fresh


_JOINERS = "\u200c\u200d"


def words_of_text(tokens: Tokens, text: str) -> NDArray[np.bool_]:
    """Return for each token whether a word begins with it, ``[N]``; there must be a token.

    A word begins where the tokenizer begins one, and behind white space, since some tokenizers take a whole text for
    one word. Blanks before a word belong to it. What some tokenizers split for reasons of their own stays together:
    the digits of a number, and a letter with its combining marks.
    """
    spaces = _spaces(text)
    # The number of white characters before each place; between two tokens also the last and the first of theirs count.
    before = np.concatenate([[0], np.cumsum(spaces)])
    last, first = np.maximum(tokens.ends[:-1] - 1, 0), np.minimum(tokens.starts[1:] + 1, len(text))
    blank = before[tokens.ends] - before[tokens.starts] == tokens.ends - tokens.starts
    spaced = (before[np.maximum(first, last)] > before[last]) & ~blank[:-1]
    begins = np.ones(len(tokens.starts), dtype=bool)
    begins[1:] = (tokens.breaks[1:] | spaced) & ~tokens.inside[1:]
    for i in (np.flatnonzero(begins[1:] & ~spaced) + 1).tolist():
        end, start = int(tokens.ends[i - 1]), int(tokens.starts[i])
        begins[i] = end != start or not 0 < start < len(text) or not _one_word(text[end - 1], text[start])
    return begins


def given_words(tokens: Tokens, text: str, words: Sequence[str]) -> NDArray[np.bool_]:
    """Return for each token whether a word begins with it, ``[N]``, where `text` is `words` joined by a blank."""
    lengths = np.fromiter((len(word) + 1 for word in words), dtype=np.int64, count=len(words))
    beginnings = np.cumsum(lengths) - lengths
    # A token may begin with blanks; its word is that of the first character that is none.
    places = np.where(_spaces(text), len(text), np.arange(len(text)))
    solid = np.append(np.minimum.accumulate(places[::-1])[::-1], len(text))
    owners = np.searchsorted(beginnings, solid[tokens.starts], side="right")
    begins = np.ones(len(tokens.starts), dtype=bool)
    begins[1:] = (owners[1:] != owners[:-1]) & ~tokens.inside[1:]
    return begins


def _spaces(text: str) -> NDArray[np.bool_]:
    """Return for each character whether it is white space."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype="<U1")
    return np.asarray(np.char.isspace(characters), dtype=bool)


def _one_word(left: str, right: str) -> bool:
    """Return whether neighbouring characters belong to one word even if a tokenizer splits them."""
    if left.isdecimal() and right.isdecimal():
        return True
    return _joins(right) or (_joins(left) and right.isalpha())


def _joins(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character).startswith("M")


@dataclass(frozen=True)
class Tokens:
    """The ``N`` tokens of a text in order, special tokens left out.

    :param starts: where each begins in the text, ``[N]``.
    :param ends: where each ends, ``[N]``, never before the end of one that precedes it.
    :param inside: whether it begins before the end of one that precedes it, ``[N]``: both then hold a part of one
        character, such as the four bytes of an emoji.
    :param breaks: whether the tokenizer begins a new word with it, ``[N]``.
    :param values: what the model returned for each, by name, ``[N, …]``.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    inside: NDArray[np.bool_]
    breaks: NDArray[np.bool_]
    values: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Window:
    """The text tokens of one window: their places in it, ids, offsets ``[n, 2]`` and words.

    :param held: which tokens of the text these are, where the tokenizer says so.
    """

    places: NDArray[np.int64]
    ids: NDArray[np.int64]
    spans: NDArray[np.int64]
    words: NDArray[np.int64]
    held: tuple[int, int] | None


def merge_tokens(windows: Sequence[Encoding], rows: Sequence[RowOutput]) -> Tokens:
    """Put the windows of a text together again.

    Each token that two windows share is taken from the one where it is farther from the border, so that the model
    saw more of what stands around it; of an odd number the middle one is taken from the first.

    :raises StageError: if the model returned more or fewer values than there are tokens.
    """
    for window, row in zip(windows, rows, strict=True):
        for name, value in row.items():
            if len(value) != len(window.input_ids):
                raise StageError(f"the model returned {len(value)} '{name}' for {len(window.input_ids)} tokens")
    found = [_read(window) for window in windows]
    kept = _kept(found)
    spans = np.concatenate([w.spans[begin:end] for w, (begin, end) in zip(found, kept, strict=True)])
    starts, ends = spans[:, 0], np.maximum.accumulate(spans[:, 1])
    inside = np.zeros(len(starts), dtype=bool)
    inside[1:] = starts[1:] < ends[:-1]
    places = [w.places[begin:end] for w, (begin, end) in zip(found, kept, strict=True)]
    values = {
        name: np.concatenate([row[name][place] for row, place in zip(rows, places, strict=True)]) for name in rows[0]
    }
    return Tokens(starts, ends, inside, _breaks(found, kept), values)


def _read(window: Encoding) -> _Window:
    assert window.special_tokens_mask is not None, "`required_fields` names it"
    assert window.offsets is not None, "`required_fields` names it"
    assert window.word_ids is not None, "`required_fields` names it"
    count = len(window.input_ids)
    places = np.flatnonzero(np.asarray(window.special_tokens_mask) == 0)
    spans = np.fromiter(chain.from_iterable(window.offsets), dtype=np.int64, count=2 * count).reshape(count, 2)
    words = np.fromiter((-1 if w is None else w for w in window.word_ids), dtype=np.int64, count=count)
    ids = np.asarray(window.input_ids, dtype=np.int64)
    return _Window(places, ids[places], spans[places], words[places], window.token_span)


def _kept(windows: Sequence[_Window]) -> list[tuple[int, int]]:
    """Return the range of tokens that each window contributes."""
    begins, ends = [0] * len(windows), [len(w.places) for w in windows]
    for i, (first, second) in enumerate(pairwise(windows)):
        shared = _shared(first, second)
        if shared is not None:
            begins[i + 1] = (shared + 1) // 2
            ends[i] = max(begins[i], ends[i] - shared // 2)
        else:
            # A tokenizer that encodes each window anew may cut it differently; then the place alone counts.
            begins[i + 1] = int(np.count_nonzero(second.spans[:, 0] < first.spans[-1, 1]))
    return list(zip(begins, ends, strict=True))


def _shared(first: _Window, second: _Window) -> int | None:
    """Count the tokens at the end of `first` with which `second` begins, as told or alike; None: unknown."""
    least = min(len(first.places), len(second.places))
    if first.held is not None and second.held is not None:
        return min(max(first.held[1] - second.held[0], 0), least)
    if not least:
        return 0
    alike = (first.ids == second.ids[0]) & (first.spans == second.spans[0]).all(axis=1)
    for place in np.flatnonzero(alike).tolist():
        count = len(first.places) - place
        if count <= len(second.places) and (
            np.array_equal(first.ids[place:], second.ids[:count])
            and np.array_equal(first.spans[place:], second.spans[:count])
        ):
            return int(count)
    return None


def _breaks(windows: Sequence[_Window], kept: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return where the tokenizer's words change, comparing within a window wherever that is possible."""
    parts: list[NDArray[np.bool_]] = []
    before: int | None = None
    for window, (begin, end) in zip(windows, kept, strict=True):
        breaks = np.ones(len(window.words), dtype=bool)
        breaks[1:] = window.words[1:] != window.words[:-1]
        if begin == 0 and end > 0 and before is not None:
            breaks[0] = window.words[0] != before
        before = int(window.words[end - 1]) if end > 0 else before
        parts.append(breaks[begin:end])
    return np.concatenate(parts)
