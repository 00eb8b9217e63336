"""A model that needs no files: a few hundred fixed weights, whose answer to a text depends on every token."""

from __future__ import annotations

from typing import final

import torch

from pipeline_kit.stages import Model, StageContext
from pipeline_kit.testing.kit import TinyModelConfig
from pipeline_kit.types import ModelOutput, Side, TokenBatch

__all__ = ["TinyModel"]


@final
class TinyModel(Model):
    """Gives ``last_hidden_state [B, T, H]`` and ``logits``.

    ``logits`` are ``[B, L]``, or ``[B, T, L]`` where the context's head is ``token-classification``; ``L``
    is the number of the checkpoint's labels. A token's vector mixes its id, its place, and the mean of its
    row, so that answers change with any token but not with padding.
    """

    def __init__(self, config: TinyModelConfig, context: StageContext) -> None:
        """Draw the weights."""
        generator = torch.Generator().manual_seed(config.seed)
        sizes = [(256, config.hidden_size), (config.hidden_size, len(context.checkpoint.labels))]
        place = {"device": context.device.name, "dtype": getattr(torch, context.device.dtype)}
        self._table, self._head = (torch.randn(size, generator=generator).to(**place) for size in sizes)
        self._per_token = context.head == "token-classification"

    @property
    def supported_sides(self) -> frozenset[Side]:
        """Both."""
        return frozenset({"left", "right"})

    @torch.inference_mode()
    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Give hidden states and logits; ids beyond the 256 rows of the table start again at 0."""
        mask = batch.attention_mask[:, :, None].to(self._table.dtype)
        places = batch.attention_mask.cumsum(dim=1)[:, :, None].to(self._table.dtype)
        words = self._table[batch.input_ids % len(self._table)] * mask
        mean = words.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        hidden = torch.tanh(words + mean + 0.1 * torch.sin(places))
        pooled = hidden if self._per_token else (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        per_token = {"last_hidden_state", "logits"} if self._per_token else {"last_hidden_state"}
        return ModelOutput({"last_hidden_state": hidden, "logits": pooled @ self._head}, frozenset(per_token))
