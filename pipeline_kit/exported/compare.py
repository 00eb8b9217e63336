"""Whether a graph gives what its network gives, for every length, and on which side it may be padded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pipeline_kit.builtin.models.batches import Inputs, network_inputs
from pipeline_kit.builtin.models.padding_safety import known_sides, probe_sides, sample_batch
from pipeline_kit.exported.facts import Facts, feed
from pipeline_kit.exported.format import Graph
from pipeline_kit.exported.running import answer
from pipeline_kit.stages import StageContext
from pipeline_kit.types import Device, Side, TokenBatch

__all__ = ["difference", "safe_sides", "sample", "trials"]

# The graph's arithmetic is the network's in another order; a branch that was traced for one length alone, or a
# dimension that was taken for a constant, is some hundred times above this share of the largest number.
_NOISE = 1e-4
_LONGEST = 1024  # tokens of the longest trial; attention takes memory by the square of them


def sample(settings: Any, takes: Inputs) -> TokenBatch:
    """Give two rows of equal length on the CPU, with token types where the graph has them."""
    return _typed(sample_batch(settings, Device()), takes, settings)


def trials(batch: TokenBatch, context: StageContext, settings: Any) -> Iterator[TokenBatch]:
    """Give batches without padding, of one row and of several, from one token to the most there may be.

    :param batch: what :func:`sample` gave.
    """
    longest = _longest(context, settings)
    for rows, width in ((2, batch.input_ids.shape[1]), (1, 1), (1, 2), (3, 6), (1, longest)):
        body = batch.input_ids[0, :-1].repeat(width // 10 + 2)
        ids = torch.stack([torch.cat([body[row : row + width - 1], batch.input_ids[0, -1:]]) for row in range(rows)])
        types = batch.token_type_ids
        if types is not None:
            types = types[:1].repeat(rows, width // types.shape[1] + 1)[:, :width]
        lengths = batch.lengths[:1].repeat(rows) * 0 + width
        yield replace(batch, input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=types, lengths=lengths)


def difference(network: Any, graph: Graph, facts: Facts, batch: TokenBatch) -> str | None:
    """Say where the graph parts from the network as ``model=hf`` calls it, None if it does not."""
    count, width = batch.input_ids.shape
    try:
        found = graph(feed(batch, facts.head, facts.takes), facts.outputs)
    except RuntimeError as error:
        return f"the graph fails for {count} x {width} tokens: {error}"
    given = network_inputs(batch, facts.takes)
    if facts.head == "multiple-choice":
        given = {name: v[:, None] if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    answers = network(**given)
    for name, value in found.items():
        expected = getattr(answers, name)
        limit = _NOISE * expected.abs().max().clamp(min=1.0)
        if value.shape != expected.shape or not bool((value - expected).abs().max() <= limit):
            return f"the graph's answers differ for {count} x {width} tokens"
    return None


def safe_sides(graph: Graph, facts: Facts, context: StageContext, settings: Any) -> frozenset[Side]:
    """Find the padding sides that leave the graph's answers as they are."""
    filler = None if context.tokenizer is None else context.tokenizer.pad_token_id

    def forward(batch: TokenBatch) -> Any:
        return answer(graph, facts, _typed(batch, facts.takes, None))

    tried = probe_sides(forward, settings, Device(), filler)
    known = known_sides(settings, facts.head)
    return tried if known is None else tried & known


def _typed(batch: TokenBatch, takes: Inputs, settings: Any) -> TokenBatch:
    """Add token types where the graph has them, both kinds where there are two."""
    if not takes.token_type_ids:
        return batch
    types = torch.zeros_like(batch.input_ids)
    if (getattr(settings, "type_vocab_size", None) or 1) > 1:
        types[:, types.shape[1] // 2 :] = 1
    return replace(batch, token_type_ids=types)


def _longest(context: StageContext, settings: Any) -> int:
    text = settings.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    known = [
        limit - 2 for limit in limits if isinstance(limit, int) and limit > 2
    ]  # RoBERTa's first two are no token's
    if context.tokenizer is not None and context.tokenizer.max_length is not None:
        known = [context.tokenizer.max_length]
    return min([_LONGEST, *known])
