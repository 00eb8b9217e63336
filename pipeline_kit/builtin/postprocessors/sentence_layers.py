"""The layers that a sentence-transformers folder has behind its pooling, read as data from safetensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import torch
from safetensors.torch import load_file

from pipeline_kit.checkpoint_modules import read_mapping
from pipeline_kit.checkpoint_weights import WEIGHTS_NAME, read_header
from pipeline_kit.errors import CheckpointError, shorten

__all__ = ["Dense", "Layer", "LayerNorm", "UnitLength", "read_dense", "read_layer_norm"]

Activation = Callable[[torch.Tensor], torch.Tensor]

# By the last part of a dotted name such as torch.nn.modules.activation.Tanh; the name is never imported.
_ACTIVATIONS: Mapping[str, Activation] = {
    "Tanh": torch.tanh,
    "Identity": lambda x: x,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
    "Sigmoid": torch.sigmoid,
}
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


class Layer(Protocol):
    """What turns vectors ``[..., takes]`` into vectors ``[..., gives]``; None for any width, which stays."""

    @property
    def takes(self) -> int | None:
        """The width it needs."""

    @property
    def gives(self) -> int | None:
        """The width that comes out."""

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Run it."""

    def to(self, device: str) -> Layer:
        """Give the same layer on a device."""


@final
@dataclass(frozen=True)
class Dense:
    """``activation(x W^T + b)``, perhaps plus ``x`` or ``x R^T``.

    :param weight: ``[gives, takes]``.
    :param residual: ``[gives, takes]``, or True for ``x`` itself.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: Activation
    residual: torch.Tensor | bool = False

    @property
    def takes(self) -> int:
        """See :class:`Layer`."""
        return self.weight.shape[1]

    @property
    def gives(self) -> int:
        """See :class:`Layer`."""
        return self.weight.shape[0]

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """See :class:`Layer`."""
        found = self.activation(torch.nn.functional.linear(vectors, self.weight, self.bias))
        if isinstance(self.residual, torch.Tensor):
            return found + torch.nn.functional.linear(vectors, self.residual)
        return found + vectors if self.residual else found

    def to(self, device: str) -> Dense:
        """See :class:`Layer`."""
        bias = None if self.bias is None else self.bias.to(device)
        residual = self.residual.to(device) if isinstance(self.residual, torch.Tensor) else self.residual
        return Dense(self.weight.to(device), bias, self.activation, residual)


@final
@dataclass(frozen=True)
class LayerNorm:
    """``(x - mean) / sqrt(variance + 1e-5) * weight + bias``."""

    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def takes(self) -> int:
        """See :class:`Layer`."""
        return self.weight.shape[0]

    gives = takes

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """See :class:`Layer`."""
        return torch.nn.functional.layer_norm(vectors, self.weight.shape, self.weight, self.bias)

    def to(self, device: str) -> LayerNorm:
        """See :class:`Layer`."""
        return LayerNorm(self.weight.to(device), self.bias.to(device))


@final
@dataclass(frozen=True)
class UnitLength:
    """``x / |x|``, for a Normalize that other layers follow."""

    takes: int | None = None
    gives: int | None = None

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """See :class:`Layer`."""
        return torch.nn.functional.normalize(vectors, dim=-1)

    def to(self, device: str) -> UnitLength:
        """See :class:`Layer`."""
        del device
        return self


def read_dense(folder: Path) -> Dense:
    """Read a Dense module.

    :raises CheckpointError: if its activation is not a known one, or its weights are not what its config says.
    """
    config = read_mapping(folder / "config.json")
    takes, gives = config.get("in_features"), config.get("out_features")
    # sentence-transformers writes the name of the class; without one it takes Tanh.
    name = str(config.get("activation_function", "torch.nn.Tanh"))
    activation = _ACTIVATIONS.get(name.rpartition(".")[2]) if name.startswith("torch.nn.") else None
    if activation is None:
        raise CheckpointError(
            f"'{folder / 'config.json'}' has the activation '{shorten(name, 80)}'; the known ones are "
            + ", ".join(f"torch.nn.{known}" for known in _ACTIVATIONS)
        )
    shapes: dict[str, tuple[Any, ...]] = {"linear.weight": (gives, takes)}
    if config.get("bias", True):
        shapes["linear.bias"] = (gives,)
    residual = bool(config.get("use_residual"))
    if residual and takes != gives:
        shapes["residual.weight"] = (gives, takes)
    weights = _weights(folder, shapes)
    return Dense(
        weights["linear.weight"], weights.get("linear.bias"), activation, weights.get("residual.weight", residual)
    )


def read_layer_norm(folder: Path) -> LayerNorm:
    """Read a LayerNorm module.

    :raises CheckpointError: if its weights are not what its config says.
    """
    size = (read_mapping(folder / "config.json").get("dimension"),)
    weights = _weights(folder, {"norm.weight": size, "norm.bias": size})
    return LayerNorm(weights["norm.weight"], weights["norm.bias"])


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
        extra = shorten(", ".join(sorted(set(header) - set(shapes))))
        raise CheckpointError(f"'{file}' holds {extra}, of which the config.json beside it says nothing")
    return {name: tensor.float() for name, tensor in load_file(file).items()}
