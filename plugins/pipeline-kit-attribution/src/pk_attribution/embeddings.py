"""A transformers network run from token embeddings, by putting them in the place of those it looks up itself.

transformers' own ``inputs_embeds`` is not used: not every head takes it, and a network that never sees the ids finds
other positions (RoBERTa) or another last token (a decoder's classifier) than in ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import final

import torch
from torch import nn

from pipeline_kit import ModelOutput, TokenBatch
from pipeline_kit.kit import Differentiable, UsageError

Swap = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | None"]
"""From the ids that were looked up and what was found for them to what the network shall get; None: the latter."""


@final
class FromEmbeddings:
    """A network that takes token embeddings.

    It reads one row at a time, a batch of one without padding, and returns for it what the stage returns in any batch.
    Encoder-decoders look up a row's ids twice, the second time shifted by one; both get the embeddings that are given.
    """

    def __init__(self, found: Differentiable) -> None:
        """Find the tables of token embeddings in the network.

        :raises UsageError: if there are none.
        """
        self._answers = found.forward
        self._name, self.note = type(found.network).__name__, found.note
        try:
            table = found.network.get_input_embeddings()  # type: ignore[operator]
        except (AttributeError, NotImplementedError):
            table = None
        if not isinstance(table, nn.Embedding):
            raise self._refused("has no table of token embeddings")
        # An encoder-decoder may have one module for each half, which share the weights.
        same = (m for m in found.network.modules() if isinstance(m, nn.Embedding) and m.weight is table.weight)
        self._tables = list(same)

    def embed(self, batch: TokenBatch) -> torch.Tensor:
        """Return what stands for the row's tokens in the network before anything else is added to it.

        :param batch: one row without padding, ``input_ids [1, T]``.
        :returns: ``[1, T, H]``, float32, without a gradient of its own.
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
        """Run the network on other embeddings in place of the row's own; positions, segments and ids stay the row's.

        :param embeddings: ``[N, T, H]``, N variants of what :meth:`embed` returned.
        :returns: the tensors of ``forward`` with first dimension ``N``, through which gradients flow back to
            `embeddings`.
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
