"""Drawing tokens so that a row's text depends on its own prompt and the seed, not on its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

__all__ = ["Draw", "draws", "warpers"]

Warper = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draws(rows: Sequence[Sequence[int]], seed: int, count: int, device: str) -> torch.Tensor:
    """Give `count` numbers from 0 to below 1 for each row, ``[B, count]``; they depend on its ids and the seed alone.

    Two equal rows get equal numbers. The generator runs on the CPU, so that a GPU draws the same.
    """
    found = np.empty((len(rows), count))
    for place, row in enumerate(rows):
        content = np.asarray(row, dtype="<i8").tobytes()
        key = blake2b(content, digest_size=16, key=str(seed).encode()[:64]).digest()
        found[place] = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)
    # float32 would round the largest of them up to 1; MPS has nothing wider.
    dtype = torch.float32 if device.startswith("mps") else torch.float64
    return torch.from_numpy(found).to(dtype).clamp(max=1 - 1e-7).to(device)


def warpers(values: Mapping[str, Any], device: str) -> list[Warper]:
    """Give transformers' own changes of the scores before a draw, in its order and with its default ``top_k``.

    :param values: a GenerationConfig by name.
    """
    from transformers.generation import logits_process as lp

    found: list[Warper] = []
    if values.get("temperature", 1.0) != 1.0:
        found.append(lp.TemperatureLogitsWarper(float(values["temperature"])))
    if values.get("top_k", 50):
        found.append(lp.TopKLogitsWarper(values.get("top_k", 50)))
    if values.get("top_p", 1.0) < 1.0:
        found.append(lp.TopPLogitsWarper(float(values["top_p"])))
    if values.get("min_p") is not None:
        found.append(lp.MinPLogitsWarper(float(values["min_p"])))
    if values.get("typical_p", 1.0) < 1.0:
        found.append(lp.TypicalLogitsWarper(float(values["typical_p"])))
    if 0.0 < values.get("epsilon_cutoff", 0.0) < 1.0:
        found.append(lp.EpsilonLogitsWarper(float(values["epsilon_cutoff"])))
    if 0.0 < values.get("eta_cutoff", 0.0) < 1.0:
        found.append(lp.EtaLogitsWarper(float(values["eta_cutoff"]), device=device))
    return found


class Draw:
    """Chooses one token for each row by inverting the cumulative distribution at that row's next number.

    It is a logits processor: the chosen token gets the score 0, all others minus infinity, and a greedy search
    takes it. transformers' own draw would share one generator among the rows of a batch.
    """

    def __init__(self, warpers: Sequence[Warper], numbers: torch.Tensor) -> None:
        """Take the changes to make first, and the numbers, ``[B, count]``."""
        self._warpers, self._numbers, self._step = warpers, numbers, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Give the scores ``[B, V]`` of the next token."""
        for warp in self._warpers:
            scores = warp(input_ids, scores)
        total = torch.softmax(scores.to(self._numbers.dtype), dim=-1).cumsum(dim=-1)
        # On a GPU transformers may run one step more than it keeps.
        step = min(self._step, self._numbers.shape[1] - 1)
        point = self._numbers[:, step, None] * total[:, -1:]
        chosen = torch.searchsorted(total, point, right=True).clamp(max=scores.shape[1] - 1)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
