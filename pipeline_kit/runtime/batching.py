"""The batch plan: which encodings share a batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise, takewhile
from typing import Any

import numpy as np

from pipeline_kit.contract.types import Device
from pipeline_kit.errors import StageError
from pipeline_kit.runtime.config import BatchingConfig
from pipeline_kit.runtime.device import has_amx
from pipeline_kit.runtime.padding import PaddingPolicy

# By benchmarks/budgets.py: a small budget keeps a batch's activations in a CPU's cache, a GPU needs a large one to be
# full. Products in bfloat16 on AMX are so fast that large ones are needed there, too: 4,096 tokens are 1.2 times as
# fast as 1,024 on short and long texts mixed.
MAX_TOKENS_CPU, MAX_TOKENS_AMX, MAX_TOKENS_GPU = 1024, 4096, 16384
# On a CPU a batch more costs 1 to 3 ms, as much as this many tokens take. The GPU's is the same share of its budget.
BATCH_COST_CPU, BATCH_COST_GPU = 16, 256
MAX_ROWS_WRITTEN = 256  # more than are written side by side: those that wait take the places of those that end


@dataclass(frozen=True)
class BatchingPolicy:
    """A plan's limits made definite for one device. None means no limit.

    A policy of a plugin derives from this class and overrides :meth:`plan`; its options are in `config`.

    :param batch_cost: what one batch more costs, in tokens; a sorted plan weighs it against padding.
    :param deduplicate: whether equal rows are one row of a plan, if the model is deterministic.
    :param config: the options of the group ``batching``.
    """

    sort: bool = True
    max_tokens: int | None = MAX_TOKENS_CPU
    max_rows: int | None = None
    window: int = 2048
    batch_cost: int = BATCH_COST_CPU
    deduplicate: bool = True
    config: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, config: BatchingConfig, device: Device, writes: bool = False) -> BatchingPolicy:
        """Make `config` definite; `writes` is whether the model runs once for each token it writes."""
        if config.name == "fixed":
            once = config.deduplicate
            return cls(False, None, config.max_rows or 8, config.window, deduplicate=once, config=config)
        if writes:  # the model itself decides how many prompts run together, and how many rows are written together
            rows = config.max_rows or MAX_ROWS_WRITTEN
            return cls(True, config.max_tokens, rows, config.window, 2**24, config.deduplicate, config)
        cost = BATCH_COST_CPU if device.kind == "cpu" else BATCH_COST_GPU
        max_tokens = config.max_tokens or default_budget(device)
        return cls(True, max_tokens, config.max_rows, config.window, cost, config.deduplicate, config)

    def plan(self, lengths: Sequence[int], padding: PaddingPolicy) -> list[list[int]]:
        """Cut rows of the given lengths into batches.

        :param lengths: tokens of each row.
        :returns: places in `lengths`, each exactly once. A batch holds at most ``max_rows`` rows and, counted
            after padding, ``max_tokens`` tokens; a row longer than that is a batch of its own.
        """
        order: list[int] = list(range(len(lengths)))
        if self.sort or padding.equal_lengths_only:
            # Longest first: the largest batch comes at the start, so lack of memory shows at once, not at the end.
            order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
        ordered = [lengths[place] for place in order]
        cuts = _cheapest_cuts(ordered, self, padding) if self.sort else _cuts_when_full(ordered, self, padding)
        return [order[start:end] for start, end in pairwise([0, *cuts])]


def default_budget(device: Device) -> int:
    """Return how many tokens a batch has at the most on `device` in its dtype, without `batching.max_tokens`."""
    if device.kind != "cpu":
        return MAX_TOKENS_GPU
    return MAX_TOKENS_AMX if device.dtype == "bfloat16" and has_amx() else MAX_TOKENS_CPU


def plan_batches(lengths: Sequence[int], batching: BatchingPolicy, padding: PaddingPolicy) -> list[list[int]]:
    """Return the plan of `batching`; one of a plugin is checked, since a row in no batch would have no result.

    :raises StageError: if a row is not in exactly one batch, or one is padded where padding changes answers.
    """
    batches = batching.plan(lengths, padding)
    if type(batching).plan is not BatchingPolicy.plan:
        name = getattr(batching.config, "name", type(batching).__name__)
        if sorted(chain.from_iterable(batches)) != list(range(len(lengths))):
            raise StageError(f"batching={name} does not put each of {len(lengths)} rows into exactly one batch")
        if padding.equal_lengths_only and any(len({lengths[place] for place in batch}) > 1 for batch in batches):
            raise StageError(f"batching={name} puts rows of several lengths into a batch, which must not be padded")
    return batches


def _cuts_when_full(lengths: Sequence[int], batching: BatchingPolicy, padding: PaddingPolicy) -> list[int]:
    """End a batch where one row more would go beyond a limit; returns where each batch ends."""
    cuts: list[int] = []
    start, longest = 0, 0
    for place, length in enumerate(lengths):
        rows = place + 1 - start
        full = (
            (batching.max_rows is not None and rows > batching.max_rows)
            or (batching.max_tokens is not None and rows * padding.padded(max(longest, length)) > batching.max_tokens)
            or (padding.equal_lengths_only and length != longest)
        )
        if full and place > start:
            cuts.append(place)
            start, longest = place, 0
        longest = max(longest, length)
    return [*cuts, len(lengths)] if lengths else []


def _cheapest_cuts(lengths: Sequence[int], batching: BatchingPolicy, padding: PaddingPolicy) -> list[int]:
    """Cut rows sorted by length where padded tokens and ``batch_cost`` a batch together are least.

    The shortest way through the places where a batch may end: where the length changes, and where a limit is
    reached. On real texts it pads 2 % where batches that are filled up pad 5 to 10 %.
    """
    count = len(lengths)
    widths = [padding.padded(length) for length in lengths]
    changes = [place for place in range(1, count) if widths[place] != widths[place - 1]]
    changes.append(count)
    cost = [math.inf] * count + [math.inf]
    before = [0] * (count + 1)
    cost[0], following = 0, 0
    for start, width in enumerate(widths):
        while changes[following] <= start:
            following += 1
        if cost[start] == math.inf:
            continue
        furthest = min(count, start + _most_rows(width, batching))
        if padding.equal_lengths_only:
            furthest = min(furthest, changes[following])
        for end in (*takewhile(furthest.__gt__, islice(changes, following, None)), furthest):
            found = cost[start] + (end - start) * width + batching.batch_cost
            if found < cost[end]:
                cost[end], before[end] = found, start
    cuts, end = [], count
    while end:
        cuts.append(end)
        end = before[end]
    return cuts[::-1]


def _most_rows(width: int, batching: BatchingPolicy) -> int:
    """How many rows of this width a batch may hold; one, even if it is too long."""
    by_tokens = math.inf if batching.max_tokens is None else max(1, batching.max_tokens // width)
    by_rows = math.inf if batching.max_rows is None else batching.max_rows
    return int(min(by_tokens, by_rows, sys.maxsize))
