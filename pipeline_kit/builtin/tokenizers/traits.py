"""What a checkpoint's files say about its tokenizer, for reading it without transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from pipeline_kit.checkpoint_modules import read_mapping
from pipeline_kit.types import Side

__all__ = [
    "names_token_types",
    "pad_token",
    "read_optional",
    "sentence_transformers",
    "side",
    "takes_token_types",
    "usable_pad_id",
]

# Which classes and architectures ask for segment ids, as transformers 5 has it in `model_input_names`.
_TYPED_CLASSES = frozenset(
    {"Bert", "Canine", "ConvBert", "Deberta", "DebertaV2", "Electra", "FNet", "LayoutLM", "Lxmert", "MarkupLM"}
    | {"MobileBert", "SqueezeBert", "Tapas"}
)
_TYPED_MODELS = frozenset(
    {"bert", "bros", "canine", "convbert", "deberta", "deberta-v2", "dpr", "electra", "ernie", "fnet", "layoutlm"}
    | {"lxmert", "markuplm", "megatron-bert", "mobilebert", "nezha", "nomic_bert", "qdqbert", "realm", "retribert"}
    | {"squeezebert", "tapas", "visual_bert"}
)
_UNTYPED_MODELS = frozenset({"bart", "distilbert", "mbart", "modernbert", "mpnet", "mt5", "t5", "umt5"})

_SENTENCE_TRANSFORMERS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


def takes_token_types(config: Mapping[str, Any], named: bool) -> bool:
    """Tell whether encodings need segment ids.

    :param config: the checkpoint's ``config.json``.
    :param named: whether the tokenizer has them among its ``model_input_names``. Even then a model
        with fewer than two segments gives the same answer without them, or takes none at all.
    """
    segments = config.get("type_vocab_size")
    if isinstance(segments, int):
        return named and segments > 1
    return named and config.get("model_type") not in _UNTYPED_MODELS


def names_token_types(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> bool:
    """Tell whether transformers' tokenizer of this checkpoint would name segment ids as an input."""
    names = tokenizer_config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    owner = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    if isinstance(owner, str):
        return owner.removesuffix("Fast").removesuffix("Tokenizer") in _TYPED_CLASSES
    return config.get("model_type") in _TYPED_MODELS


def side(tokenizer_config: Mapping[str, Any], key: str, stored: Mapping[str, Any] | None) -> Side:
    """Give ``padding_side`` or ``truncation_side``.

    :param stored: the padding or truncation that tokenizer.json itself holds.
    """
    found = tokenizer_config.get(key) or (stored or {}).get("direction")
    owner = str(tokenizer_config.get("tokenizer_class")).removesuffix("Fast")
    if found is None and key == "padding_side" and owner == "XLNetTokenizer":
        return "left"
    return "left" if found == "left" else "right"


def pad_token(folder: Path, tokenizer_config: Mapping[str, Any], stored: Mapping[str, Any] | None) -> str | None:
    """Give the padding token that the checkpoint's tokenizer files name, None if none does.

    :param stored: the padding that tokenizer.json itself holds.
    """
    places = (tokenizer_config, read_optional(folder / "special_tokens_map.json"), stored or {})
    for place in places:
        token = place.get("pad_token")
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            return token
    return None


def usable_pad_id(backend: Backend, named: int | None, config: Mapping[str, Any]) -> int | None:
    """Give the id that fills padding: `named`, else the one in ``config.json``, else None.

    :param named: the id of the token that the tokenizer's files name. One that the model has no
        embedding for, which transformers makes up for some classes, would fail in every padded batch.
    """
    size = config.get("vocab_size")
    other = config.get("pad_token_id")
    known = (named, other if type(other) is int and other >= 0 and backend.id_to_token(other) is not None else None)
    return next((id for id in known if id is not None and (not isinstance(size, int) or id < size)), None)


def sentence_transformers(folder: Path) -> Mapping[str, Any]:
    """Read the file that sentence-transformers keeps beside a tokenizer, ``{}`` if there is none."""
    return next((read_optional(folder / name) for name in _SENTENCE_TRANSFORMERS if os.path.lexists(folder / name)), {})


def read_optional(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; ``{}`` if there is no such file.

    :raises CheckpointError: if something else has this name.
    """
    return read_mapping(path) if os.path.lexists(path) else {}
