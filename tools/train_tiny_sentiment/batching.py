"""Token ids, and batches that hold about the same number of tokens each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer

from tools.train_tiny_sentiment.settings import MAX_TOKENS


def encode(tokenizer: Tokenizer, texts: Sequence[str], limit: int = MAX_TOKENS) -> list[list[int]]:
    """Encode texts with their special tokens, cut to ``limit`` ids with the last special token kept."""
    encoded = [item.ids for item in tokenizer.encode_batch_fast(list(texts))]
    return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in encoded]


def token_batches(lengths: Sequence[int], budget: int, rng: np.random.Generator | None = None) -> list[list[int]]:
    """Group row numbers of like length so that rows x longest stays within ``budget``.

    With ``rng`` ties of length and the order of the batches are shuffled; without it they run
    from short to long.
    """
    keys = np.asarray(lengths, dtype=np.float64)
    if rng is not None:
        keys = keys + rng.random(len(keys)) * 2
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for index in np.argsort(keys, kind="stable").tolist():
        longest = max(longest, lengths[index])
        if current and longest * (len(current) + 1) > budget:
            batches.append(current)
            current, longest = [], lengths[index]
        current.append(index)
    if current:
        batches.append(current)
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches)).tolist()]
    return batches


def collate(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of ids to one length: ids and attention mask, each int64 [rows, longest]."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids, mask


def random_crop(ids: Sequence[int], bounds: tuple[int, int], rng: np.random.Generator) -> list[int]:
    """Cut a random window out of an encoded text, keeping its first and last special token."""
    inner = list(ids[1:-1])
    size = min(len(inner), int(rng.integers(bounds[0], bounds[1] + 1)))
    start = int(rng.integers(0, len(inner) - size + 1))
    return [ids[0], *inner[start : start + size], ids[-1]]
