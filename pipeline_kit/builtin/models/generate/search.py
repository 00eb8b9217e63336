"""Drawing tokens so that a row's text depends on its own prompt and the seed, not on its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from pipeline_kit.errors import ExampleError

Warper = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draws(rows: Sequence[Sequence[int]], seed: int, count: int, device: str) -> torch.Tensor:
    """Return `count` numbers from 0 to below 1 for each row, ``[B, count]``; they depend on its ids and the seed alone.

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
    """Return transformers' own changes of the scores before a draw, in its order and with its default ``top_k``.

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
        """Return the scores ``[B, V]`` of the next token."""
        for warp in self._warpers:
            scores = warp(input_ids, scores)
        total = torch.softmax(scores.to(self._numbers.dtype), dim=-1).cumsum(dim=-1)
        # On a GPU transformers may run one step more than it keeps.
        step = min(self._step, self._numbers.shape[1] - 1)
        point = self._numbers[:, step, None] * total[:, -1:]
        chosen = torch.searchsorted(total, point, right=True).clamp(max=scores.shape[1] - 1)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


Decode = Callable[[Sequence[int]], str]


class StopStrings:
    """A stopping criterion of transformers' generate: a row ends where a stop string appears at its end.

    transformers' own needs one of its tokenizers and works on their vocabulary; this one works on any that decodes.
    """

    def __init__(self, strings: Sequence[str], decode: Decode, start: int) -> None:
        """Take the strings and the column where what is written starts."""
        self._strings, self._decode, self._start = strings, decode, start
        # A token gives a byte of text or more, so a string of n characters ends within 4n tokens. Some more, since
        # a decoder may treat the beginning of what it is given in its own way.
        self._tail = 4 * max(len(text) for text in strings) + 8

    def __call__(self, input_ids: torch.Tensor, scores: object, **others: object) -> torch.Tensor:
        """Return ``[B]``, true for a row that has come to its end."""
        del scores, others
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :].tolist()
        found = [any(text in written for text in self._strings) for written in map(self._decode, tails)]
        return torch.tensor(found, device=input_ids.device)


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


@contextmanager
def finite_scores(network: Any, *, at_once: bool) -> Iterator[None]:
    """Check the scores that `network` returns in the body, before the search changes them.

    A network may rule tokens out by minus infinity, so what counts is each row's best score. It is infinite, or not a
    number, if one score is, or if there is none left.

    :param at_once: end the search at the step itself; else the body ends first, and a GPU is not waited for.
    :raises ExampleError: if the best score of a row is not finite.
    """
    seen: list[torch.Tensor] = []

    def look(module: Any, given: Any, output: Any) -> None:
        del module, given
        found = output.logits[:, -1].amax(dim=-1).isfinite().all()
        if at_once:
            refuse(found)
        seen[:] = [seen[0] & found if seen else found]

    def refuse(found: torch.Tensor) -> None:
        if not found:
            raise ExampleError("the model's scores for the next token of this example are not finite numbers")

    handle = network.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
    for found in seen:
        refuse(found)
