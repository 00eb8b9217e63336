"""``model=static``: one vector per token, averaged, and a linear head; needs no transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.functional import embedding, embedding_bag, linear

from pipeline_kit.builtin.models.hf.batches import TOLERANCES
from pipeline_kit.builtin.models.hf.heads import check_head_name, few
from pipeline_kit.builtin.models.options import StaticModelConfig
from pipeline_kit.contract.stages import Model, StageContext
from pipeline_kit.contract.types import Checkpoint, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import CheckpointError, for_message

EMBEDDINGS, HEAD, BIAS = "embeddings.weight", "classifier.weight", "classifier.bias"


@final
class StaticModel(Model):
    """Static token embeddings: a token's vector does not depend on its neighbours.

    The folder's ``config.json`` has ``model_type: static`` and ``id2label``; its ``model.safetensors`` has
    ``embeddings.weight [V, H]`` and, for classification, ``classifier.weight [L, H]`` and
    ``classifier.bias [L]``, in any float dtype. The idea is that of https://github.com/MinishLab/model2vec.

    ``sequence-classification`` returns ``logits [B, L]``: the head on the mean of a row's token vectors,
    padding left out. ``base`` returns those vectors, ``last_hidden_state [B, T, H]``.
    """

    deterministic = True

    def __init__(self, config: StaticModelConfig, context: StageContext) -> None:
        """Load the weights and check their shapes.

        :raises CheckpointError: if the checkpoint is of another kind or its weights do not fit together.
        :raises ConfigError: if there is no such head.
        """
        self._head = config.head or context.head
        check_head_name(self._head, ("base", "sequence-classification"))
        device = context.device
        self._tolerance = TOLERANCES[device.dtype]
        names = [EMBEDDINGS] if self._head == "base" else [EMBEDDINGS, HEAD, BIAS]
        self._seen: list[tuple[str, torch.Tensor]] | None = None
        weights = _load(context.checkpoint, names)
        self._weights = {
            name: weight.to(device=device.name, dtype=getattr(torch, device.dtype)) for name, weight in weights.items()
        }

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """Both: padding is not part of the mean."""
        return frozenset({"right", "left"})

    @property
    def tolerance(self) -> float:
        """1e-5 in float32, 0.02 in float16, 0.1 in bfloat16."""
        return self._tolerance

    @torch.inference_mode()
    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Return ``logits [B, L]``, or ``last_hidden_state [B, T, H]`` for ``base``, in the device's dtype."""
        table = self._weights[EMBEDDINGS]
        if self._seen is not None:
            self._seen.append(("embeddings", embedding(batch.input_ids, table)))
        if self._head == "base":
            states = embedding(batch.input_ids, table)
            return ModelOutput({"last_hidden_state": states}, frozenset({"last_hidden_state"}))
        if batch.has_padding:
            mask = batch.attention_mask.to(table.dtype)
            sums = embedding_bag(batch.input_ids, table, mode="sum", per_sample_weights=mask)
            means = sums / mask.sum(1, keepdim=True)
        else:
            means = embedding_bag(batch.input_ids, table, mode="mean")
        return ModelOutput({"logits": linear(means, self._weights[HEAD], self._weights[BIAS])})

    @contextmanager
    def capture_layers(self) -> Iterator[Sequence[tuple[str, torch.Tensor]]]:
        before, self._seen = self._seen, []
        try:
            yield self._seen
        finally:
            self._seen = before


def _load(checkpoint: Checkpoint, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
    name = for_message(checkpoint.name)
    kind = checkpoint.config.get("model_type")
    if kind != "static":
        raise CheckpointError(
            f"the checkpoint '{name}' has model_type {for_message(repr(kind), 80)}, not 'static'; use model=hf with it"
        )
    path = checkpoint.path / "model.safetensors"
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            present = set(file.keys())
            weights = {key: file.get_tensor(key) for key in names if key in present}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read as safetensors: {for_message(str(error), 300)}") from error
    missing = [key for key in names if key not in weights]
    if missing:
        head = " It has no classification head; use task=sentence-embedding." * (EMBEDDINGS in weights)
        raise CheckpointError(f"the checkpoint '{name}' lacks the weights {', '.join(missing)}.{head}")
    unused = sorted(present - {EMBEDDINGS, HEAD, BIAS})
    if unused:
        raise CheckpointError(
            f"the checkpoint '{name}' holds weights that model=static does not use: {few(unused)}. Its file of weights "
            f"may hold {EMBEDDINGS}, {HEAD} and {BIAS} alone"
        )
    wide = weights[EMBEDDINGS].shape[-1] if weights[EMBEDDINGS].dim() else 0
    labels = len(checkpoint.labels)
    expected = {EMBEDDINGS: (len(weights[EMBEDDINGS]) if wide else 0, wide), HEAD: (labels, wide), BIAS: (labels,)}
    for key, weight in weights.items():
        if tuple(weight.shape) != expected[key] or not weight.is_floating_point():
            raise CheckpointError(
                f"the checkpoint '{name}': the weight {key} is {list(weight.shape)} of "
                f"{str(weight.dtype).removeprefix('torch.')}; expected floats of {list(expected[key])}, "
                f"for {labels} labels and vectors of {wide}"
            )
    return weights
