"""Linear layers whose weights are packed once for oneDNN, where a measurement at load finds that faster.

The two operators are private to torch, so their absence or a change of theirs means that a network stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, final

import torch
from torch import nn

from pipeline_kit.types import Device

__all__ = ["LinearKernel", "PackedLinear", "can_pack", "pack_linears"]

LinearKernel = Literal["auto", "eager", "packed"]

_ROWS = (16, 128)  # a short text alone, and as many as a batch of the default budget has in its cache
_MOST_PRODUCTS = 3e8  # of one measurement: about 3 ms on two cores
_TRIES = 6  # of which the fastest counts: what else the machine does only ever adds time
_MARGIN = 1.05  # equal within it counts as faster, so that noise does not decide differently from run to run
_NOISE = 2e-5  # how far the packed network may be from the eager one, as a share of its largest number


@final
class PackedLinear(nn.Module):
    """A linear layer that keeps only the packed form of its weight.

    ``weight`` stays as an empty parameter on the meta device, for code that asks for its shape or dtype.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Pack the weight ``[out_features, in_features]`` of `linear`, float32 on the CPU."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Give ``input @ weight.T + bias``, ``[..., out_features]``."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")
        return result


def can_pack(device: Device) -> bool:
    """Tell whether this build of torch has the operators, and the device a use for them."""
    if device.kind != "cpu" or device.dtype != "float32" or not torch._C._has_mkldnn:
        return False
    try:
        linear = nn.Linear(16, 16)
        rows = torch.ones(2, 16)
        with torch.inference_mode():
            return bool(torch.allclose(PackedLinear(linear)(rows), linear(rows), atol=1e-5))
    except (AttributeError, RuntimeError, TypeError):
        return False


def pack_linears(network: nn.Module, probe: Callable[[], Mapping[str, torch.Tensor]], kernel: LinearKernel) -> int:
    """Pack the linear layers of `network` in place; all of them stay as they are if its answers change.

    :param probe: runs the network on a few rows and gives its outputs.
    :param kernel: ``packed`` packs every layer, ``auto`` those of a shape that is measured to be faster.
    :returns: how many layers were packed.
    """
    faster: dict[tuple[int, int], bool] = {}
    chosen: list[tuple[nn.Module, str, nn.Linear]] = []
    for owner, name, linear in _linears(network):
        shape = (linear.out_features, linear.in_features)
        if kernel == "auto" and shape not in faster:
            faster[shape] = _is_faster(linear)
        if kernel == "packed" or faster[shape]:
            chosen.append((owner, name, linear))
    if not chosen:
        return 0
    expected = probe()
    for owner, name, linear in chosen:
        setattr(owner, name, PackedLinear(linear))
    try:
        same = _close(probe(), expected)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        same = False  # a network that reads a layer's weight itself, past its forward
    if same:
        return len(chosen)
    for owner, name, linear in chosen:
        setattr(owner, name, linear)
    return 0


def _linears(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Give each plain linear layer once, with the module that holds it and its name there."""
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear:
                yield owner, name, child


def _is_faster(linear: nn.Linear) -> bool:
    packed = PackedLinear(linear)
    total = {False: 0.0, True: 0.0}
    with torch.inference_mode():
        for rows in _ROWS:
            inputs = torch.ones(max(1, min(rows, int(_MOST_PRODUCTS / linear.weight.numel()))), linear.in_features)
            best = {False: 1e9, True: 1e9}
            for _ in range(_TRIES):
                for which, layer in ((False, linear), (True, packed)):
                    start = time.perf_counter()
                    layer(inputs)
                    best[which] = min(best[which], time.perf_counter() - start)
            total = {which: total[which] + best[which] for which in best}
    return total[True] < _MARGIN * total[False]


def _close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return all(
        bool((found[name] - value).abs().max() <= _NOISE * value.abs().max().clamp(min=1.0))
        for name, value in expected.items()
    )
