"""Linear layers in int8: weights rounded once, by output channel, and activations as they come.

Both come from the literature on 8-bit inference, such as https://arxiv.org/abs/2004.09602 (sections 3 and 4). The
product is oneDNN's, through an operator that is private to torch; where it is missing int8 is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, final

import torch
from torch import nn

from pipeline_kit.builtin.models.activations import NO_ACTIVATION
from pipeline_kit.builtin.models.linears import FusedLinear, Replaced, linears, replace_linears

__all__ = ["TOLERANCES", "Int8Linear", "Int8PerTokenLinear", "Quantization", "can_quantize", "quantize_linears"]

Quantization = Literal["none", "int8", "int8_per_token"]

TOLERANCES: Mapping[Quantization, float] = {"int8": 0.5, "int8_per_token": 0.5}
"""For logits and states of order 10, of small networks with random weights; trained ones are closer."""

_FEWEST_OUTPUTS = 32  # a head with few labels costs nothing, and its rounding would show in every score
_NOISE = 0.5
_MIDDLE = 128  # the unsigned number that stands for zero
_HALF = 0.5  # added before the fraction is cut off, rounds what is positive
_LEAST = 1e-12  # keeps the scale of a row or channel of zeros from being zero


@final
class Int8Linear(FusedLinear):
    """Rounds its input by the range that it has in the whole batch, so an answer depends a little on the batch."""

    def __init__(self, linear: nn.Linear) -> None:
        """Round the weight ``[out_features, in_features]`` of `linear`, float32 on the CPU, to int8."""
        super().__init__(linear)
        self._packed, self._scales, self._zeros = _rounded(linear.weight.detach())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Give about ``input @ weight.T + bias`` with the activation on it, ``[..., out_features]`` float32.

        :raises ValueError: if `input` holds a number that is not finite, of whichever row.
        """
        rows = input.reshape(-1, self.in_features)
        least, most = torch.stack(torch.aminmax(rows)).tolist()
        least, most = min(least, 0.0), max(most, 0.0)  # zero has to be a number that is not rounded
        scale = max(most - least, _LEAST) / 254  # one step less than there are, for the rounding of zero's place
        zero = round(-least / scale)
        rounded = rows.mul(1 / scale).add_(zero + _HALF).to(torch.uint8)
        weight = (self._packed, self._scales, self._zeros)
        result = _product(rounded, scale, zero, *weight, self.bias, *self.post)
        return result.reshape(*input.shape[:-1], self.out_features)


@final
class Int8PerTokenLinear(FusedLinear):
    """Rounds each token's numbers by the token's own largest, so an answer knows nothing of its batch."""

    def __init__(self, linear: nn.Linear) -> None:
        """Round the weight ``[out_features, in_features]`` of `linear`, float32 on the CPU, to int8."""
        super().__init__(linear)
        self._packed, self._scales, self._zeros = _rounded(linear.weight.detach())
        self._half = torch.tensor(_MIDDLE + _HALF)
        self._plain = self.bias is None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Give about ``input @ weight.T + bias`` with the activation on it, ``[..., out_features]`` float32."""
        rows = input.reshape(-1, self.in_features)
        scales = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp_min_(_LEAST).div_(127)
        rounded = torch.addcmul(self._half, rows, scales.reciprocal()).to(torch.uint8)
        weight = (self._packed, self._scales, self._zeros)
        result = _product(rounded, 1.0, _MIDDLE, *weight, None, *NO_ACTIVATION)
        result = result.mul_(scales) if self._plain else torch.addcmul(self.bias, result, scales, out=result)
        return self._activated(result).reshape(*input.shape[:-1], self.out_features)

    def _activated(self, values: torch.Tensor) -> torch.Tensor:
        name, formula = self.post
        if name == "gelu":
            return nn.functional.gelu(values, approximate=formula)
        if name == "relu":
            return values.relu_()
        return nn.functional.silu(values, inplace=True) if name == "swish" else values


def can_quantize() -> bool:
    """Tell whether this build of torch and this CPU have the product in int8."""
    try:
        linear, rows = nn.Linear(64, 64), torch.linspace(-1, 1, 256).reshape(4, 64)
        with torch.inference_mode():
            return all(
                bool((layer(linear)(rows) - linear(rows)).abs().max() < 0.05)
                for layer in (Int8Linear, Int8PerTokenLinear)
            )
    except (AttributeError, RuntimeError, TypeError):
        return False


def quantize_linears(
    network: nn.Module, probe: Callable[[], Mapping[str, torch.Tensor]], kind: Literal["int8", "int8_per_token"]
) -> Replaced:
    """Round the linear layers of `network` in place, but for heads of few outputs; none if its answers are far off.

    :param probe: runs the network on a few rows and gives its outputs.
    """
    layer: type[FusedLinear] = Int8Linear if kind == "int8" else Int8PerTokenLinear
    made = {linear: layer(linear) for linear in linears(network) if linear.out_features >= _FEWEST_OUTPUTS}
    return replace_linears(network, made, probe, _NOISE)


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round each row of a weight by its largest number; gives the packed weight, scales and zero points."""
    # Without VNNI a sum of two products is kept in 16 bits, which eight bits could overflow.
    most = 127 if torch.cpu._is_vnni_supported() else 63
    scales = weight.abs().amax(dim=1).clamp_min(_LEAST) / most
    rounded = (weight / scales[:, None]).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(rounded, None)
    return packed, scales, torch.zeros(len(weight), dtype=torch.int32)


def _product(
    rounded: torch.Tensor,
    scale: float,
    zero: int,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bias: torch.Tensor | None,
    post: str,
    formula: str,
) -> torch.Tensor:
    operator = torch.ops.onednn.qlinear_pointwise
    result: torch.Tensor = operator(
        rounded, scale, zero, weight, scales, zeros, bias, 1.0, 0, torch.float32, post, [], formula
    )
    return result
