"""One row of tokens for an example, whether its text fell into one window or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from pipeline_kit.errors import StageError
from pipeline_kit.types import Encoding, RowOutput

__all__ = ["Tokens", "merge_tokens"]

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Tokens:
    """The ``N`` tokens of a text in order, special tokens left out.

    :param starts: where each begins in the text, ``[N]``.
    :param ends: where each ends, ``[N]``, never before the end of one that precedes it.
    :param inside: whether it begins before the end of one that precedes it, ``[N]``: both then hold a part of one
        character, such as the four bytes of an emoji.
    :param breaks: whether the tokenizer begins a new word with it, ``[N]``.
    :param values: what the model gave for each, by name, ``[N, …]``.
    """

    starts: Ints
    ends: Ints
    inside: Bools
    breaks: Bools
    values: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class _Window:
    """The text tokens of one window: their places in it, ids, offsets ``[n, 2]`` and words.

    :param held: which tokens of the text these are, where the tokenizer says so.
    """

    places: Ints
    ids: Ints
    spans: Ints
    words: Ints
    held: tuple[int, int] | None


def merge_tokens(windows: Sequence[Encoding], rows: Sequence[RowOutput]) -> Tokens:
    """Put the windows of a text together again.

    Each token that two windows share is taken from the one where it is farther from the border, so that the model
    saw more of what stands around it; of an odd number the middle one is taken from the first.

    :raises StageError: if the model gave more or fewer values than there are tokens.
    """
    for window, row in zip(windows, rows, strict=True):
        for name, value in row.items():
            if len(value) != len(window.input_ids):
                raise StageError(f"the model gave {len(value)} '{name}' for {len(window.input_ids)} tokens")
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
    assert window.special_tokens_mask is not None, "`requires` names it"
    assert window.offsets is not None, "`requires` names it"
    assert window.word_ids is not None, "`requires` names it"
    count = len(window.input_ids)
    places = np.flatnonzero(np.asarray(window.special_tokens_mask) == 0)
    spans = np.fromiter(chain.from_iterable(window.offsets), dtype=np.int64, count=2 * count).reshape(count, 2)
    words = np.fromiter((-1 if w is None else w for w in window.word_ids), dtype=np.int64, count=count)
    ids = np.asarray(window.input_ids, dtype=np.int64)
    return _Window(places, ids[places], spans[places], words[places], window.span)


def _kept(windows: Sequence[_Window]) -> list[tuple[int, int]]:
    """Give the range of tokens that each window contributes."""
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
    """Count the tokens at the end of `first` with which `second` begins: as the tokenizer says, or alike.

    :returns: None if it does not say and no two are alike in id and place in the text.
    """
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


def _breaks(windows: Sequence[_Window], kept: Sequence[tuple[int, int]]) -> Bools:
    """Tell where the tokenizer's words change, comparing within a window wherever that is possible."""
    parts: list[Bools] = []
    before: int | None = None
    for window, (begin, end) in zip(windows, kept, strict=True):
        breaks = np.ones(len(window.words), dtype=bool)
        breaks[1:] = window.words[1:] != window.words[:-1]
        if begin == 0 and end > 0 and before is not None:
            breaks[0] = window.words[0] != before
        before = int(window.words[end - 1]) if end > 0 else before
        parts.append(breaks[begin:end])
    return np.concatenate(parts)
