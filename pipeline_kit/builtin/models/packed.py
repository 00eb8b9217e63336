"""Linear layers whose weights are packed once for oneDNN, where a measurement at load finds that faster.

The two operators are private to torch, so their absence or a change of theirs means that a network stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal, final

import torch
from torch import nn

from pipeline_kit.builtin.models.linears import FusedLinear, Replaced, linears, replace_linears
from pipeline_kit.device import emulated
from pipeline_kit.types import Device

__all__ = ["LinearKernel", "PackedLinear", "can_pack", "pack_linears"]

LinearKernel = Literal["auto", "eager", "packed"]

_ROWS = (16, 128)  # a short text alone, and as many as a batch of the default budget has in its cache
_MOST_PRODUCTS = 3e8  # of one measurement: about 3 ms on two cores
_TRIES = 6  # of which the fastest counts: what else the machine does only ever adds time
_MARGIN = 1.05  # equal within it counts as faster, so that noise does not decide differently from run to run
_NOISE = {"float32": 2e-5, "bfloat16": 5e-2}
"""How far the packed network may be from the eager one, as a share of its largest number."""


@final
class PackedLinear(FusedLinear):
    """A linear layer that keeps only the packed form of its weight."""

    def __init__(self, linear: nn.Linear) -> None:
        """Pack the weight ``[out_features, in_features]`` of `linear`, float32 or bfloat16 on the CPU."""
        super().__init__(linear)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Give ``input @ weight.T + bias`` with the activation on it, ``[..., out_features]``, dtype as `input`."""
        name, formula = self.post
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, name, [], formula)
        return result


def can_pack(device: Device) -> bool:
    """Tell whether this build of torch has the operators, and the device a use for them."""
    if device.kind != "cpu" or device.dtype not in _NOISE or emulated(device.dtype) or not torch._C._has_mkldnn:
        return False
    try:
        linear = nn.Linear(16, 16)
        rows = torch.ones(2, 16)
        packed = PackedLinear(linear)
        with torch.inference_mode():
            plain = bool(torch.allclose(packed(rows), linear(rows), atol=1e-5))
            packed.post = ("gelu", "none")
            return plain and bool(torch.allclose(packed(rows), nn.functional.gelu(linear(rows)), atol=1e-5))
    except (AttributeError, RuntimeError, TypeError):
        return False


def pack_linears(network: nn.Module, probe: Callable[[], Mapping[str, torch.Tensor]], kernel: LinearKernel) -> Replaced:
    """Pack the linear layers of `network` in place; all of them stay as they are if its answers change.

    :param probe: runs the network on a few rows and gives its outputs.
    :param kernel: ``packed`` packs every layer, ``auto`` those of a shape that is measured to be faster.
    """
    faster: dict[tuple[int, int], bool] = {}
    chosen: dict[nn.Linear, FusedLinear] = {}
    noise = _NOISE["float32"]
    for linear in linears(network):
        shape = (linear.out_features, linear.in_features)
        if kernel == "auto" and shape not in faster:
            faster[shape] = _is_faster(linear)
        if kernel == "packed" or faster[shape]:
            chosen[linear] = PackedLinear(linear)
            noise = max(noise, _NOISE[str(linear.weight.dtype).removeprefix("torch.")])
    return replace_linears(network, chosen, probe, noise)


def _is_faster(linear: nn.Linear) -> bool:
    packed = PackedLinear(linear)
    total = {False: 0.0, True: 0.0}
    with torch.inference_mode():
        for rows in _ROWS:
            count = max(1, min(rows, int(_MOST_PRODUCTS / linear.weight.numel())))
            inputs = torch.ones(count, linear.in_features, dtype=linear.weight.dtype)
            best = {False: 1e9, True: 1e9}
            for _ in range(_TRIES):
                for which, layer in ((False, linear), (True, packed)):
                    start = time.perf_counter()
                    layer(inputs)
                    best[which] = min(best[which], time.perf_counter() - start)
            total = {which: total[which] + best[which] for which in best}
    return total[True] < _MARGIN * total[False]
