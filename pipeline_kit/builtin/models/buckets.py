"""Shapes a batch is filled up to, so that a run meets few of them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline_kit.types import TokenBatch

__all__ = ["Buckets", "fill"]

_WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Widths that grow by a third to a half, and powers of two for rows.

    At most a half more columns and twice the rows are computed. Up to 512 tokens and 16,384 tokens a batch
    there are about 90 shapes.

    :param limit: the model's longest text in tokens, which no width goes beyond; None: no limit.
    """

    limit: int | None = None

    def shape(self, rows: int, width: int) -> tuple[int, int]:
        """Give rows and width of the bucket for a batch of at least one row and column."""
        return 1 << (rows - 1).bit_length(), self._width(width)

    def _width(self, width: int) -> int:
        place = bisect_left(_WIDTHS, width)
        found = _WIDTHS[place] if place < len(_WIDTHS) else _over(width)
        return found if self.limit is None else max(width, min(found, self.limit))


def _over(width: int) -> int:
    """Give the power of two, or the middle between two of them, that `width` fits in."""
    power = 1 << (width - 1).bit_length()
    middle = power * 3 // 4
    return middle if width <= middle else power


def fill(batch: TokenBatch, rows: int, width: int, filler: int) -> TokenBatch:
    """Fill `batch` up to `rows` and `width`: columns of padding on its own side, copies of its last row at its end.

    A row of padding alone would make some kernels divide by zero.

    :param filler: the id that stands for padding.
    """
    more, columns = rows - batch.input_ids.shape[0], width - batch.input_ids.shape[1]
    sides = (0, columns) if batch.side == "right" else (columns, 0)

    def filled(values: torch.Tensor, value: int) -> torch.Tensor:
        wide = torch.nn.functional.pad(values, sides, value=value)
        return torch.cat([wide, wide[-1:].expand(more, -1)]) if more else wide

    types = batch.token_type_ids
    return replace(
        batch,
        input_ids=filled(batch.input_ids, filler),
        attention_mask=filled(batch.attention_mask, 0),
        token_type_ids=None if types is None else filled(types, 0),
        lengths=np.concatenate([batch.lengths, np.repeat(batch.lengths[-1:], more)]),
        padded=True,  # also where nothing was added: a batch without a mask would be one shape more
    )
