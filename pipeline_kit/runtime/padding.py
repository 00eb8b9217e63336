"""Padding policies: how long a batch is, and the one vectorised write that fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np

from pipeline_kit.contract.types import Encoding, ModelOutput, RowOutput, Side, TokenBatch
from pipeline_kit.errors import ExampleError, StageError


@dataclass(frozen=True)
class PaddingPolicy:
    """A policy made definite for one checkpoint: how long a batch is. It changes no answer.

    A policy of a plugin derives from this class and overrides :meth:`padded`; its options are in `config`.

    :param max_length: what ``max_length`` pads to, and what rounding never goes beyond; None: no limit.
    :param note: why the policy is not the one that was asked for, None if it is.
    :param config: the options of the group ``padding``.
    """

    name: str
    side: Side = "right"
    pad_token_id: int = 0
    max_length: int | None = None
    multiple_of: int = 1
    note: str | None = None
    config: Any = field(default=None, compare=False, repr=False)

    def padded(self, longest: int) -> int:
        """Return the number of tokens per row, at least `longest`, of a batch whose longest row has `longest`."""
        if self.name == "max_length" and self.max_length is not None:
            return max(longest, self.max_length)
        if self.name == "multiple_of":
            rounded = -(-longest // self.multiple_of) * self.multiple_of
            return max(longest, rounded if self.max_length is None else min(rounded, self.max_length))
        return longest

    @property
    def equal_lengths_only(self) -> bool:
        """Whether rows may share a batch only if they need no padding."""
        return self.name == "none"


def collate(encodings: Sequence[Encoding], policy: PaddingPolicy, device: str) -> TokenBatch:
    """Pad `encodings` into tensors ``[B, T]`` on `device`.

    The ids of all rows are written with one masked assignment; there is no loop over tokens or rows.
    """
    import torch

    count = len(encodings)
    lengths = np.fromiter((len(e.input_ids) for e in encodings), dtype=np.int64, count=count)
    total, longest = int(lengths.sum()), int(lengths.max())
    width = policy.padded(longest)
    if width < longest:
        raise StageError(f"padding={policy.name} makes rows of {width} tokens where the longest has {longest}")
    columns = np.arange(width)
    mask = columns < lengths[:, None] if policy.side == "right" else columns >= (width - lengths)[:, None]
    padded = total < count * width

    def fill(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=total)
        if not padded:
            return torch.from_numpy(flat.reshape(count, width)).to(device)
        table = np.full((count, width), filler, dtype=np.int64)
        table[mask] = flat
        return torch.from_numpy(table).to(device)

    types = [e.token_type_ids for e in encodings]
    return TokenBatch(
        input_ids=fill([e.input_ids for e in encodings], policy.pad_token_id),
        attention_mask=torch.from_numpy(mask.astype(np.int64)).to(device),
        # 0 is what the fast tokenizers themselves pad segment ids with.
        token_type_ids=fill([t for t in types if t is not None], 0) if types[0] is not None else None,
        lengths=lengths,
        side=policy.side,
        has_padding=padded,
    )


def equal_rows(encodings: Sequence[Encoding]) -> list[list[int]]:
    """Return the places of `encodings`, together where :func:`collate` makes the same row of them, in order."""
    found: dict[Any, list[int]] = {}
    for place, encoding in enumerate(encodings):
        types = encoding.token_type_ids
        found.setdefault((tuple(encoding.input_ids), None if types is None else tuple(types)), []).append(place)
    return list(found.values())


def split_rows(output: ModelOutput, batch: TokenBatch) -> list[RowOutput]:
    """Copy each tensor to the CPU once and cut it into rows without padding.

    :returns: for each row of `batch`, its arrays by name, floats as float32; views, not copies.
    :raises StageError: if a tensor's first dimension is not ``B``, or a per-token one's second not ``T``.
    """
    count, width = batch.input_ids.shape
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, tensor in output.tensors.items():
        per_token = name in output.per_token
        if tensor.shape[0] != count or (per_token and tensor.shape[1] != width):
            raise StageError(
                f"the model returned '{name}' with shape {list(tensor.shape)} for {count} rows, {width} tokens"
            )
        array = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
        for i, length in enumerate(batch.lengths.tolist()):
            value = array[i]
            if per_token and length < width:
                value = value[:length] if batch.side == "right" else value[width - length :]
            rows[i][name] = value
    return list(rows)


def check_finite(output: ModelOutput, batch: TokenBatch) -> None:
    """Check what a model returned before anything is made of it: a sigmoid would hide what is infinite.

    What stands at padding does not count.

    :raises ExampleError: if a number of some row is not finite.
    """
    for name, tensor in output.tensors.items():
        # Where a number is not finite, the sum is not either: one pass, which the usual batch needs no more of.
        if not tensor.is_floating_point() or isfinite(float(tensor.float().sum())):
            continue
        bad = ~tensor.isfinite()
        if name in output.per_token and tensor.shape[:2] == batch.attention_mask.shape:
            bad[batch.attention_mask == 0] = False
        if bad.any():
            raise ExampleError(f"the model's '{name}' for this example are not all finite numbers")
