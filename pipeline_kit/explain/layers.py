"""What layers gave, and attention maps with the proof that they belong to what ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline_kit.explain.arrays import to_numpy
from pipeline_kit.explain.trace import Layer
from pipeline_kit.stages import Model
from pipeline_kit.types import TokenBatch

__all__ = ["attention_arrays", "layer_of"]

Seen = Sequence[tuple[str, Any]]


def layer_of(name: str, states: Any, batch: TokenBatch) -> Layer:
    """Describe the hidden states of one layer.

    :param states: a tensor ``[B, T, H]``; of a search with n beams ``[B * n, T, H]``, where only the first beam of
        each row is kept, since all of them are the same in the pass that is watched.
    """
    import torch

    rows, width = batch.input_ids.shape
    if states.shape[0] > rows and states.shape[0] % rows == 0:
        states = states[:: states.shape[0] // rows]
    norms = torch.linalg.vector_norm(states.float(), dim=-1)
    if norms.dim() == 2 and norms.shape[1] > width:  # a network that fills its rows up itself
        norms = norms[:, :width]
    return Layer(name, tuple(states.shape), str(states.dtype).removeprefix("torch."), to_numpy(norms))


def attention_arrays(model: Model, batch: TokenBatch, ran: Seen) -> tuple[dict[str, np.ndarray[Any, Any]], str]:
    """Ask `model` for the attention of `batch`, by a run of its own, and compare that run to the one that counts.

    :param ran: the hidden states of the run that gave the result.
    :returns: the maps, and a note that says how far the two runs' hidden states are apart.
    """
    with model.watched() as again:
        maps: Mapping[str, Any] = model.attentions(batch)
    if not maps:
        return {}, "the model tells nothing of its attention"
    found = {name: to_numpy(weights) for name, weights in maps.items()}
    difference = _difference(ran, again, batch)
    if difference is None:
        return found, "attention comes from a second run, which could not be compared with the one that gave the result"
    return found, (
        "attention comes from a second run; its hidden states differ by "
        f"{difference:.1e} at the most from those that gave the result"
    )


def _difference(ran: Seen, again: Seen, batch: TokenBatch) -> float | None:
    """Give the largest difference of two runs' hidden states, padding left out; None if they cannot be compared."""
    if not ran or [name for name, _ in ran] != [name for name, _ in again]:
        return None
    largest = 0.0
    rows = batch.input_ids.shape[0]
    for (_, first), (_, second) in zip(ran, again, strict=True):
        first, second = (states[:: max(1, states.shape[0] // rows)] for states in (first, second))
        if first.shape != second.shape:
            return None
        apart = (first.float() - second.float()).abs()
        if apart.shape[:2] == batch.attention_mask.shape:
            apart = apart[batch.attention_mask.bool()]
        largest = max(largest, float(apart.max()))
    return largest
