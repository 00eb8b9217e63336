"""Token vectors to one vector per text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from pipeline_kit.builtin.postprocessors.configs import PoolingConfig
from pipeline_kit.builtin.postprocessors.merge import floats, merge_windows
from pipeline_kit.builtin.postprocessors.sentence_modules import Mode, read_sentence_modules
from pipeline_kit.stages import Postprocessor, StageContext
from pipeline_kit.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch

__all__ = ["Pooling", "pool"]


def pool(hidden: torch.Tensor, mask: torch.Tensor, mode: Mode) -> torch.Tensor:
    """Make one vector of each row's token vectors, whichever side the padding is on.

    :param hidden: float32 ``[B, T, H]``; what stands at padding is never looked at, not even NaN.
    :param mask: 1 for a token, 0 for padding, ``[B, T]``; each row has a token.
    :param mode: ``cls`` is the first token, ``last`` the last; ``weighted_mean`` weights tokens by their
        place in the row, from 1 (https://arxiv.org/abs/2202.08904).
    :returns: ``[B, H]``.
    """
    if mode in ("cls", "last"):
        first = mask.argmax(dim=1)
        place = first if mode == "cls" else first + mask.sum(dim=1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), place]
    padding = (mask == 0)[:, :, None]
    if mode == "max":
        return hidden.masked_fill(padding, -torch.inf).amax(dim=1)
    weights = (mask.cumsum(dim=1) * mask if mode == "weighted_mean" else mask).to(hidden.dtype)[:, :, None]
    return (hidden.masked_fill(padding, 0.0) * weights).sum(dim=1) / weights.sum(dim=1)


@final
class Pooling(Postprocessor):
    """Gives ``embedding``, a list of ``H`` floats.

    With ``auto`` and null the checkpoint's ``modules.json`` (sentence-transformers) says how to pool and
    whether to normalize; a folder without one gets the normalized mean. Prompts that such a folder may
    name are not added to the text.

    The windows of a long text are pooled one by one; their embedding is the mean of those vectors,
    weighted by tokens, for every mode, and is normalized after that.
    """

    def __init__(self, config: PoolingConfig, context: StageContext) -> None:
        """Settle what ``auto`` stands for.

        :raises CheckpointError: if `modules.json` cannot be read, or asks for what this stage cannot do
            where the options leave the choice to it.
        """
        self._mode: Mode = "mean"
        self._normalize = True
        if config.pooling == "auto" or config.normalize is None:
            modules = read_sentence_modules(context.checkpoint.path)
            if modules is not None:
                self._normalize = modules.normalize
            if config.pooling == "auto" and modules is not None:
                self._mode = modules.pooling_mode()
        if config.pooling != "auto":
            self._mode = config.pooling
        if config.normalize is not None:
            self._normalize = config.normalize

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Give ``embedding [B, H]``, float32, not normalized."""
        hidden = floats(output, "last_hidden_state", 3, "[B, T, H]")
        return ModelOutput({"embedding": pool(hidden, batch.attention_mask, self._mode)})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Give the vectors, normalized if asked for; a vector of zeros stays as it is.

        :raises ExampleError: if a value is not finite.
        """
        if not examples:
            return []
        vectors = merge_windows(encodings, outputs, "embedding")
        if self._normalize:
            # In float64, since the squares of large float32 values overflow.
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            vectors = np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
        return [{"embedding": vector} for vector in vectors.tolist()]
