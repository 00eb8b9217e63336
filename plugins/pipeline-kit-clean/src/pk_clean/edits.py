"""Replacements in a text, and the way back from places in the new text to places in the old one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Edit = tuple[int, int, str]
"""Begin and end of a piece of the old text, and what is written for it."""


@dataclass(frozen=True, slots=True)
class Way:
    """Where each replaced piece stands in the new text and stood in the old one, in order."""

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    old_begins: NDArray[np.int64]
    old_ends: NDArray[np.int64]


def apply(text: str, edits: Iterable[Edit]) -> tuple[str, Way | None]:
    """Replace pieces of `text`.

    :param edits: in order, without overlaps.
    :returns: the new text and the way back, None if nothing changed.
    """
    parts: list[str] = []
    places: list[tuple[int, int, int, int]] = []
    done = length = 0
    for begin, end, new in edits:
        parts += (text[done:begin], new)
        length += begin - done
        places.append((length, length + len(new), begin, end))
        length += len(new)
        done = end
    if not places:
        return text, None
    parts.append(text[done:])
    return "".join(parts), Way(*np.array(places, dtype=np.int64).T)


def trace(ways: Sequence[Way], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the places in the oldest text that `spans` of the newest one come from.

    A span that begins or ends inside a replacement takes in the whole piece that was replaced. Pieces
    that were deleted beside a span are not part of it.

    :param ways: those of one replacement after another, oldest first.
    """
    begins, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    for way in reversed(ways):
        begins, ends = _old_begins(way, begins), _old_ends(way, ends)
    return list(zip(begins.tolist(), np.maximum(begins, ends).tolist(), strict=True))


def _old_begins(way: Way, places: NDArray[np.int64]) -> NDArray[np.int64]:
    last = np.searchsorted(way.begins, places, side="right") - 1
    inside = places < way.ends[last]
    found = np.where(inside, way.old_begins[last], places - way.ends[last] + way.old_ends[last])
    return np.where(last < 0, places, found)  # places before the first replacement stay


def _old_ends(way: Way, places: NDArray[np.int64]) -> NDArray[np.int64]:
    last = np.searchsorted(way.begins, places, side="left") - 1
    found = way.old_ends[last] + np.maximum(places - way.ends[last], 0)
    return np.where(last < 0, places, found)
