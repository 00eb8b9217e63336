"""Ending where a given string appears, by decoding the last few tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["StopStrings", "end_of"]

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
        """Give ``[B]``, true for a row that has come to its end."""
        del scores, others
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :].tolist()
        found = [any(text in written for text in self._strings) for written in map(self._decode, tails)]
        return torch.tensor(found, device=input_ids.device)


def end_of(ids: Sequence[int], strings: Sequence[str], decode: Decode) -> int:
    """Give how many of `ids` it took until one of `strings` was there, all of them if none is."""

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
