"""Which tokens of a long encoding stay: truncation and windows as index ranges, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_kit.contract.stages import PAIR, Truncation
from pipeline_kit.errors import ExampleError

TokenSpan = tuple[int, int]
"""Begin and end of a run of tokens that stay."""

OVERLAP = 128
"""Tokens that neighbouring windows share where nobody says; as transformers 4 had it for question answering."""


@dataclass(frozen=True, slots=True)
class SpanLayout:
    """Where the texts of an untruncated encoding stand among the special tokens.

    :param total: tokens of the encoding.
    :param starts: the first token of each text.
    :param counts: the tokens of each text.
    """

    total: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def specials(self) -> int:
        """The tokens that belong to no text."""
        return self.total - sum(self.counts)


def layout(sequence_ids: Sequence[int | None], texts: int) -> SpanLayout:
    """Find the texts of an encoding by its sequence ids."""
    counts = tuple(sequence_ids.count(text) for text in range(texts))
    starts = tuple(sequence_ids.index(text) if count else 0 for text, count in enumerate(counts))
    return SpanLayout(len(sequence_ids), starts, counts)


def truncated(
    where: SpanLayout,
    max_length: int,
    left: bool,
    truncation: Truncation = "longest_first",
    names: tuple[str, str] = PAIR,
) -> list[TokenSpan]:
    """Cut to `max_length`, by the strategies of transformers; ``longest_first`` is its ``truncation=True``.

    :param left: cut at the beginning of each text instead of its end.
    :param names: what the message calls the two texts.
    :raises ExampleError: if the special tokens alone, or the text that is not to be cut, do not fit.
    """
    room = _room(where, max_length)
    if len(where.counts) == 1:
        kept: tuple[int, ...] = (room,)
    elif truncation == "longest_first":
        kept = longest_first(where.counts[0], where.counts[1], room)
    else:
        cut = 0 if truncation == "only_first" else 1
        rest = room - where.counts[1 - cut]
        if rest < 1:
            raise ExampleError(_no_room(cut, where, max_length, names))
        kept = (rest, where.counts[1]) if cut == 0 else (where.counts[0], rest)
    gone: list[TokenSpan] = []
    for start, count, keep in zip(where.starts, where.counts, kept, strict=True):
        gone.append((start, start + count - keep) if left else (start + keep, start + count))
    return _without(where.total, gone)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Share `room` tokens between the two texts of a pair.

    The shorter text stays whole while it takes at most half of the room; of an odd room the longer
    text, or the second of two equal ones, has the extra token. This is the rule of the tokenizers library.
    """
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    short_kept = min(short, room // 2)
    long_kept = min(long, room - short_kept)
    return (long_kept, short_kept) if first > second else (short_kept, long_kept)


def windows(
    where: SpanLayout,
    max_length: int,
    overlap: int | None,
    truncation: Truncation = "longest_first",
    names: tuple[str, str] = PAIR,
) -> list[tuple[list[TokenSpan], TokenSpan]]:
    """Split the text that `truncation` would cut, keeping the other whole in each window.

    ``longest_first`` splits the longer text, the second of two equal ones.

    :param overlap: None: :data:`OVERLAP` tokens, or half of a window's text if that is less.
    :param names: what the message calls the two texts.
    :returns: for each window the spans that stay, and what it holds of the text, in tokens from the text's first;
        neighbours share exactly `overlap` tokens.
    :raises ExampleError: if the other text leaves no room for windows with that overlap.
    """
    longer = truncation == "longest_first" and len(where.counts) > 1 and where.counts[0] <= where.counts[1]
    text = int(longer or (truncation == "only_second" and len(where.counts) > 1))
    count, start = where.counts[text], where.starts[text]
    others = sum(where.counts) - count
    room = _room(where, max_length) - others
    overlap = min(OVERLAP, max(room, 0) // 2) if overlap is None else overlap
    if room <= overlap:
        if room < 1:
            raise ExampleError(_no_room(text, where, max_length, names))
        raise ExampleError(
            f"{names[1 - text]} has {others} tokens, which leaves {room} of max_length {max_length} for windows of "
            f"{names[text]}; they need more than overlap, {overlap}. Shorten the one, raise tokenizer.max_length, "
            "or lower tokenizer.overlap"
        )
    found: list[tuple[list[TokenSpan], TokenSpan]] = []
    begin = 0
    while True:
        end = min(begin + room, count)
        kept = _without(where.total, [(start, start + begin), (start + end, start + count)])
        found.append((kept, (begin, end)))
        if end == count:
            return found
        begin += room - overlap


def _no_room(cut: int, where: SpanLayout, max_length: int, names: tuple[str, str]) -> str:
    """Return the error for a text that must stay whole and takes all the room; `cut` is the other one."""
    return (
        f"{names[1 - cut]} has {where.counts[1 - cut]} tokens and may not be cut; with {where.specials} special "
        f"tokens that leaves no room for {names[cut]} in max_length {max_length}. Shorten it, or raise "
        "tokenizer.max_length where the model allows that"
    )


def _room(where: SpanLayout, max_length: int) -> int:
    room = max_length - where.specials
    if room < 1:
        raise ExampleError(f"{where.specials} special tokens leave no room for text in max_length {max_length}")
    return room


def _without(total: int, gone: Sequence[TokenSpan]) -> list[TokenSpan]:
    """Return what is left of `total` tokens when the ranges in `gone` are taken out."""
    kept: list[TokenSpan] = []
    begin = 0
    for start, end in sorted(span for span in gone if span[0] < span[1]):
        if begin < start:
            kept.append((begin, start))
        begin = end
    if begin < total:
        kept.append((begin, total))
    return kept
