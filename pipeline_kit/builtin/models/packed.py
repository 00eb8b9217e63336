"""Linear layers whose weights are packed once for oneDNN, where a measurement at load finds that faster.

The two operators are private to torch, so their absence or a change of theirs means that a network stays as it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
_MARGIN = 1.3  # so much slower still counts as faster: noise must not decide differently from run to run
_LEAST_WEIGHTS = 1 << 14  # what a smaller layer takes is mostly the call, and its measure mostly noise
_NOISE = {"float32": 3e-6, "bfloat16": 5e-2}
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
    """Pack the linear layers of `network` in place, all or none; none if its answers change.

    :param probe: runs the network on a few rows and gives its outputs.
    :param kernel: ``packed`` packs them, ``auto`` if they are measured to be faster, all together.
    """
    layers = list(linears(network))
    if kernel == "auto" and not _are_faster(layers):
        return Replaced()
    dtypes = {str(linear.weight.dtype).removeprefix("torch.") for linear in layers}
    noise = max([_NOISE[dtype] for dtype in dtypes], default=0.0)
    return replace_linears(network, {linear: PackedLinear(linear) for linear in layers}, probe, noise)


def _are_faster(layers: Sequence[nn.Linear]) -> bool:
    """Measure one layer of each shape, and count its time for all that have it; small ones do not count."""
    layers = [linear for linear in layers if linear.weight.numel() >= _LEAST_WEIGHTS]
    counts = Counter(linear.weight.shape for linear in layers)
    examples = {linear.weight.shape: linear for linear in layers}
    times = {shape: _times(linear) for shape, linear in examples.items()}
    eager, packed = (sum(counts[shape] * times[shape][which] for shape in counts) for which in (0, 1))
    return packed <= _MARGIN * eager


def _times(linear: nn.Linear) -> tuple[float, float]:
    """Give the seconds that `linear` takes for a few and for many rows, as it is and packed."""
    packed = PackedLinear(linear)
    eager_total, packed_total = 0.0, 0.0
    with torch.inference_mode():
        for rows in _ROWS:
            count = max(1, min(rows, int(_MOST_PRODUCTS / linear.weight.numel())))
            inputs = torch.ones(count, linear.in_features, dtype=linear.weight.dtype)
            pairs = [(_seconds(linear, inputs), _seconds(packed, inputs)) for _ in range(_TRIES)]
            eager_total += min(eager for eager, _ in pairs)
            packed_total += min(fast for _, fast in pairs)
    return eager_total, packed_total


def _seconds(layer: nn.Module, inputs: torch.Tensor) -> float:
    start = time.perf_counter()
    layer(inputs)
    return time.perf_counter() - start
