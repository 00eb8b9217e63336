"""Outputs of the parts of an example (one per label, document or choice): one row for each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline_kit.builtin.postprocessors.merge import merge_windows
from pipeline_kit.types import Encoding, RowOutput

__all__ = ["merge_parts"]

Floats = np.ndarray[Any, np.dtype[np.float32]]


def merge_parts(
    encodings: Sequence[Sequence[Encoding]],
    outputs: Sequence[Sequence[RowOutput]],
    name: str,
    how: Literal["mean", "max"] = "mean",
) -> list[Floats]:
    """Merge the windows of each part of each example into one row.

    :param how: as :func:`~pipeline_kit.builtin.postprocessors.merge.merge_windows` has it.
    :returns: for each example ``[parts, columns]``, float32, in the order of the parts; there must be at
        least one example.
    :raises ExampleError: if a value is not a finite number.
    """
    windows: list[Sequence[Encoding]] = []
    values: list[Sequence[RowOutput]] = []
    ends: list[int] = []
    for own, given in zip(encodings, outputs, strict=True):
        starts = [i for i, encoding in enumerate(own) if not i or encoding.part != own[i - 1].part]
        for start, end in zip(starts, [*starts[1:], len(own)], strict=True):
            windows.append(own[start:end])
            values.append(given[start:end])
        ends.append(len(values))
    rows = merge_windows(windows, values, name, how)
    return np.split(rows, ends[:-1])
