"""A transformers network run from token embeddings, by putting them in the place of those it looks up itself.

transformers' own ``inputs_embeds`` is not used: not every head takes it, and a network that never sees the ids finds
other positions (RoBERTa) or another last token (a decoder's classifier) than in ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from torch import nn

from pipeline_kit.builtin.models.options import HfModelConfig
from pipeline_kit.contract.stages import Differentiable, StageContext
from pipeline_kit.contract.types import ModelOutput, TokenBatch
from pipeline_kit.errors import UsageError

Swap = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | None"]
"""From the ids that were looked up and what was found for them to what the network shall get; None: the latter."""


def plain_form(config: HfModelConfig, context: StageContext) -> tuple[HfModelConfig, StageContext]:
    """Return what a stage in float32 is built with that runs torch's own layers, each of which has a gradient."""
    attention = None if config.attn_implementation == "flash_attention_2" else config.attn_implementation
    plain = HfModelConfig(config.head, attention, "eager")
    return plain, replace(context, device=replace(context.device, dtype="float32"))


@final
class FromEmbeddings(Differentiable):
    """A network of ``model=hf`` with gradients.

    Encoder-decoders look up a row's ids twice, the second time shifted by one; both get the embeddings that are given.
    """

    def __init__(self, network: Any, answers: Callable[[TokenBatch], ModelOutput], note: str) -> None:
        """Find the tables of token embeddings in `network`.

        :param answers: runs it on a batch, gradients allowed.
        :raises UsageError: if there are none.
        """
        self._name = type(network).__name__
        self._answers = answers
        self._note = note
        try:
            table = network.get_input_embeddings()
        except NotImplementedError:
            table = None
        if not isinstance(table, nn.Embedding):
            raise self._refused("has no table of token embeddings")
        # An encoder-decoder may have one module for each half, which share the weights.
        same = (m for m in network.modules() if isinstance(m, nn.Embedding) and m.weight is table.weight)
        self._tables = list(same)

    @property
    def note(self) -> str:
        """See :class:`~pipeline_kit.contract.stages.Differentiable`."""
        return self._note

    def embed(self, batch: TokenBatch) -> torch.Tensor:
        """See :class:`~pipeline_kit.contract.stages.Differentiable`.

        :raises UsageError: if the network does not look up its ids as a whole.
        """
        found: list[torch.Tensor] = []

        def keep(ids: torch.Tensor, looked_up: torch.Tensor) -> None:
            if ids.shape == batch.input_ids.shape[::-1] and torch.equal(ids.T, batch.input_ids):
                found.append(looked_up.transpose(0, 1))
            elif ids.dim() == 2 and torch.equal(ids[:, : batch.input_ids.shape[1]], batch.input_ids):
                found.append(looked_up[:, : batch.input_ids.shape[1]])

        with torch.inference_mode(mode=False), torch.no_grad(), self._looking(keep):
            self._answers(batch)
        if not found:
            raise self._refused("does not look up a text's tokens as they are")
        return found[0].clone()

    def forward_embeddings(self, embeddings: torch.Tensor, batch: TokenBatch) -> ModelOutput:
        """See :class:`~pipeline_kit.contract.stages.Differentiable`.

        :raises UsageError: if the network looks up ids that cannot be told to be the row's.
        """
        count, types = len(embeddings), batch.token_type_ids
        variants = replace(
            batch,
            input_ids=batch.input_ids.expand(count, -1).contiguous(),
            attention_mask=batch.attention_mask.expand(count, -1).contiguous(),
            token_type_ids=None if types is None else types.expand(count, -1).contiguous(),
            lengths=batch.lengths.repeat(count),
        )

        def put(ids: torch.Tensor, looked_up: torch.Tensor) -> torch.Tensor | None:
            instead = _in_place_of(looked_up, ids, embeddings, variants.input_ids)
            types = variants.token_type_ids
            if instead is None and (types is None or not torch.equal(ids, types)):  # GPT-2 has segments in that table
                raise self._refused("looks up other tokens than the text's")
            return instead

        with self._looking(put):
            return self._answers(variants)

    @contextmanager
    def _looking(self, swap: Swap) -> Iterator[None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            del module
            return swap(inputs[0], output)

        handles = [table.register_forward_hook(hook) for table in self._tables]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _refused(self, why: str) -> UsageError:
        return UsageError(f"{self._name} {why}, so there is nothing to take gradients by; take another checkpoint")


def _in_place_of(
    looked_up: torch.Tensor, ids: torch.Tensor, embeddings: torch.Tensor, own: torch.Tensor
) -> torch.Tensor | None:
    """Arrange `embeddings` as the network looked them up; None if it is not known how.

    :param looked_up: what the network found for `ids`.
    :param embeddings: ``[N, T, H]`` of the ids `own`, ``[N, T]``.
    """
    count, width = own.shape
    if ids.shape == own.shape and torch.equal(ids, own):
        return embeddings
    if ids.shape == (width, count) and torch.equal(ids.T, own):  # XLNet has tokens first
        return embeddings.transpose(0, 1)
    if ids.dim() != 2 or len(ids) != count:
        return None
    if ids.shape[1] > width and torch.equal(ids[:, :width], own):  # Longformer fills up to its window
        return torch.cat([embeddings, looked_up[:, width:]], dim=1)
    if ids.shape == own.shape and torch.equal(ids[:, 1:], own[:, :-1]):  # a decoder's input
        return torch.cat([looked_up[:, :1], embeddings[:, :-1]], dim=1)
    return None
