"""What a sentence-transformers folder does behind its network: pooling, further layers, normalizing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from safetensors.torch import load_file
from torch.nn import functional

from pipeline_kit.checkpoint.json import read_object, read_optional
from pipeline_kit.checkpoint.weights import MODULES_NAME, WEIGHTS_NAME, ModuleEntry, read_header, read_modules
from pipeline_kit.errors import CheckpointError, for_message

# By the last part of a dotted name such as torch.nn.modules.activation.Tanh; the name is never imported.
_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Tanh": torch.tanh,
    "Identity": lambda x: x,
    "ReLU": torch.relu,
    "GELU": functional.gelu,
    "Sigmoid": torch.sigmoid,
}
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@final
@dataclass(frozen=True)
class SentenceLayer:
    """Turns vectors ``[..., takes]`` into vectors ``[..., gives]`` by `run`; None for any width, which stays."""

    name: str
    run: Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    takes: int | None = None
    gives: int | None = None

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.run(vectors, self.weights)

    def to(self, device: str) -> SentenceLayer:
        """Return the same layer on a device."""
        return replace(self, weights={name: weight.to(device) for name, weight in self.weights.items()})


UNIT_LENGTH = SentenceLayer("UnitLength", lambda vectors, _: functional.normalize(vectors, dim=-1))
"""``x / |x|``, for a Normalize that other layers follow."""


def read_dense(folder: Path) -> SentenceLayer:
    """Read a Dense module: ``activation(x W^T + b)``, perhaps plus ``x`` or ``x R^T``.

    :raises CheckpointError: if its activation is not a known one, or its weights are not what its config says.
    """
    config = read_object(folder / "config.json")
    takes, gives = config.get("in_features"), config.get("out_features")
    # sentence-transformers writes the name of the class; without one it takes Tanh.
    name = str(config.get("activation_function", "torch.nn.Tanh"))
    kind = name.rpartition(".")[2]
    activation = _ACTIVATIONS.get(kind) if name.startswith("torch.nn.") else None
    if activation is None:
        raise CheckpointError(
            f"'{folder / 'config.json'}' has the activation '{for_message(name, 80)}'; the known ones are "
            + ", ".join(f"torch.nn.{known}" for known in _ACTIVATIONS)
        )
    shapes: dict[str, tuple[Any, ...]] = {"linear.weight": (gives, takes)}
    if config.get("bias", True):
        shapes["linear.bias"] = (gives,)
    residual = bool(config.get("use_residual"))
    if residual and takes != gives:
        shapes["residual.weight"] = (gives, takes)
    weights = _weights(folder, shapes)
    gives, takes = weights["linear.weight"].shape

    def run(vectors: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found = activation(functional.linear(vectors, weights["linear.weight"], weights.get("linear.bias")))
        if "residual.weight" in weights:
            return found + functional.linear(vectors, weights["residual.weight"])
        return found + vectors if residual else found

    shown = "no activation" if kind == "Identity" else kind.lower()
    return SentenceLayer(f"Dense {takes} to {gives}, {shown}", run, weights, takes, gives)


def read_layer_norm(folder: Path) -> SentenceLayer:
    """Read a LayerNorm module: ``(x - mean) / sqrt(variance + 1e-5) * weight + bias``."""
    size = (read_object(folder / "config.json").get("dimension"),)
    weights = _weights(folder, {"norm.weight": size, "norm.bias": size})
    width = weights["norm.weight"].shape[0]

    def run(vectors: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return functional.layer_norm(vectors, (width,), weights["norm.weight"], weights["norm.bias"])

    return SentenceLayer("LayerNorm", run, weights, width, width)


def _weights(folder: Path, shapes: Mapping[str, tuple[Any, ...]]) -> dict[str, torch.Tensor]:
    """Load the tensors named in `shapes`, and no others, as float32."""
    file = folder / WEIGHTS_NAME
    if not os.path.lexists(file):
        raise CheckpointError(
            f"'{folder}' has no {WEIGHTS_NAME}, and weights are read from safetensors only. If you trust the model, "
            "save it again with sentence-transformers: SentenceTransformer('OLD').save('NEW')"
        )
    header = read_header(file)
    for name, shape in shapes.items():
        entry = header.get(name)
        if entry is None or tuple(entry["shape"]) != shape or entry["dtype"] not in _FLOATS:
            found = "is missing" if entry is None else f"is {entry['dtype']} {entry['shape']}"
            raise CheckpointError(
                f"'{file}': the tensor '{name}' {found}; by the config.json beside it, it is a float {list(shape)}"
            )
    if set(header) != set(shapes):
        extra = for_message(", ".join(sorted(set(header) - set(shapes))))
        raise CheckpointError(f"'{file}' holds {extra}, of which the config.json beside it says nothing")
    return {name: tensor.float() for name, tensor in load_file(file).items()}


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
    layers: tuple[SentenceLayer, ...] = ()
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
    config = read_object(folder / entries[1].path / "config.json")
    modes = (pooling,) if pooling else _modes(folder / entries[1].path, config)
    hidden = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    # Dropout does nothing at inference.
    layers = tuple([_layer(folder, entry) for entry in entries[2:] if entry.kind != "Dropout"])
    normalize = bool(layers) and layers[-1] is UNIT_LENGTH
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
            f"'{folder / MODULES_NAME}': module {place} is '{for_message(entry.type, 80)}'{code}; supported are "
            f"{_SUPPORTED}, in that order. In a copy of the folder without {MODULES_NAME} the network can be used "
            "with a pooling of your own, postprocessor.pooling"
        )
    if len(entries) < 2:
        raise CheckpointError(f"'{folder / MODULES_NAME}' names no Pooling, so it says nothing about text vectors")


def _check_network(folder: Path) -> None:
    """Refuse a folder that takes another output of its network than the last hidden state."""
    file = folder / "sentence_bert_config.json"
    modalities = read_optional(file).get("modality_config")
    if modalities is None:
        return
    taken = modalities.get("text") if isinstance(modalities, Mapping) else None
    if taken not in _LAST_HIDDEN_STATE:
        raise CheckpointError(
            f"'{file}': texts go through {for_message(taken, 120)}; only last_hidden_state is supported"
        )


def _modes(folder: Path, config: Mapping[str, Any]) -> tuple[Mode, ...]:
    named = config.get("pooling_mode")
    if named is None:
        named = [name for flag, name in _FLAGS.items() if config.get(flag) is True] or ["mean"]
    names = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    if not names or not set(names) <= set(_MODES):
        raise CheckpointError(
            f"'{folder}' pools by {for_message(' + '.join(names)) or 'nothing'}, which is not supported; "
            f"set postprocessor.pooling to one of {', '.join(_MODES.values())} to embed in another way"
        )
    return tuple(_MODES[name] for name in names)


def _layer(folder: Path, entry: ModuleEntry) -> SentenceLayer:
    place = folder / entry.path
    if entry.kind == "LayerNorm":
        return read_layer_norm(place)
    config = read_optional(place / "config.json") if entry.path else {}
    names = {config.get(f"module_{end}_name") for end in ("input", "output")} - {None, "sentence_embedding"}
    if names:
        raise CheckpointError(f"'{place}' works on {for_message(sorted(map(str, names)))}, not on the pooled vector")
    return UNIT_LENGTH if entry.kind == "Normalize" else read_dense(place)


def pool(hidden: torch.Tensor, mask: torch.Tensor, mode: Mode, skip: int = 0) -> torch.Tensor:
    """Make one vector of each row's token vectors, whichever side the padding is on.

    ``cls`` is the first token, ``last`` the last, ``max`` the largest value of each column, ``mean`` the sum by the
    number of tokens, ``mean_sqrt_len`` the sum by the root of that number; ``weighted_mean`` weights tokens by
    their place in the row, from 1 (https://arxiv.org/abs/2202.08904).

    :param hidden: float32 ``[B, T, H]``; what stands at padding is never looked at, not even NaN.
    :param mask: 1 for a token, 0 for padding, ``[B, T]``.
    :param skip: how many tokens at the beginning of each row are left out; places are counted with them. A row
        without more tokens returns numbers of no meaning, perhaps NaN.
    :returns: ``[B, H]``.
    """
    places = mask.cumsum(dim=1) * mask
    if skip:
        mask = mask * (places > skip)
    if mode in ("cls", "last"):
        first = mask.argmax(dim=1)
        place = first if mode == "cls" else first + mask.sum(dim=1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), place]
    padding = (mask == 0)[:, :, None]
    if mode == "max":
        return hidden.masked_fill(padding, -torch.inf).amax(dim=1)
    weights = (places * mask if mode == "weighted_mean" else mask).to(hidden.dtype)[:, :, None]
    total = (hidden.masked_fill(padding, 0.0) * weights).sum(dim=1)
    count = weights.sum(dim=1)
    return total / (count.sqrt() if mode == "mean_sqrt_len" else count)
