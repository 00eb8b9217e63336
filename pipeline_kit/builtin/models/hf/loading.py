"""Loads a transformers model from a local folder, and nothing but what the folder's weights hold."""

from __future__ import annotations

import inspect
import math
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import module

from pipeline_kit.builtin.models.hf.heads import HEAD_KINDS, few, missing_head, refuse_lookalike
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.checkpoint.resolve import weight_shapes
from pipeline_kit.contract.types import Checkpoint, Device
from pipeline_kit.errors import CheckpointError, ConfigError, Fault, closest_match, for_message

# A config.json may name a kernel to download or a class of its own, ask for more output than a stage reads, and cut
# layers into pieces, which changes no answer but fails for texts of other lengths.
_NOT_FROM_A_FILE = frozenset(
    {"_attn_implementation", "attn_implementation", "auto_map"}
    | {"_experts_implementation", "experts_implementation"}
    | {"chunk_size_feed_forward", "chunk_size_lm_head"}
    | {"output_attentions", "output_hidden_states", "return_dict"}
)


def load_network(checkpoint: Checkpoint, device: Device, head: str, attn_implementation: str | None) -> Any:
    """Load the network of `checkpoint` with `head`, in evaluation mode on `device`.

    :returns: a transformers model; for ``base`` of an encoder-decoder, its encoder.
    :raises CheckpointError: if the folder lacks weights that the answer depends on, or cannot be read.
    :raises ConfigError: if the architecture does not have `attn_implementation`.
    """
    saved = weight_shapes(checkpoint)
    refuse_lookalike(checkpoint, head, saved)
    config = _settings(checkpoint)
    network_class = _network_class(checkpoint, config, head)
    extra: dict[str, Any] = {}
    if head == "base" and "add_pooling_layer" in inspect.signature(network_class.__init__).parameters:
        extra["add_pooling_layer"] = False
    try:
        with quiet(), backed_sizes(checkpoint, saved):
            network, info = network_class.from_pretrained(
                checkpoint.path,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=getattr(torch, device.dtype),
                attn_implementation=_attention(network_class, config, device, attn_implementation),
                **extra,
            )
    except (CheckpointError, ConfigError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' could not be loaded as {network_class.__name__}: "
            f"{for_message(str(error), 300)}"
        ) from error
    # A T5 encoder saved by itself, as in sentence-t5, has ``"is_encoder_decoder": false`` in its config.json.
    alone = any(str(name).endswith("EncoderModel") for name in checkpoint.config.get("architectures") or ())
    if head == "base" and (config.is_encoder_decoder or (alone and hasattr(network, "decoder"))):
        kept = network.get_encoder()
        used = {id(weight) for weight in kept.parameters()}
        names = network.named_parameters(remove_duplicate=False)
        within = frozenset(name for name, weight in names if id(weight) in used)
    else:
        kept, within = network, None
    _check_weights(checkpoint, head, network, info, within)
    unused = unexplained(network, info["unexpected_keys"], saved, head == "base")
    if unused:
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' holds weights that the network of its config.json does "
            f"not use: {few(unused)}. Check the number of layers, model_type and architectures in config.json, or "
            "download it again; a file of weights may hold nothing but the model's own"
        )
    return kept.eval().requires_grad_(False).to(device.name)


def _settings(checkpoint: Checkpoint) -> Any:
    import transformers

    kind = checkpoint.config.get("model_type")
    if kind == "static":
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' holds static embeddings (model_type 'static'); "
            "use model=static tokenizer=tokenizers_json with it"
        )
    known = list(transformers.CONFIG_MAPPING.keys())
    if kind not in known:
        near = closest_match(kind, known)
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' has model_type {for_message(repr(kind), 80)} in "
            f"config.json, which transformers {transformers.__version__} does not know."
            + (f" The closest that it knows is '{near}'." if near else "")
            + " A model that needs its own code cannot be loaded."
        )
    settings = _followed(checkpoint.config)
    try:
        with quiet():
            return transformers.CONFIG_MAPPING[kind].from_dict(settings)
    except Exception as error:
        raise CheckpointError(
            f"the config.json of '{for_message(checkpoint.name)}' is not one of a {kind}: "
            f"{for_message(str(error), 300)}"
        ) from error


def _followed(config: Any) -> Any:
    """Return a copy of `config` without what is not followed, at any depth."""
    if isinstance(config, Mapping):
        return {key: _followed(value) for key, value in config.items() if key not in _NOT_FROM_A_FILE}
    return [_followed(value) for value in config] if isinstance(config, list) else config


def _network_class(checkpoint: Checkpoint, config: Any, head: str) -> Any:
    import transformers

    mapping = getattr(transformers, HEAD_KINDS[head].auto)._model_mapping
    if type(config) not in mapping:
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' is a {config.model_type}, "
            f"for which transformers has no {head} head"
        )
    found = mapping[type(config)]
    if not isinstance(found, tuple):
        return found
    named = [item for item in found if item.__name__ in (checkpoint.config.get("architectures") or ())]
    return (named or found)[0]


def _attention(network_class: Any, config: Any, device: Device, asked: str | None) -> str:
    """Choose the attention kernel by name; transformers would look for a name it does not know on the hub."""
    import transformers

    available = ["sdpa"] if network_class._supports_sdpa else []
    available.append("eager")
    hint = None
    if network_class._supports_flash_attn:
        if device.kind != "cuda" or device.dtype == "float32":
            hint = "flash_attention_2 needs device=cuda and device.dtype=bfloat16 or float16"
        elif not transformers.utils.is_flash_attn_2_available():
            hint = "flash_attention_2 needs the package flash-attn"
        else:
            available.append("flash_attention_2")
    if asked is None:
        return available[0]
    if asked not in available:
        problem = f"'{asked}' is not available for a {config.model_type} on {device.name} in {device.dtype}."
        raise ConfigError([Fault("model.attn_implementation", problem, tuple(available), hint=hint)])
    return asked


def _check_weights(checkpoint: Checkpoint, head: str, network: Any, info: Any, within: frozenset[str] | None) -> None:
    """Refuse a network of which a part that the answer depends on was not in the checkpoint.

    :param within: look at these weights only; None: at all.
    """
    wrong = sorted(item for item in info["mismatched_keys"] if within is None or item[0] in within)
    if wrong:
        name, saved, expected = wrong[0]
        prefix = f"{network.base_model_prefix}."
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}': the weight {for_message(name)} has shape {list(saved)}, "
            f"config.json asks for {list(expected)}"
            + (f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else "")
            + ("; check the sizes in it" if name.startswith(prefix) else "; is num_labels or id2label right?")
        )
    missing = [name for name in info["missing_keys"] if within is None or name in within]
    if head == "base":  # last_hidden_state is taken before the pooler
        missing = [name for name in missing if not name.startswith("pooler.") and ".pooler." not in name]
    if missing:
        inside = all(name.startswith(f"{network.base_model_prefix}.") for name in missing)
        raise missing_head(checkpoint, "base" if inside else head, missing, info["unexpected_keys"])
    if info["error_msgs"]:
        why = for_message(str(info["error_msgs"][0]), 300)
        raise CheckpointError(f"the checkpoint '{for_message(checkpoint.name)}' could not be loaded: {why}")


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
    """Return the names of `unexpected` weights that `network` may not leave unused, sorted.

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
    """Raise CheckpointError for what is built inside, still on ``meta``, if no weights of these `shapes` back it."""
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
