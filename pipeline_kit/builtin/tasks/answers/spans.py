"""How likely each span of a window's context is, without a table of T x T.

Letters in shapes: ``T`` tokens of a window, ``C`` those of the context in it, ``U`` units, ``S`` spans.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.options import AnswersConfig
from pipeline_kit.contract.types import Encoding


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Where a window has its context, in tokens, and the token that stands for no answer, None if none does."""

    begin: int
    end: int
    null: int | None


@dataclass(frozen=True, slots=True)
class UnitScores:
    """The probabilities of a window's tokens.

    :param start: that the answer starts at a token, ``[C]``; the same for `end`.
    :param none: that of the token that stands for no answer, for start and for end; `null` is their product.
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    none: tuple[float, float]
    null: float


@dataclass(frozen=True, slots=True)
class ScoredSpans:
    """Spans from one unit to another with their probabilities, ``[S]`` each, in the order of their units."""

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    score: NDArray[np.float64]


def place_of(encoding: Encoding) -> UnitPlace:
    """Find the second text of a pair and the token that stands for no answer."""
    sequences = encoding.sequence_ids
    assert sequences is not None, "`required_fields` names it"
    count = sequences.count(1)
    begin = sequences.index(1) if count else 0
    return UnitPlace(begin, begin + count, null_token(encoding.input_ids, sequences))


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


def probabilities(logits: NDArray[Any], place: UnitPlace) -> UnitScores:
    """Scale logits ``[T, 2]``, for start and end, by a softmax over the context and the null token, in float64."""
    # The null token goes last; where there is none, a logit that has no probability.
    last = np.full((1, 2), np.finfo(np.float32).min) if place.null is None else logits[place.null][None]
    table = np.concatenate([logits[place.begin : place.end], last]).astype(np.float64, copy=False)
    peak = table.max(axis=0)
    table = np.exp(table - peak)
    table /= table.sum(axis=0)
    none = float(table[-1, 0]), float(table[-1, 1])
    return UnitScores(table[:-1, 0], table[:-1, 1], none, none[0] * none[1])


def word_index(encoding: Encoding, place: UnitPlace, words: bool) -> NDArray[np.int64]:
    """Return the unit of each context token, ``[C]``: its word where the tokenizer has `words`, else the token."""
    if not words or encoding.word_ids is None:
        return np.arange(place.end - place.begin)
    ids = encoding.word_ids[place.begin : place.end]
    known = np.array([-1 if word is None else word for word in ids], dtype=np.int64)
    begins = np.ones(len(ids), dtype=bool)
    begins[1:] = (known[1:] != known[:-1]) | (known[1:] < 0)
    return np.cumsum(begins) - 1


def score_spans(scores: UnitScores, unit: NDArray[np.int64], longest: int) -> ScoredSpans:
    """Return the probability of each span of at most `longest` tokens, added up over the spans of the same units.

    Start and end are independent, so the probability of a span is their product, and that of a span of words the
    sum over the tokens of its first and of its last word.

    :param unit: the unit of each token, ``[C]``.
    """
    count = len(unit)
    longest = min(longest, count)
    if not count:
        return ScoredSpans(unit, unit, scores.start)
    # Row i of [C, longest] holds the spans from token i to the ones behind it; beyond the last one there is none.
    ends = sliding_window_view(np.append(scores.end, np.zeros(longest - 1)), longest)
    lasts = sliding_window_view(np.append(unit, np.full(longest - 1, -1)), longest)
    inside = lasts >= 0
    keys = (unit[:, None] * (longest - 1) + lasts)[inside]  # first * longest + (last - first)
    size = (int(unit[-1]) + 1) * longest
    sums = np.bincount(keys, weights=(scores.start[:, None] * ends)[inside], minlength=size)
    there = np.flatnonzero(np.bincount(keys, minlength=size))
    first = there // longest
    return ScoredSpans(first, first + there % longest, np.asarray(sums[there], dtype=np.float64))


_LAST_SPACE = 0x3000  # no white space has a larger code
_SPACES = np.array([chr(code).isspace() for code in range(_LAST_SPACE + 1)] + [False])

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: where it is the likeliest, in characters, and its score, the sum over all its places."""

    score: float
    start: int
    end: int


