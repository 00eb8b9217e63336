"""The batch plan: which encodings share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline_kit.config import option
from pipeline_kit.padding import PaddingPolicy

__all__ = ["BatchingConfig", "BatchingPolicy", "default_max_tokens", "plan"]

# Measured: a small budget keeps a batch's activations in a CPU's cache, a GPU needs a large one to be full.
MAX_TOKENS_CPU, MAX_TOKENS_GPU = 1024, 16384


@dataclass
class BatchingConfig:
    """Options of the group ``batching``."""

    name: Literal["token_budget", "fixed"] = option(
        "token_budget", "token_budget: sorted by length, cut by tokens; fixed: rows as they come, cut by rows"
    )
    max_tokens: int | None = option(
        None, "tokens of a batch after padding; null: 1024 on a CPU, 16384 on a GPU; not used by fixed", minimum=1
    )
    max_rows: int | None = option(None, "rows of a batch; null: no limit for token_budget, 8 for fixed", minimum=1)
    window: int = option(2048, "rows looked at when sorting, and the most read ahead of a stream", minimum=1)


@dataclass(frozen=True)
class BatchingPolicy:
    """A plan's limits made definite for one device. None means no limit."""

    sort: bool = True
    max_tokens: int | None = MAX_TOKENS_CPU
    max_rows: int | None = None
    window: int = 2048


def default_max_tokens(device_kind: str) -> int:
    """Give the token budget for a device when the user sets none."""
    return MAX_TOKENS_CPU if device_kind == "cpu" else MAX_TOKENS_GPU


def plan(lengths: Sequence[int], batching: BatchingPolicy, padding: PaddingPolicy) -> list[list[int]]:
    """Cut rows of the given lengths into batches.

    :param lengths: tokens of each row.
    :returns: places in `lengths`, each exactly once. A batch holds at most ``max_rows`` rows and, counted
        after padding, ``max_tokens`` tokens; a row longer than that is a batch of its own.
    """
    order: Sequence[int] = range(len(lengths))
    if batching.sort or padding.equal_lengths_only:
        # Longest first: the largest batch comes at the start, so lack of memory shows at once, not at the end.
        order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for place in order:
        length = lengths[place]
        rows = len(current) + 1
        tokens = rows * padding.padded(max(longest, length))
        full = (
            (batching.max_rows is not None and rows > batching.max_rows)
            or (batching.max_tokens is not None and tokens > batching.max_tokens)
            or (padding.equal_lengths_only and length != longest)
        )
        if current and full:
            batches.append(current)
            current, longest = [], 0
        current.append(place)
        longest = max(longest, length)
    if current:
        batches.append(current)
    return batches
