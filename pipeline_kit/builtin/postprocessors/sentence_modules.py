"""What a sentence-transformers folder does behind its network: pooling, further layers, normalizing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline_kit.builtin.postprocessors.sentence_layers import (
    Layer,
    UnitLength,
    read_dense,
    read_layer_norm,
)
from pipeline_kit.checkpoint_modules import MODULES_NAME, ModuleEntry, read_mapping, read_modules
from pipeline_kit.errors import CheckpointError, shorten

__all__ = ["Mode", "SentenceModules", "read_sentence_modules"]

Mode = Literal["mean", "cls", "max", "last", "weighted_mean", "mean_sqrt_len"]

# The names in sentence-transformers' configs: `pooling_mode` in newer folders, flags in older ones. The flags are
# in the order in which it puts the vectors of several modes one behind the other.
# https://github.com/huggingface/sentence-transformers/blob/main/sentence_transformers/sentence_transformer/modules/pooling.py
_MODES: dict[str, Mode] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_LAST_HIDDEN_STATE = tuple(
    {"method": "forward", "method_output_name": name} for name in ("last_hidden_state", ["last_hidden_state"])
)
_OWN = "sentence_transformers."
_SUPPORTED = "Transformer, Pooling, Dense, LayerNorm, Dropout and Normalize"


@dataclass(frozen=True)
class SentenceModules:
    """A folder's modules after the network itself, in the order in which they run.

    :param pooling: how token vectors become one; the vectors of several modes stand one behind the other.
    :param hidden: the width of a token's vector, None if the folder does not say.
    :param include_prompt: whether the tokens of a prompt are pooled too.
    :param layers: what comes between pooling and the last Normalize.
    :param normalize: whether vectors are scaled to length 1 at the end.
    """

    pooling: tuple[Mode, ...] = ("mean",)
    hidden: int | None = None
    include_prompt: bool = True
    layers: tuple[Layer, ...] = ()
    normalize: bool = True


def read_sentence_modules(folder: Path, pooling: Mode | None = None) -> SentenceModules | None:
    """Read ``modules.json`` of a checkpoint's folder and the folders it names, None if it has none.

    :param pooling: the mode to take in the place of the folder's own.
    :raises CheckpointError: if it is not what sentence-transformers writes, or holds a module that is not supported.
    """
    entries = read_modules(folder)
    if entries is None:
        return None
    _check_kinds(folder, entries)
    _check_network(folder / entries[0].path)
    config = read_mapping(folder / entries[1].path / "config.json")
    modes = (pooling,) if pooling else _modes(folder / entries[1].path, config)
    hidden = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    # Dropout does nothing at inference.
    layers = tuple([_layer(folder, entry) for entry in entries[2:] if entry.kind != "Dropout"])
    normalize = bool(layers) and isinstance(layers[-1], UnitLength)
    return SentenceModules(
        modes,
        hidden if isinstance(hidden, int) else None,
        config.get("include_prompt", True) is not False,
        layers[:-1] if normalize else layers,
        normalize,
    )


def _check_kinds(folder: Path, entries: Sequence[ModuleEntry]) -> None:
    for place, entry in enumerate(entries):
        wanted = ("Transformer", "Pooling")[place : place + 1] or ("Dense", "LayerNorm", "Dropout", "Normalize")
        if entry.kind in wanted and entry.type.startswith(_OWN):
            continue
        code = "" if entry.type.startswith(_OWN) else ", which is code of its own and is never run"
        raise CheckpointError(
            f"'{folder / MODULES_NAME}': module {place} is '{shorten(entry.type, 80)}'{code}; supported are "
            f"{_SUPPORTED}, in that order. In a copy of the folder without {MODULES_NAME} the network can be used "
            "with a pooling of your own, postprocessor.pooling"
        )
    if len(entries) < 2:
        raise CheckpointError(f"'{folder / MODULES_NAME}' names no Pooling, so it says nothing about text vectors")


def _check_network(folder: Path) -> None:
    """Refuse a folder that takes another output of its network than the last hidden state."""
    file = folder / "sentence_bert_config.json"
    settings = read_mapping(file) if os.path.lexists(file) else {}
    modalities = settings.get("modality_config")
    if modalities is None:
        return
    taken = modalities.get("text") if isinstance(modalities, Mapping) else None
    if taken not in _LAST_HIDDEN_STATE:
        raise CheckpointError(f"'{file}': texts go through {shorten(taken, 120)}; only last_hidden_state is supported")


def _modes(folder: Path, config: Mapping[str, Any]) -> tuple[Mode, ...]:
    named = config.get("pooling_mode")
    if named is None:
        named = [name for flag, name in _FLAGS.items() if config.get(flag) is True] or ["mean"]
    names = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    if not names or not set(names) <= set(_MODES):
        raise CheckpointError(
            f"'{folder}' pools by {shorten(' + '.join(names)) or 'nothing'}, which is not supported; "
            f"set postprocessor.pooling to one of {', '.join(_MODES.values())} to embed in another way"
        )
    return tuple(_MODES[name] for name in names)


def _layer(folder: Path, entry: ModuleEntry) -> Layer:
    place = folder / entry.path
    if entry.kind == "LayerNorm":
        return read_layer_norm(place)
    config = read_mapping(place / "config.json") if entry.path and os.path.lexists(place / "config.json") else {}
    names = {config.get(f"module_{end}_name") for end in ("input", "output")} - {None, "sentence_embedding"}
    if names:
        raise CheckpointError(f"'{place}' works on {shorten(sorted(map(str, names)))}, not on the pooled vector")
    return UnitLength() if entry.kind == "Normalize" else read_dense(place)
