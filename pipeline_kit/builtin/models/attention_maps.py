"""Attention weights of a transformers network, which only its plain ("eager") attention can give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pipeline_kit.builtin.models.layers import joined
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.types import TokenBatch

__all__ = ["attention_maps", "eager_attention", "named_attentions"]

_WINDOWED = frozenset({"longformer"})
"""Families whose weights are those of each token's neighbours, not of all tokens."""

_KINDS = (
    ("attentions", ""),
    ("encoder_attentions", "encoder "),
    ("decoder_attentions", "decoder "),
    ("cross_attentions", "cross "),
)
"""By transformers' name what ours begins with; ``cross`` is from the decoder's tokens to the encoder's."""


@contextmanager
def eager_attention(network: Any) -> Iterator[None]:
    """Let `network` attend by plain products while the body runs, and by what it had before afterwards."""
    before = network.config._attn_implementation
    if before == "eager":
        yield
        return
    with quiet():
        network.set_attn_implementation("eager")
    try:
        yield
    finally:
        with quiet():
            network.set_attn_implementation(before)


def named_attentions(network: Any, output: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Give the maps ``[B, heads, T, T]`` in a network's output by layer name; {} for a network that has none.

    Of a network that writes, `output` holds a tuple for each step: those of the first one are taken.
    """
    if network.config.model_type in _WINDOWED:
        return {}
    found: dict[str, torch.Tensor] = {}
    for name, prefix in _KINDS:
        layers = output.get(name)
        if layers and isinstance(layers[0], tuple):
            layers = layers[0]
        for number, weights in enumerate(layers or (), start=1):
            if isinstance(weights, torch.Tensor) and weights.dim() == 4:
                found[f"{prefix}layer {number}"] = weights
    return found


def attention_maps(
    run: Callable[[TokenBatch], Mapping[str, torch.Tensor]],
    batch: TokenBatch,
    groups: Sequence[torch.Tensor],
    narrow: Callable[[TokenBatch, torch.Tensor], TokenBatch],
) -> Mapping[str, torch.Tensor]:
    """Give the maps of a batch whose `groups` of rows are run apart by `run`, zero where nothing ran."""
    if len(groups) < 2:
        return run(batch)
    parts = [run(narrow(batch, rows)) for rows in groups]
    return {name: joined([part[name] for part in parts], groups, batch, (2, 3)) for name in parts[0]}
