"""What the built-in postprocessors share: reading a tensor, and making one row of an example's windows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch

from pipeline_kit.errors import ExampleError, StageError
from pipeline_kit.types import Encoding, ModelOutput, RowOutput

__all__ = ["check_labels", "floats", "merge_windows"]

Floats = np.ndarray[Any, np.dtype[np.float32]]


def floats(output: ModelOutput, name: str, dims: int, axes: str) -> torch.Tensor:
    """Give the tensor `name` of `output` as float32.

    :param dims: how many dimensions it has to have; `axes` names them in the message.
    :raises StageError: if the model gave no such tensor, or one of another rank.
    """
    tensor = output.tensors.get(name)
    if tensor is None:
        raise StageError(
            f"the postprocessor needs '{name}', the model gave only {', '.join(sorted(output.tensors)) or 'nothing'}; "
            "does model.head fit the task?"
        )
    if tensor.ndim != dims:
        raise StageError(f"the postprocessor needs '{name}' as {axes}, the model gave the shape {list(tensor.shape)}")
    return tensor.float()


def merge_windows(
    encodings: Sequence[Sequence[Encoding]],
    outputs: Sequence[Sequence[RowOutput]],
    name: str,
    how: Literal["mean", "max"] = "mean",
) -> Floats:
    """Make one row per example out of the array `name` of each of its windows.

    :param how: ``mean`` weights a window by its number of tokens, special ones included; ``max`` takes
        the largest value of each column.
    :returns: ``[len(outputs), columns]``, float32; there must be at least one example.
    :raises ExampleError: if a value is not a finite number.
    """
    rows: Floats = np.stack([window[name] for window in chain.from_iterable(outputs)])
    if not np.isfinite(rows).all():
        raise ExampleError(f"the model's '{name}' for this example are not all finite numbers")
    counts = np.fromiter((len(windows) for windows in outputs), dtype=np.int64, count=len(outputs))
    if len(rows) == len(outputs):
        return rows
    starts = np.cumsum(counts) - counts
    if how == "max":
        return np.asarray(np.maximum.reduceat(rows, starts, axis=0), dtype=np.float32)
    # In float64, since weights times values near the largest float32 would overflow.
    weights = np.array([len(e.input_ids) for e in chain.from_iterable(encodings)], dtype=np.float64)
    sums = np.add.reduceat(rows * weights[:, None], starts, axis=0)
    return np.asarray(sums / np.add.reduceat(weights, starts)[:, None], dtype=np.float32)


def check_labels(rows: Floats, labels: Sequence[str], checkpoint: str) -> None:
    """Check that `rows`, ``[B, L]``, have a column for each of `labels`.

    :raises StageError: if they do not.
    """
    if rows.shape[1] != len(labels):
        raise StageError(
            f"the model gives {rows.shape[1]} logits, but '{checkpoint}' names {len(labels)} labels; "
            "check id2label in its config.json"
        )
