"""Which tokens of a long encoding stay: truncation and windows as index ranges, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_kit.errors import ExampleError

__all__ = ["Layout", "Span", "layout", "longest_first", "truncated", "windows"]

Span = tuple[int, int]
"""Begin and end of a run of tokens that stay."""


@dataclass(frozen=True, slots=True)
class Layout:
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


def layout(sequence_ids: Sequence[int | None], texts: int) -> Layout:
    """Find the texts of an encoding by its sequence ids."""
    counts = tuple(sequence_ids.count(text) for text in range(texts))
    starts = tuple(sequence_ids.index(text) if count else 0 for text, count in enumerate(counts))
    return Layout(len(sequence_ids), starts, counts)


def truncated(where: Layout, max_length: int, left: bool) -> list[Span]:
    """Cut to `max_length`: the longer text of a pair first, as transformers does with ``truncation=True``.

    :param left: cut at the beginning of each text instead of its end.
    :raises ExampleError: if the special tokens alone do not fit.
    """
    room = _room(where, max_length)
    kept = (room,) if len(where.counts) == 1 else longest_first(where.counts[0], where.counts[1], room)
    gone: list[Span] = []
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


def windows(where: Layout, max_length: int, overlap: int) -> list[list[Span]]:
    """Split the longer text, the second of two equal ones, keeping the other whole in each window.

    :returns: for each window the spans that stay; neighbours share exactly `overlap` tokens of the text.
    :raises ExampleError: if the other text leaves no room for windows with that overlap.
    """
    text = 0 if len(where.counts) == 1 or where.counts[0] > where.counts[1] else 1
    start, count = where.starts[text], where.counts[text]
    others = sum(where.counts) - count
    room = _room(where, max_length) - others
    if room <= overlap:
        raise ExampleError(
            f"the shorter text of the pair has {others} tokens, which leaves {max(room, 0)} of max_length "
            f"{max_length} for windows of the longer one; they need more than overlap, {overlap}"
        )
    found: list[list[Span]] = []
    begin = 0
    while True:
        end = min(begin + room, count)
        found.append(_without(where.total, [(start, start + begin), (start + end, start + count)]))
        if end == count:
            return found
        begin += room - overlap


def _room(where: Layout, max_length: int) -> int:
    room = max_length - where.specials
    if room < 1:
        raise ExampleError(f"{where.specials} special tokens leave no room for text in max_length {max_length}")
    return room


def _without(total: int, gone: Sequence[Span]) -> list[Span]:
    """Give what is left of `total` tokens when the ranges in `gone` are taken out."""
    kept: list[Span] = []
    begin = 0
    for start, end in sorted(span for span in gone if span[0] < span[1]):
        if begin < start:
            kept.append((begin, start))
        begin = end
    if begin < total:
        kept.append((begin, total))
    return kept
