"""Loads a transformers model from a local folder, and nothing but what the folder's weights hold."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch

from pipeline_kit.builtin.models.hf.heads import few, missing_head, refuse_lookalike
from pipeline_kit.builtin.models.hf.weights import backed_sizes, unexplained
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


_MAPPINGS = {
    "base": "MODEL_MAPPING",
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "question-answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING",
    "multiple-choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING",
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
}
"""By head: transformers' table of the classes that have it."""


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
    # A T5 encoder saved by itself, as in sentence-t5, has a config.json that says it is no encoder-decoder.
    alone = any(str(name).endswith("EncoderModel") for name in checkpoint.config.get("architectures") or ())
    if head == "base" and (config.is_encoder_decoder or (alone and hasattr(network, "decoder"))):
        encoder = network.get_encoder()
        _check_weights(checkpoint, head, network, info, within=_names_in(network, encoder))
        _check_unused(checkpoint, head, network, info, saved)
        network = encoder
    else:
        _check_weights(checkpoint, head, network, info)
        _check_unused(checkpoint, head, network, info, saved)
    return network.eval().requires_grad_(False).to(device.name)


def _settings(checkpoint: Checkpoint) -> Any:
    import transformers

    kind = checkpoint.config.get("model_type")
    if kind == "static":
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' holds static embeddings (model_type 'static'); "
            "use model=static with it"
        )
    known = list(transformers.CONFIG_MAPPING.keys())
    if kind not in known:
        near = closest_match(kind, known)
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' has model_type {for_message(repr(kind), 80)} in "
            "config.json, "
            f"which transformers {transformers.__version__} does not know."
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

    mapping = getattr(transformers, _MAPPINGS[head])
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


def _check_weights(
    checkpoint: Checkpoint, head: str, network: Any, info: Any, within: frozenset[str] | None = None
) -> None:
    """Refuse a network of which a part that the answer depends on was not in the checkpoint.

    :param info: the loading info of ``from_pretrained``.
    :param within: look at these weights only.
    """
    wrong = [item for item in info["mismatched_keys"] if within is None or item[0] in within]
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


def _check_unused(checkpoint: Checkpoint, head: str, network: Any, info: Any, saved: Collection[str]) -> None:
    """Refuse weights that the network leaves unused without a known reason: it has fewer layers, or other ones."""
    unused = unexplained(network, info["unexpected_keys"], saved, head == "base")
    if unused:
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' holds weights that the network of its config.json does "
            "not "
            f"use: {few(unused)}. Check the number of layers, model_type and architectures in config.json, or download "
            "it again; a file of weights may hold nothing but the model's own"
        )


def _names_in(network: Any, part: Any) -> frozenset[str]:
    """Return the names in `network` of the weights that `part` uses."""
    used = {id(weight) for weight in part.parameters()}
    return frozenset(n for n, weight in network.named_parameters(remove_duplicate=False) if id(weight) in used)