class Context:
    """A context's text with what is needed to cut many slices out of it at once."""

    def __init__(self, text: str) -> None:
        self.text = text
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)
        count = len(codes)
        space = _SPACES[np.minimum(codes, _LAST_SPACE + 1)]
        places = np.arange(count)
        # By place: the first character from there on that is not white space, and the end of the last one before.
        self._left = np.append(np.minimum.accumulate(np.where(space, count, places)[::-1])[::-1], count)
        self._right = np.append(0, np.maximum.accumulate(np.where(space, 0, places + 1)))
        self._unmarked = _unmarked(codes)
        # A polynomial modulo 2**64: equal slices have equal hashes wherever they are.
        powers, self._inverse = (np.cumprod(np.full(count + 1, base, dtype=np.uint64)) for base in (_BASE, _INVERSE))
        self._sums = np.append(np.uint64(0), np.cumsum((codes + 1).astype(np.uint64) * powers[:count]))

    def trimmed(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Take white space off both ends of slices, and add the last letter's accents; empty ones end too early.

        A tokenizer that strips accents leaves those that are characters of their own out of its offsets.
        """
        if self._unmarked is not None:
            end = self._unmarked[end]
        return self._left[begin], self._right[end]

    def hashes(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return a number for each slice, the same one for the same text."""
        found: NDArray[np.uint64] = (self._sums[end] - self._sums[begin]) * self._inverse[begin]
        return found


def _unmarked(codes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return by place the first character from there on that is not an accent; None if there is none at all."""
    known = np.unique(codes)
    marks = [code for code in known[np.searchsorted(known, 0x300) :].tolist() if unicodedata.combining(chr(code))]
    if not marks:
        return None
    count = len(codes)
    plain = np.where(np.isin(codes, marks), count, np.arange(count))
    return np.append(np.minimum.accumulate(plain[::-1])[::-1], count)


def edges(
    encodings: Sequence[Encoding], places: Sequence[UnitPlace], at: int, unit: NDArray[np.int64], words: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the units of a window begin and end in the context, in characters, ``[U]`` each.

    :param encodings: the context's windows; this one is number `at`.
    :param unit: the unit of each token of its context.
    :param words: whether units are words; one that the window has not all of is widened to the whole.
    """
    offsets = _offsets(encodings[at], places[at])
    if not len(unit):
        return unit, unit
    firsts = np.flatnonzero(np.diff(unit, prepend=-1))
    lasts = np.append(firsts[1:], len(unit)) - 1
    begins = np.array([offsets[i][0] for i in firsts.tolist()], dtype=np.int64)
    ends = np.array([offsets[i][1] for i in lasts.tolist()], dtype=np.int64)
    if words and len(encodings) > 1:
        begins[0] = _widened(encodings, places, at, int(begins[0]), -1)
        ends[-1] = _widened(encodings, places, at, int(ends[-1]), 1)
    return begins, ends


def best_texts(
    context: Context, begins: NDArray[np.int64], ends: NDArray[np.int64], spans: ScoredSpans, top_k: int
) -> dict[str, Answer]:
    """Return the texts of a window with the highest sums over their spans, `top_k` or, of equal ones, more."""
    start, end = context.trimmed(begins[spans.first], ends[spans.last])
    real = start < end
    start, end, score = start[real], end[real], spans.score[real]
    if not len(score):
        return {}
    hashes = context.hashes(start, end)
    order = np.argsort(hashes)
    first = np.flatnonzero(np.append(True, np.diff(hashes[order]) != 0))
    sums = np.add.reduceat(score[order], first)
    least = 0.0 if len(sums) <= top_k else np.partition(sums, -top_k)[-top_k]
    stops = np.append(first[1:], len(order))
    found: dict[str, Answer] = {}
    for group in np.flatnonzero(sums >= least).tolist():
        members = np.sort(order[first[group] : stops[group]])  # in the order of the context
        found |= _by_text(context.text, members, start, end, score)
    return found


def _by_text(
    text: str, members: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64], score: NDArray[np.float64]
) -> dict[str, Answer]:
    """Make an answer of slices with one hash, which are one text; two texts of one hash stay two."""
    found: dict[str, tuple[float, float, int, int]] = {}
    rows = zip(start[members].tolist(), end[members].tolist(), score[members].tolist(), strict=True)
    for begin, stop, value in rows:
        piece = text[begin:stop]
        total, best, *place = found.get(piece, (0.0, -1.0, begin, stop))
        if value > best:
            best, place = value, [begin, stop]
        found[piece] = (total + value, best, place[0], place[1])
    return {piece: Answer(total, begin, stop) for piece, (total, _, begin, stop) in found.items()}


def merged(windows: Iterable[Mapping[str, Answer]]) -> dict[str, Answer]:
    """Return each text of several windows as the window has it in which it is the likeliest, the first of equal ones.

    Sums would count an answer in what two windows share twice, and could be more than 1.
    """
    found: dict[str, Answer] = {}
    for window in windows:
        for text, answer in window.items():
            known = found.get(text)
            if known is None or answer.score > known.score:
                found[text] = answer
    return found


def _widened(encodings: Sequence[Encoding], places: Sequence[UnitPlace], at: int, edge: int, step: int) -> int:
    """Go through the windows that have the outermost word of window `at` too, and return where that word ends.

    :param edge: where it does in window `at`.
    :param step: 1 for the last word and its end, -1 for the first one and its beginning.
    """
    outermost = -1 if step > 0 else 0
    word = _words(encodings[at], places[at])[outermost]
    for other in range(at + step, len(encodings) if step > 0 else -1, step):
        same = [i for i, found in enumerate(_words(encodings[other], places[other])) if found == word]
        if word is None or not same:
            break
        edge = _offsets(encodings[other], places[other])[same[outermost]][outermost]
    return edge


def _words(encoding: Encoding, place: UnitPlace) -> Sequence[int | None]:
    return (encoding.word_ids or [None])[place.begin : place.end] or [None]


def _offsets(encoding: Encoding, place: UnitPlace) -> Sequence[tuple[int, int]]:
    assert encoding.offsets is not None, "`required_fields` names it"
    return encoding.offsets[place.begin : place.end]


@dataclass(frozen=True)
class WindowSteps:
    """One window with all that leads to its answers.

    :param logits: for start and end, ``[T, 2]``.
    :param unit: the unit of each token of the context, ``[C]``; `begins` and `ends` are those of units.
    """

    encoding: Encoding
    place: UnitPlace
    logits: NDArray[Any]
    scores: UnitScores
    unit: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    spans: ScoredSpans
    answers: Mapping[str, Answer]


def window_steps(
    config: AnswersConfig, context: Context, encodings: Sequence[Encoding], logits: Sequence[NDArray[Any]], top_k: int
) -> list[WindowSteps]:
    """Score each window of a context by itself, with `top_k` answers; `logits` are for start and end, ``[T, 2]``."""
    places = [place_of(encoding) for encoding in encodings]
    found = []
    for at, (encoding, place, rows) in enumerate(zip(encodings, places, logits, strict=True)):
        scores = probabilities(rows, place)
        unit = word_index(encoding, place, config.align_to_words)
        begins, ends = edges(encodings, places, at, unit, config.align_to_words)
        spans = score_spans(scores, unit, config.max_answer_len)
        texts = best_texts(context, begins, ends, spans, top_k)
        found.append(WindowSteps(encoding, place, rows, scores, unit, begins, ends, spans, texts))
    return found


def ranked_answers(windows: Sequence[WindowSteps], empty: bool) -> list[tuple[str, Answer]]:
    """Return the answers of all windows, with the `empty` one if it competes, best first, the earlier of equal ones."""
    answers = merged(window.answers for window in windows)
    if empty:
        answers[""] = Answer(min(window.scores.null for window in windows), 0, 0)
    return sorted(answers.items(), key=lambda item: (-item[1].score, item[1].start, item[1].end))
