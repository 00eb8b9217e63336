"""Where the tokens of a padded batch are, and how tensors are packed to them alone and spread out again."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline_kit.types import TokenBatch

__all__ = ["RUNNING", "NotUnpaddableError", "Rows", "rows_of"]

Varlen = Callable[..., Any]


class NotUnpaddableError(RuntimeError):
    """A network does something with its batch that unpadding does not know."""


@dataclass(slots=True)
class Rows:
    """The rows of one padded batch, put one behind the other, the shortest first.

    :param shape: rows and width of the padded batch.
    :param places: of each of the N tokens, its place in the batch read row by row; int64 ``[N]`` on the device.
    :param groups: rows of equal length: where the first begins, how many there are, and their length.
    :param varlen: a kernel that takes rows of any lengths at once; None: each group is run by itself.
    :param ends: where each row ends, from a leading 0 on; int32 ``[B + 1]``, only with `varlen`.
    :param attended: how many attention layers have run.
    """

    shape: tuple[int, int]
    places: torch.Tensor
    groups: tuple[tuple[int, int, int], ...]
    varlen: Varlen | None = None
    ends: torch.Tensor | None = None
    attended: int = 0
    _beside: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The longest row's length."""
        return self.groups[-1][2]

    def pack(self, hidden: torch.Tensor) -> torch.Tensor:
        """Make ``[B, T, H]`` to ``[1, N, H]``; leave what is packed already."""
        if hidden.shape[:2] == self.shape:
            return hidden.reshape(-1, *hidden.shape[2:])[self.places][None]
        if hidden.shape[:2] != (1, len(self.places)):
            raise NotUnpaddableError(f"a layer gets hidden states of shape {list(hidden.shape)}")
        return hidden

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """Make ``[1, N, H]`` to ``[B, T, H]`` with zeros at the padding."""
        rows, width = self.shape
        hidden = packed.new_zeros(rows * width, *packed.shape[2:])
        return hidden.index_copy_(0, self.places, packed[0]).view(rows, width, *packed.shape[2:])

    def pack_beside(self, values: torch.Tensor) -> torch.Tensor:
        """Pack what a layer gets beside its hidden states, such as rotary positions ``[B or 1, T, D]``."""
        if values.dim() < 2:
            return values
        rows, width = self.shape
        if values.dim() > 3 or values.shape[1] != width or values.shape[0] not in (1, rows):
            raise NotUnpaddableError(f"a layer gets a tensor of shape {list(values.shape)} beside its hidden states")
        if id(values) not in self._beside:
            packed = values[0][self.places % width][None] if values.shape[0] == 1 else self.pack(values)
            self._beside[id(values)] = values, packed  # the first is held so that its id stays its own
        return self._beside[id(values)][1]


RUNNING: ContextVar[Rows | None] = ContextVar("RUNNING", default=None)
"""The batch that runs unpadded in this thread."""


def rows_of(batch: TokenBatch, varlen: Varlen | None = None) -> Rows:
    """Find the tokens of `batch` from its lengths, without a look at the device."""
    rows, width = batch.input_ids.shape
    order = np.argsort(batch.lengths, kind="stable")
    lengths = batch.lengths[order]
    ends = np.cumsum(lengths)
    begins = order * width + (width - lengths if batch.side == "left" else 0)
    places = np.arange(ends[-1]) + np.repeat(begins - (ends - lengths), lengths)
    sizes, first, counts = np.unique(lengths, return_index=True, return_counts=True)
    starts = (ends - lengths)[first]
    device = batch.input_ids.device
    return Rows(
        (rows, width),
        torch.from_numpy(places).to(device),
        tuple(zip(starts.tolist(), counts.tolist(), sizes.tolist(), strict=True)),
        varlen,
        None if varlen is None else torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)).to(device),
    )
