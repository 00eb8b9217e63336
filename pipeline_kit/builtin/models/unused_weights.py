"""Which weights of a checkpoint its network may leave unused; others mean that config.json is not theirs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

__all__ = ["unexplained"]

_COMPUTED = re.compile(
    # Buffers that older versions saved and that are computed today: positions, segments, causal masks, rotations.
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias|embed_positions\.weights?)$"
    r"|(^|\.)version$"  # fairseq's mark in the first checkpoints of BART
    r"|\._weight$"  # a second copy of DeBERTa's tables, from its pre-training
    r"|^loss_(fct|fn)\."  # the weights of classes in a loss
)
# What reads the first token for a head of pre-training; other heads and text vectors do without.
_POOLER = re.compile(r"(^|\.)pooler\.")
# The modules of heads, by their names in transformers. A network leaves the heads of other tasks alone.
_HEADS = frozenset(
    {"classification_head", "classifier", "cls.predictions", "cls.seq_relationship", "decoder"}
    | {"discriminator_predictions", "embed_out", "entity_predictions", "final_logits_bias", "generator_lm_head"}
    | {"generator_predictions", "head", "lm_head", "lm_loss", "lm_predictions", "logits_proj", "mask_predictions"}
    | {"output_projection", "pre_classifier", "pred_layer", "predictions", "qa_classifier", "qa_outputs", "score"}
    | {"sequence_summary", "sop_classifier", "vocab_layer_norm", "vocab_projector", "vocab_transform"}
)


def unexplained(network: Any, unexpected: Iterable[str], saved: Collection[str], base: bool) -> list[str]:
    """Return the weights of `unexpected` that a network may not leave unused, sorted.

    :param network: what was built for the checkpoint.
    :param unexpected: the names of weights that it has no place for.
    :param saved: the names of all weights of the checkpoint.
    :param base: whether the network has no head, so that it leaves any head unused.
    """
    modules = {name for name, _ in network.named_modules()}
    prefix = f"{network.base_model_prefix}."
    inside = base and any(name.startswith(prefix) for name in saved)

    def is_explained(name: str) -> bool:
        if _COMPUTED.search(name) or (inside and not name.startswith(prefix)):
            return True
        if (pooler := _POOLER.search(name)) and name[: pooler.end() - 1] not in modules:
            return True
        return any((name == head or name.startswith(f"{head}.")) and head not in modules for head in _HEADS)

    return sorted(name for name in unexpected if not is_explained(name))
