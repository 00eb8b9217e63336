"""Puts other layers in the place of a network's linear layers, and takes them back if its answers change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline_kit.builtin.models.activations import NO_ACTIVATION, PostOp, activations_after

__all__ = ["FusedLinear", "Replaced", "linears", "replace_linears"]


class FusedLinear(nn.Module):
    """A linear layer that keeps another form of its weight, and does the activation after it too.

    ``weight`` stays as an empty parameter on the meta device, for code that asks for its shape or dtype.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Take over the sizes and the bias of `linear`, weight ``[out_features, in_features]``."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self.post: PostOp = NO_ACTIVATION


@dataclass(frozen=True, slots=True)
class Replaced:
    """What was done.

    :param layers: how many linear layers were replaced.
    :param activations: how many of them do their activation too.
    """

    layers: int = 0
    activations: int = 0


Answers = Mapping[str, torch.Tensor]
_Place = tuple[nn.Module, str, nn.Module]
"""A module, the name of one of its children, and the module that stands or shall stand there."""


def replace_linears(
    network: nn.Module,
    made: Mapping[nn.Linear, FusedLinear],
    probe: Callable[[], Answers],
    noise: float,
) -> Replaced:
    """Put `made` into `network` in place of its linear layers; all or none of them.

    An activation that follows such a layer directly is done by the layer. If the answers differ then, the
    layers do no activations; if they still differ, everything stays as it was.

    :param probe: runs the network on a few rows and gives its outputs.
    :param noise: how far an answer may be from the one before, as a share of the largest number.
    """
    if not made:
        return Replaced()
    expected = probe()
    activations = {layer: found for layer, found in activations_after(network, probe).items() if layer in made}
    for fused in [activations, {}] if activations else [{}]:
        before = _swap(network, made, fused)
        if _answers_alike(probe, expected, noise):
            return Replaced(len(made), len(fused))
        for owner, name, module in before:
            setattr(owner, name, module)
    return Replaced()


def linears(network: nn.Module) -> Iterator[nn.Linear]:
    """Give each plain linear layer once; a subclass may do something else with its weight."""
    for module in network.modules():
        if type(module) is nn.Linear:
            yield module


def _swap(
    network: nn.Module, made: Mapping[nn.Linear, FusedLinear], fused: Mapping[nn.Linear, tuple[nn.Module, PostOp]]
) -> Sequence[_Place]:
    """Replace layers and the activations they take over; gives what stood there."""
    instead: dict[nn.Module, nn.Module] = {}
    for layer, replacement in made.items():
        instead[layer] = replacement
        replacement.post = fused[layer][1] if layer in fused else NO_ACTIVATION
    for activation, _ in fused.values():
        instead[activation] = nn.Identity()
    before: list[_Place] = []
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if child in instead:
                setattr(owner, name, instead[child])
                before.append((owner, name, child))
    return before


def _answers_alike(probe: Callable[[], Answers], expected: Answers, noise: float) -> bool:
    try:
        found = probe()
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return False  # a network that reads a layer's weight itself, past its forward
    return all(
        bool((found[name].float() - value.float()).abs().max() <= noise * value.float().abs().max().clamp(min=1.0))
        for name, value in expected.items()
    )
