"""What the parity tests of several tasks share."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_kit import Pipeline
from pipeline_kit.contract.types import Side
from pipeline_kit.runtime.padding import PaddingPolicy

__all__ = ["policies"]


def policies(pipe: Pipeline, sides: Iterable[Side], max_length: int) -> list[PaddingPolicy]:
    """Every padding policy on each of `sides`, none of them where there is no padding token."""
    pad = pipe.padding.pad_token_id
    found = [PaddingPolicy("none", "right", pad)]
    if pipe.tokenizer.pad_token_id is not None:
        for side in sorted(sides):
            found += [
                PaddingPolicy("longest", side, pad, max_length),
                PaddingPolicy("max_length", side, pad, max_length),
                PaddingPolicy("multiple_of", side, pad, max_length, multiple_of=7),
            ]
    return found
