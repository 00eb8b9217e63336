"""Linear layers that read the same input, such as query, key and value, as one product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Any, final

import torch
from torch import nn

from pipeline_kit.builtin.models.hf.batches import is_close

Probe = Callable[[], Mapping[str, torch.Tensor]]
"""Runs a network on a few rows and returns its outputs."""


@final
class JoinedLinear(nn.Module):
    """One of several layers that read the same input: the first that is called computes the product for all.

    ``weight`` stays as an empty parameter on the meta device, for code that asks for its shape or dtype.
    """

    def __init__(self, linear: nn.Linear, joined: nn.Module, columns: slice, held: list[Any], last: bool) -> None:
        """Take the `columns` of the output of `joined`.

        :param held: shared by the layers of one product: its input and output while they are needed.
        :param last: whether this layer is called after the others, so that it lets go of both.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self.joined = joined
        self._columns, self._held, self._last = columns, held, last

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``input @ weight.T + bias``, ``[..., out_features]``, a view into the product of all."""
        held = self._held[0]
        if held is None or held[0] is not input:
            held = input, self.joined(input)
        self._held[0] = None if self._last else held
        result: torch.Tensor = held[1][..., self._columns]
        return result


def join_linears(
    network: nn.Module, layers: Mapping[nn.Module, nn.Linear], alone: Collection[nn.Module], probe: Probe, noise: float
) -> int:
    """Join those of `layers` that read the same input; return how many were joined, 0 if the answers change.

    :param alone: layers to leave as they are.
    :param noise: how far an answer may be from the one before, as a share of the largest number.
    """
    groups = [group for group in _siblings(layers, probe) if not any(layer in alone for layer in group)]
    if not groups:
        return 0
    expected = probe()
    made: dict[nn.Module, nn.Module] = {}
    for group in groups:
        parts = [layers[layer] for layer in group]
        joined, held = _concatenated(parts), [None]
        ends = accumulate((part.out_features for part in parts), initial=0)
        for layer, part, (start, end) in zip(group, parts, pairwise(ends), strict=True):
            made[layer] = JoinedLinear(part, joined, slice(start, end), held, layer is group[-1])
    return len(made) if swap_modules(network, made, probe, expected, noise) else 0


def swap_modules(
    network: nn.Module,
    instead: Mapping[nn.Module, nn.Module],
    probe: Probe,
    expected: Mapping[str, torch.Tensor],
    noise: float,
) -> bool:
    """Put modules in the place of others; put all back and return False if the answers are not `expected` then."""
    before: list[tuple[nn.Module, str, nn.Module]] = []
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if child in instead:
                setattr(owner, name, instead[child])
                before.append((owner, name, child))
    with suppress(RuntimeError, TypeError, AttributeError):  # a network that reads a layer's weight itself
        answers = probe()
        if all(is_close(answers[name], value, noise) for name, value in expected.items()):
            return True
    for owner, name, module in before:
        setattr(owner, name, module)
    return False


def _siblings(layers: Mapping[nn.Module, nn.Linear], probe: Probe) -> Iterator[Sequence[nn.Module]]:
    """Yield the layers that read the same tensors in one run, in the order of their calls."""
    inputs: defaultdict[nn.Module, list[torch.Tensor]] = defaultdict(list)  # kept, so that no other one gets its id

    def before(layer: nn.Module, given: tuple[Any, ...]) -> None:
        inputs[layer].append(given[0] if given else torch.empty(0))

    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    try:
        probe()
    finally:
        for handle in handles:
            handle.remove()
    groups: defaultdict[tuple[Any, ...], list[nn.Module]] = defaultdict(list)
    for layer, read in inputs.items():
        linear = layers[layer]
        kind = linear.weight.dtype, linear.bias is None, linear.in_features
        groups[(*kind, *map(id, read))].append(layer)
    yield from (group for group in groups.values() if len(group) > 1)


def _concatenated(parts: Sequence[Any]) -> nn.Linear:
    joined: Any = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), device="meta")
    joined.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
    biases = [part.bias for part in parts]
    joined.bias = None if biases[0] is None else nn.Parameter(torch.cat(biases).detach(), requires_grad=False)
    found: nn.Linear = joined
    return found
