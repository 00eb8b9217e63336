"""Pooling itself: the token vectors of a row to one vector, in each mode."""

from __future__ import annotations

import torch

from pipeline_kit.builtin.postprocessors.sentence_modules import Mode

__all__ = ["pool"]


def pool(hidden: torch.Tensor, mask: torch.Tensor, mode: Mode, skip: int = 0) -> torch.Tensor:
    """Make one vector of each row's token vectors, whichever side the padding is on.

    ``cls`` is the first token, ``last`` the last, ``max`` the largest value of each column, ``mean`` the sum by the
    number of tokens, ``mean_sqrt_len`` the sum by the root of that number; ``weighted_mean`` weights tokens by
    their place in the row, from 1 (https://arxiv.org/abs/2202.08904).

    :param hidden: float32 ``[B, T, H]``; what stands at padding is never looked at, not even NaN.
    :param mask: 1 for a token, 0 for padding, ``[B, T]``.
    :param skip: how many tokens at the beginning of each row are left out; places are counted with them. A row
        without more tokens gives numbers of no meaning, perhaps NaN.
    :returns: ``[B, H]``.
    """
    places = mask.cumsum(dim=1) * mask
    if skip:
        mask = mask * (places > skip)
    if mode in ("cls", "last"):
        first = mask.argmax(dim=1)
        place = first if mode == "cls" else first + mask.sum(dim=1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), place]
    padding = (mask == 0)[:, :, None]
    if mode == "max":
        return hidden.masked_fill(padding, -torch.inf).amax(dim=1)
    weights = (places * mask if mode == "weighted_mean" else mask).to(hidden.dtype)[:, :, None]
    total = (hidden.masked_fill(padding, 0.0) * weights).sum(dim=1)
    count = weights.sum(dim=1)
    return total / (count.sqrt() if mode == "mean_sqrt_len" else count)
