"""The memory of rows that are written side by side: a row that ends leaves it, and another one takes its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_SPARE_COLUMNS = 64


@final
class SlotTable:
    """Tensors ``[rows, ..., columns, size]`` in memory that is written in place.

    All rows end at the same column, so what stands before a short row is padding, which a mask must rule out. What was
    there before is finite, since a mask cannot hide what is not a number.

    :ivar lengths: the columns of each row.
    """

    def __init__(self, most: int, *, grows: bool) -> None:
        """Make room for `most` rows, and for more columns if it `grows`."""
        self.lengths: list[int] = []
        self._most, self._grows, self._end = most, grows, 0
        self._tensors: list[torch.Tensor] = []

    @property
    def width(self) -> int:
        """How many columns the longest row has; none beyond that is looked at."""
        return max(self.lengths, default=0)

    def view(self, place: int) -> torch.Tensor:
        """Return the rows and columns of a tensor that are in use; what is written later shows in it."""
        return self._tensors[place][: len(self.lengths), ..., self._end - self.width : self._end, :]

    def add(self, parts: Sequence[torch.Tensor], lengths: Sequence[int]) -> None:
        """Put rows behind those that are there.

        :param parts: for each tensor ``[rows, ..., columns, size]``, the last column being the row's last.
        :param lengths: the columns of each row, without padding on the left.
        """
        if not self._tensors:
            self._tensors = [part.new_empty((self._most, *part.shape[1:-2], 0, part.shape[-1])) for part in parts]
        self._reserve(max(part.shape[-2] for part in parts), after=0)
        first, count = len(self.lengths), len(lengths)
        for memory, part in zip(self._tensors, parts, strict=True):
            if not part.is_floating_point():  # a mask, which must rule out what a row left here
                memory[first : first + count] = 0
            memory[first : first + count, ..., self._end - part.shape[-2] : self._end, :] = part
        self.lengths += lengths

    def add_column(self) -> None:
        """Lengthen every row by a column that :meth:`write` fills."""
        self._reserve(self.width, after=1)
        self._end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def write(self, place: int, column: Any) -> None:
        """Fill the last column of a tensor with ``[rows, ..., 1, size]`` or a number."""
        self._tensors[place][: len(self.lengths), ..., self._end - 1 : self._end, :] = column

    def keep(self, order: Sequence[int]) -> None:
        """Leave these rows, in this order; what stays in its place is not moved."""
        moved = [(place, source) for place, source in enumerate(order) if place != source]
        if moved:
            places, sources = map(list, zip(*moved, strict=True))
            columns = slice(self._end - self.width, self._end)
            for memory in self._tensors:
                memory[places, ..., columns, :] = memory[sources, ..., columns, :]
        self.lengths = [self.lengths[source] for source in order]

    def _reserve(self, width: int, after: int) -> None:
        """Have room for rows of `width` columns and for `after` more; where there is none, all is moved."""
        used, width = self.width, max(self.width, width)
        if self._end >= width and self._end + after <= self._tensors[0].shape[-2]:
            return
        spare = max(after, _SPARE_COLUMNS, width // 2) if self._grows else after
        for place, memory in enumerate(self._tensors):
            fresh = memory.new_zeros((*memory.shape[:-2], width + spare, memory.shape[-1]))
            rows = slice(0, len(self.lengths))
            fresh[rows, ..., width - used : width, :] = memory[rows, ..., self._end - used : self._end, :]
            self._tensors[place] = fresh
        self._end = width


def cached_tensors(cache: Cache) -> list[torch.Tensor]:
    """Return the keys and values of all layers, one after the other.

    :raises TypeError: if a layer keeps something else, such as the state of a Mamba.
    """
    found: list[torch.Tensor] = []
    for layer in cache.layers:
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
            found += [layer.keys, layer.values]
        elif type(layer) is not DummyLayer:
            raise TypeError(f"a {type(layer).__name__} cannot be cut by rows and columns")
    return found


def cache_on(table: SlotTable, like: Cache, first: int) -> DynamicCache:
    """Make a cache with the layers of `like` whose keys and values are the tensors of `table` from `first` on."""
    found = DynamicCache()
    for layer in like.layers:
        if isinstance(layer, DummyLayer):
            found.layers.append(layer)
            continue
        found.layers.append(_SlotLayer(table, first, layer))
        first += 2
    return found


def look_again(*caches: Cache) -> None:
    """Let the layers of caches show the rows and columns that their tables have now."""
    for layer in (layer for cache in caches for layer in cache.layers):
        if isinstance(layer, _SlotLayer):
            layer.look()


class _SlotLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer of a cache that writes where the table is, where transformers' own would copy all at each step.

    One with a sliding window keeps more columns than it looks at, which its mask rules out.
    """

    def __init__(self, table: SlotTable, place: int, like: DynamicLayer) -> None:
        super().__init__()
        self._table, self._place = table, place
        self.is_sliding, self.is_initialized = like.is_sliding, True
        self.dtype, self.device = like.dtype, like.device
        self.look()

    def look(self) -> None:
        self.keys, self.values = self._table.view(self._place), self._table.view(self._place + 1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._table.write(self._place, key_states)
        self._table.write(self._place + 1, value_states)
        self.look()
        return self.keys, self.values
