"""Layers that a compiler shall run as they are instead of looking into them.

What a packed or rounded layer calls is private to torch, and its compiler breaks on it. Behind an operator of our
own it is one step like any other, and all around it is still fused.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, final
from weakref import WeakValueDictionary

import torch
from torch import nn

from pipeline_kit.builtin.models.linears import FusedLinear

__all__ = ["hide_layers"]

_LAYERS: WeakValueDictionary[int, FusedLinear] = WeakValueDictionary()
_NUMBERS = count()
_untyped: Any = torch.library.Library
_LIBRARY = _untyped("pipeline_kit", "FRAGMENT")
_LIBRARY.define("hidden_layer(Tensor input, int number, int out_features) -> Tensor")


def _run(input: torch.Tensor, number: int, out_features: int) -> torch.Tensor:
    del out_features
    result: torch.Tensor = _LAYERS[number](input)
    return result


def _shape(input: torch.Tensor, number: int, out_features: int) -> torch.Tensor:
    del number
    return input.new_empty(*input.shape[:-1], out_features)


_LIBRARY.impl("hidden_layer", _run, "CompositeExplicitAutograd")
torch.library.register_fake("pipeline_kit::hidden_layer", _shape, lib=_LIBRARY)


@final
class _Hidden(nn.Module):
    """Runs a layer by its number; keeps its weight and bias in sight for code that asks for their dtype."""

    def __init__(self, layer: FusedLinear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._number = next(_NUMBERS)
        _LAYERS[self._number] = layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.pipeline_kit.hidden_layer(input, self._number, self.out_features)
        return result


def hide_layers(network: nn.Module) -> Callable[[], None]:
    """Put every layer of `network` that is no plain linear layer any more behind one operator.

    :returns: a function that puts them back.
    """
    hidden: dict[nn.Module, _Hidden] = {}
    places = []
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, FusedLinear):
                hidden.setdefault(child, _Hidden(child))
                places.append((owner, name, child))
    for owner, name, child in places:
        setattr(owner, name, hidden[child])

    def show() -> None:
        for owner, name, child in places:
            setattr(owner, name, child)

    return show
