"""From a batch to a head's tensors, rows that may not be seen together apart, as ``model=hf`` has it."""

from __future__ import annotations

import torch

from pipeline_kit.builtin.models.batches import groups_by_end, groups_by_padding, narrow
from pipeline_kit.exported.facts import PER_TOKEN, Facts, feed
from pipeline_kit.exported.format import Graph
from pipeline_kit.types import ModelOutput, TokenBatch

__all__ = ["answer"]


def answer(graph: Graph, facts: Facts, batch: TokenBatch) -> ModelOutput:
    """Run `batch` through the graph.

    :returns: the tensors of the head, float32, on the batch's device.
    """
    if facts.head in PER_TOKEN:
        tensors = graph(feed(batch, facts.head, facts.takes), facts.outputs)
        return ModelOutput(tensors, frozenset(tensors))
    groups = _groups(facts, batch)
    if len(groups) < 2:
        return ModelOutput({"logits": _logits(graph, facts, batch)})
    parts = torch.cat([_logits(graph, facts, narrow(batch, rows)) for rows in groups])
    return ModelOutput({"logits": parts[torch.cat(groups).argsort()]})


def _logits(graph: Graph, facts: Facts, batch: TokenBatch) -> torch.Tensor:
    logits = graph(feed(batch, facts.head, facts.takes), facts.outputs)["logits"]
    return logits[:, 0] if facts.head == "multiple-choice" else logits


def _groups(facts: Facts, batch: TokenBatch) -> list[torch.Tensor]:
    if facts.head != "sequence-classification":
        return []
    if facts.end is not None:
        return groups_by_end(batch, facts.end)
    if facts.takes.pad_token_id is not None:
        return groups_by_padding(batch, facts.takes.pad_token_id)
    return []
