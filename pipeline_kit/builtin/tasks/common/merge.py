"""What the built-in postprocessors share: reading a tensor, and making one row of an example's windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.contract.types import Encoding, ModelOutput, RowOutput
from pipeline_kit.errors import ExampleError, StageError

Windows = Sequence[Sequence[Encoding]]
"""For each example its encodings, in the order of their parts and, within one, of the windows of a long text."""

Outputs = Sequence[Sequence[RowOutput]]
"""For each example what the model returned for each of those; float32 arrays."""


def tensor_of(output: ModelOutput, name: str, dims: int, axes: str) -> torch.Tensor:
    """Return the tensor `name` of `output` as it is.

    :param dims: how many dimensions it has to have; `axes` names them in the message.
    :raises StageError: if the model returned no such tensor, or one of another rank.
    """
    tensor = output.tensors.get(name)
    if tensor is None:
        raise StageError(
            f"the postprocessor needs '{name}', the model has only {', '.join(sorted(output.tensors)) or 'nothing'}; "
            "does model.head fit the task?"
        )
    if tensor.ndim != dims:
        raise StageError(
            f"the postprocessor needs '{name}' as {axes}, the model returned the shape {list(tensor.shape)}"
        )
    return tensor


def floats(output: ModelOutput, name: str, dims: int, axes: str) -> torch.Tensor:
    """Return the tensor `name` of `output` as float32, as :func:`tensor_of` finds it."""
    return tensor_of(output, name, dims, axes).float()


def merge_windows(
    encodings: Windows, outputs: Outputs, name: str, how: Literal["mean", "max"] = "mean"
) -> NDArray[np.float32]:
    """Make one row per example out of the array `name` of each of its windows.

    :param how: ``mean`` is ``sum(w * x) / sum(w)`` over the windows with :func:`window_weights`; ``max`` takes
        the largest value of each column. An example of one window keeps its values, bit by bit.
    :returns: ``[len(outputs), columns]``, float32; there must be at least one example.
    :raises ExampleError: if a value is not a finite number.
    """
    rows: NDArray[np.float32] = np.stack([window[name] for window in chain.from_iterable(outputs)])
    if not np.isfinite(rows).all():
        raise ExampleError(f"the model's '{name}' for this example are not all finite numbers")
    counts = np.fromiter((len(windows) for windows in outputs), dtype=np.int64, count=len(outputs))
    if len(rows) == len(outputs):
        return rows
    starts = np.cumsum(counts) - counts
    if how == "max":
        return np.asarray(np.maximum.reduceat(rows, starts, axis=0), dtype=np.float32)
    # In float64, since weights times values near the largest float32 would overflow.
    weights = np.concatenate([window_weights(windows) for windows in encodings])
    sums = np.add.reduceat(rows * weights[:, None], starts, axis=0)
    return np.asarray(sums / np.add.reduceat(weights, starts)[:, None], dtype=np.float32)


def window_weights(windows: Sequence[Encoding]) -> NDArray[np.float64]:
    """Return the weight of each window of an example: how many tokens of the long text it stands for.

    Each token of the text counts once in all: one that ``n`` windows hold counts ``1 / n`` in each of them, or a
    passage would weigh more for lying where windows overlap, and a short last window for repeating its neighbour.
    Special tokens, and the other text of a pair, which each window repeats, do not count.

    :returns: ``[len(windows)]``, adding up to the tokens of the text; 1 for a single window. From a tokenizer
        that does not fill ``Encoding.token_span``: the number of tokens of each window.
    """
    if len(windows) == 1:
        return np.ones(1)
    spans = [window.token_span for window in windows if window.token_span is not None]
    if len(spans) < len(windows):
        return np.array([len(window.input_ids) for window in windows], dtype=np.float64)
    begins, ends = np.array(spans, dtype=np.int64).T
    steps = np.zeros(int(ends.max()) + 1)
    np.add.at(steps, begins, 1)
    np.add.at(steps, ends, -1)
    holders = steps.cumsum()[:-1]
    # Tokens that no window holds, where a plugin leaves gaps, have no share to give.
    shares = np.divide(1.0, holders, out=np.zeros_like(holders), where=holders > 0)
    before = np.concatenate([[0.0], shares.cumsum()])
    return np.asarray(before[ends] - before[begins], dtype=np.float64)


def check_labels(width: int, labels: Sequence[str], checkpoint: str) -> None:
    """Raise StageError if a model that returns `width` logits has not one for each of `labels`."""
    if width != len(labels):
        raise StageError(
            f"the model returns {width} logits, but '{checkpoint}' names {len(labels)} labels; "
            "check id2label in its config.json"
        )


def merge_parts(
    encodings: Windows, outputs: Outputs, name: str, how: Literal["mean", "max"] = "mean"
) -> list[NDArray[np.float32]]:
    """Merge the windows of each part of each example into one row.

    :param how: as :func:`merge_windows` has it.
    :returns: for each example ``[parts, columns]``, float32, in the order of the parts.
    :raises ExampleError: if a value is not a finite number.
    """
    if not encodings:
        return []
    windows: list[list[Encoding]] = []
    values: list[list[RowOutput]] = []
    ends: list[int] = []
    for own, given in zip(encodings, outputs, strict=True):
        for _, part in groupby(zip(own, given, strict=True), lambda pair: pair[0].part):
            both = list(part)
            windows.append([encoding for encoding, _ in both])
            values.append([row for _, row in both])
        ends.append(len(values))
    return np.split(merge_windows(windows, values, name, how), ends[:-1])


@dataclass(frozen=True)
class RankedParts:
    """The parts of an example, scored.

    :param values: of each part, its windows merged, ``[parts]``, float32.
    :param scores: what they are as scores, float64.
    :param order: the parts, best first; of equal ones the first given.
    """

    values: NDArray[np.float32]
    scores: NDArray[np.float64]
    order: list[int]


def rank_parts(
    encodings: Windows,
    outputs: Outputs,
    name: str,
    functions: Iterable[Literal["softmax", "sigmoid", "exp", "none"]],
    how: Literal["mean", "max"] = "mean",
) -> list[RankedParts]:
    """Merge the windows of each part of each example, and score the parts.

    They are ranked by value: scores near 1 are equal in float32 long before the values are.

    :param functions: for each example how values become scores; ``softmax`` is one over its parts.
    """
    found = []
    for rows, function in zip(merge_parts(encodings, outputs, name, how), functions, strict=False):
        values = rows[:, 0]
        scores = values.astype(np.float64)
        if function == "softmax":
            powers = np.exp(scores - scores.max())
            scores = powers / powers.sum()
        elif function == "sigmoid":
            scores = np.exp(-np.logaddexp(0.0, -scores))
        elif function == "exp":
            scores = np.exp(scores)
        found.append(RankedParts(values, scores, np.argsort(-values, kind="stable").tolist()))
    return found
