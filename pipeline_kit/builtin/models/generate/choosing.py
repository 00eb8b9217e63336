"""Which token comes next: draws that no other row changes, and the strings at which a row ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

Warper = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draws(rows: Sequence[Sequence[int]], seed: int, count: int, device: str) -> torch.Tensor:
    """Return numbers from 0 to below 1, ``[B, count]``, by each row's ids and the seed alone, on any device."""
    found = np.empty((len(rows), count))
    for place, row in enumerate(rows):
        content = np.asarray(row, dtype="<i8").tobytes()
        key = blake2b(content, digest_size=16, key=str(seed).encode()[:64]).digest()
        found[place] = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)
    # float32 would round the largest of them up to 1; MPS has nothing wider.
    dtype = torch.float32 if device.startswith("mps") else torch.float64
    return torch.from_numpy(found).to(dtype).clamp(max=1 - 1e-7).to(device)


def warpers(values: Mapping[str, Any], device: str) -> list[Warper]:
    """Return transformers' own changes of the scores before a draw, in its order, by a GenerationConfig's `values`."""
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


def drawn(scores: torch.Tensor, warpers: Sequence[Warper], numbers: torch.Tensor) -> torch.Tensor:
    """Choose one token for each row, ``[B]``, by inverting the cumulative distribution at that row's number.

    :param scores: ``[B, V]``, before the changes that `warpers` make.
    :param numbers: from 0 to below 1, ``[B]``.
    """
    for warp in warpers:
        scores = warp(numbers, scores)  # those of transformers look at no ids
    total = torch.softmax(scores.to(numbers.dtype), dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(total, numbers[:, None] * total[:, -1:], right=True)
    return found[:, 0].clamp(max=scores.shape[1] - 1)


class Draw:
    """Draws in transformers' own search, one number for each row and step.

    It is a logits processor: the chosen token gets the score 0, all others minus infinity, and a greedy search
    takes it. transformers' own draw would share one generator among the rows of a batch.
    """

    def __init__(self, warpers: Sequence[Warper], numbers: torch.Tensor) -> None:
        """Take the changes to make first, and the numbers, ``[B, count]``."""
        self._warpers, self._numbers, self._step = warpers, numbers, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[B, V]`` of the next token."""
        # On a GPU transformers may run one step more than it keeps.
        step = min(self._step, self._numbers.shape[1] - 1)
        chosen = drawn(scores, self._warpers, self._numbers[:, step])
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


Decode = Callable[[Sequence[int]], str]


class StopStrings:
    """Ends a row where a stop string appears; unlike transformers' own it works on any tokenizer that decodes."""

    def __init__(self, strings: Sequence[str], decode: Decode, start: int = 0) -> None:
        """Take the strings and, for transformers' own search, the column where what is written starts."""
        self._strings, self._decode, self._start = strings, decode, start
        # A token gives a byte of text or more, so a string of n characters ends within 4n tokens. Some more, since
        # a decoder may treat the beginning of what it is given in its own way.
        self._tail = 4 * max(len(text) for text in strings) + 8

    def __call__(self, input_ids: torch.Tensor, scores: object, **others: object) -> torch.Tensor:
        """Return ``[B]``, true for a row that has come to its end."""
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :].tolist()
        return torch.tensor([self.ended(tail) for tail in tails], device=input_ids.device)

    def ended(self, ids: Sequence[int]) -> bool:
        """Return whether one of the strings is near the end of what is written."""
        written = self._decode(ids[-self._tail :])
        return any(text in written for text in self._strings)


def end_of(ids: Sequence[int], strings: Sequence[str], decode: Decode) -> int:
    """Return how many of `ids` it took until one of `strings` was there, all of them if none is."""

    def there(count: int) -> bool:
        written = decode(ids[:count])
        return any(text in written for text in strings)

    if not there(len(ids)):
        return len(ids)
    low, high = 0, len(ids)  # none in the first `low`, one in the first `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if there(middle) else (middle, high)
    return high
