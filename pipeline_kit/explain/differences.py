"""Where two pipelines part on the same texts: plain data, from which the comparisons are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from pipeline_kit.explain.trace import RowTrace, SequenceTrace, Token, Trace

Array = np.ndarray[Any, Any]


NOISE = 1e-5
"""What two ways to compute the same number in float32 may differ by."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Two tokens that stand beside each other; None where one side has none.

    :param same: whether text and id are the same.
    """

    first: Token | None
    second: Token | None

    @property
    def same(self) -> bool:
        """Whether both are there with the same text and id."""
        if self.first is None or self.second is None:
            return False
        return (self.first.text, self.first.id) == (self.second.text, self.second.id)


def token_pairs(first: SequenceTrace | None, second: SequenceTrace | None) -> list[TokenPair]:
    """Put the tokens of two sequences side by side, those with the same text beside each other."""
    left = () if first is None else first.tokens
    right = () if second is None else second.tokens
    matcher = SequenceMatcher(None, [token.text for token in left], [token.text for token in right], autojunk=False)
    found: list[TokenPair] = []
    for _, left_start, left_end, right_start, right_end in matcher.get_opcodes():
        for step in range(max(left_end - left_start, right_end - right_start)):
            here = left[left_start + step] if left_start + step < left_end else None
            there = right[right_start + step] if right_start + step < right_end else None
            found.append(TokenPair(here, there))
    return found


def apart(first: Any, second: Any) -> bool:
    """Return whether two values differ, numbers by more than `NOISE`, absolutely or as a part of the larger."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is not second
    if isinstance(first, float | int) and isinstance(second, float | int):
        return not math.isclose(first, second, rel_tol=NOISE, abs_tol=NOISE) and not (
            first != first and second != second
        )
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() != second.keys() or any(apart(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) != len(second) or any(map(apart, first, second))
    return bool(first != second)


def padding_of(trace: Trace, row: int, sequence: int) -> str:
    """Describe the batch in which a sequence ran, and its padding there."""
    found = trace.rows[row]
    number, place = found.places[sequence] if sequence < len(found.places) else (-1, -1)
    if number < 0:
        return "in no batch"
    batch = trace.batches[number]
    padding = int((batch.attention_mask[place] == 0).sum())
    told = f"{padding} on the {batch.side}" if padding else "none"
    return f"batch {number}, {len(batch.rows)} x {batch.input_ids.shape[1]}, padding: {told}"


def result_differences(first: RowTrace, second: RowTrace) -> list[tuple[str, Any, Any]]:
    """Return the keys of two results with the values of both; None where one lacks the key."""
    left, right = _told(first), _told(second)
    return [(key, left.get(key), right.get(key)) for key in dict.fromkeys([*left, *right])]


def _told(row: RowTrace) -> dict[str, Any]:
    if row.failure is not None:
        return {"error": f"{row.failure.stage}: {row.failure.error}: {row.failure.message}"}
    return dict(row.result or {})
