"""How the rows of an input are cut into stretches of equal length, each of which can be read by itself."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any, final

from pipeline_kit.files.read.columns import id_hash
from pipeline_kit.files.read.parts import MARK_ROWS, InputConfig, Mark, PartIndex


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of an input, one behind another, as :meth:`Source.read` takes them.

    :param first: the number of its first row in the whole input.
    :param last: that of its last row.
    :param rows: how many it has; fewer than lie between the two if ``input.shard`` leaves some out.
    :param part: the part that holds the first row, from 0.
    :param row: the number of the first row in that part.
    :param mark: where in that part to begin; None for its start.
    :param renamed: the rows whose id was there before, and how many apostrophes follow the place in their new one.
    """

    first: int
    last: int
    rows: int
    part: int
    row: int
    mark: Mark | None
    renamed: Mapping[int, int]


@final
class InputPlan:
    """The stretches of an input, of which each but the last has the same number of rows."""

    def __init__(self, indexes: Sequence[PartIndex], labels: Sequence[str], options: InputConfig, size: int) -> None:
        """Put the parts one behind another; see :meth:`Source.plan`.

        :param labels: the parts', for the ids of rows that get one.
        :param size: the rows of a stretch.
        """
        *before, total = accumulate((index.rows for index in indexes), initial=0)
        self._indices = options.indices(total)
        self._size = size
        self._before = before
        self._marks = [memoryview(index.marks).cast("Q") for index in indexes]
        self._renamed = _renamed(indexes, labels, before)

    @property
    def rows(self) -> int:
        """How many rows all stretches have."""
        return len(self._indices)

    def __len__(self) -> int:
        """Count the stretches."""
        return -(-len(self._indices) // self._size)

    def __iter__(self) -> Iterator[Stretch]:
        """Go through the stretches in order."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Stretch:
        """Return a stretch by its number, from 0."""
        indices = self._indices[number * self._size : (number + 1) * self._size]
        first, last = indices[0], indices[-1]
        part = bisect_right(self._before, first) - 1
        row = first - self._before[part]
        place = min(row // MARK_ROWS, len(self._marks[part]) // 2)
        mark = Mark(place * MARK_ROWS, *self._marks[part][2 * place - 2 : 2 * place]) if place else None
        rows, counts = self._renamed
        span = range(bisect_left(rows, first), bisect_right(rows, last))
        renamed = {rows[at]: counts[at] for at in span if rows[at] in indices}
        return Stretch(first, last, len(indices), part, row, mark, renamed)


def _renamed(
    indexes: Sequence[PartIndex], labels: Sequence[str], before: Sequence[int]
) -> tuple[array[int], array[int]]:
    """Find the rows whose id was there before, and the apostrophes that each new id takes.

    This is what ``IdSet`` finds row by row: of equal ids the first row keeps it; another one takes its place as id,
    with the fewest apostrophes that make it differ from every id before it. A later row may have that very id as its
    own, and is then renamed, too.
    """
    import numpy as np

    rows, counts = array("Q"), array("Q")
    parts = [np.frombuffer(index.ids, np.uint64) for index in indexes if index.ids is not None]
    values = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    values.sort()  # in place: a billion ids are 8 GB
    again = values[1:] == values[:-1]
    if not again.any():
        return rows, counts
    order = np.argsort(np.concatenate(parts), kind="stable")
    waiting: list[int] = np.sort(order[1:][again]).tolist()  # sorted, so a heap
    while waiting:
        row = heappop(waiting)
        part = bisect_right(before, row) - 1
        id, count = f"{labels[part]}:{_place(indexes[part], row - before[part])}", 0
        while True:
            value = id_hash(id)
            at = int(np.searchsorted(values, np.uint64(value)))
            owner = int(order[at]) if at < len(values) and int(values[at]) == value else None
            if owner is None or owner > row:
                break
            id, count = id + "'", count + 1
        if owner is not None:
            heappush(waiting, owner)
        rows.append(row)
        counts.append(count)
    return rows, counts


def _place(index: PartIndex, row: int) -> int:
    pairs: Any = memoryview(index.places).cast("Q")
    first, place = pairs[2 * bisect_right(pairs[::2], row) - 2 :][:2]
    return int(place + row - first)
