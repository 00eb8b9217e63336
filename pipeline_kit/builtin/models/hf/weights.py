"""Which weights of a checkpoint its network may leave unused; others mean that config.json is not theirs."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.nn.modules import module

from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, for_message

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


# A network has modules without weights, halves that an encoder saved by itself lacks, and tables that are tied.
_MODULES_PER_WEIGHT, _MORE_MODULES = 16, 1000
_TIMES, _MORE_NUMBERS = 8, 1 << 20
_BUFFER_NUMBERS = 1 << 28  # a causal mask for 16,384 positions


@contextmanager
def backed_sizes(checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Refuse what is built inside if no weights back it; nothing of it has memory yet, since it is on ``meta``.

    :param shapes: of the checkpoint's weights, by name.
    :raises CheckpointError: naming the part that is too large, or the number of parts.
    """
    numbers = sum(math.prod(shape) for shape in shapes.values())
    most_modules = _MODULES_PER_WEIGHT * len(shapes) + _MORE_MODULES
    thread, modules, asked = threading.get_ident(), 0, 0

    def refuse(what: str) -> None:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} asks for {what}, but the {len(shapes)} weights of the checkpoint hold "
            f"{numbers} numbers in all. Check the sizes in config.json, or download the checkpoint again"
        )

    def on_module(owner: Any, name: str, part: Any) -> None:
        nonlocal modules
        modules += threading.get_ident() == thread
        if modules > most_modules:
            refuse(f"a network of over {most_modules} parts")

    def on_parameter(owner: Any, name: str, weight: Any) -> None:
        nonlocal asked
        if weight is None or not weight.is_meta or threading.get_ident() != thread:
            return
        asked += weight.numel()
        if weight.numel() > numbers + _MORE_NUMBERS or asked > _TIMES * numbers + _MORE_NUMBERS:
            refuse(f"a weight '{for_message(name, 80)}' of shape {list(weight.shape)} in a {type(owner).__name__}")

    def on_buffer(owner: Any, name: str, buffer: Any) -> None:
        if buffer is not None and threading.get_ident() == thread and buffer.numel() > numbers + _BUFFER_NUMBERS:
            refuse(f"a table '{for_message(name, 80)}' of shape {list(buffer.shape)} in a {type(owner).__name__}")

    hooks = (
        module.register_module_module_registration_hook(on_module),
        module.register_module_parameter_registration_hook(on_parameter),
        module.register_module_buffer_registration_hook(on_buffer),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
