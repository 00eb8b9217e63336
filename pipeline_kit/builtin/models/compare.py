"""Whether a network answers as before: after a layer, a compiler or a graph took over, and beside other rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from pipeline_kit.contract.types import Device

Change = Literal["padded", "compiled", "packed", "int8", "graph"]

_NOISE: Mapping[Change, Mapping[str, float]] = {
    "padded": {"float32": 2e-5, "bfloat16": 5e-2, "float16": 1e-2},
    "compiled": {"float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2},
    "packed": {"float32": 3e-6, "bfloat16": 5e-2},
    "int8": {"float32": 0.5},
    "graph": {"float32": 1e-4},
}
"""By what was changed and by dtype: how far equal answers may be apart, as a share of the largest number in them.

The same arithmetic in another order stays below these. A leak of padding, or a length that a graph takes for a
constant, is some hundred times above them.
"""
_NOISE_ON_GPU = 2e-4  # a GPU may round the factors of a float32 product


def noise_of(change: Change, device: Device) -> float:
    """Return how far equal answers may be apart on `device`, as a share of the largest number in them."""
    noise = _NOISE[change][device.dtype]
    return noise if device.kind == "cpu" else max(noise, _NOISE_ON_GPU)


def is_close(found: torch.Tensor, expected: torch.Tensor, noise: float) -> bool:
    """Return whether two tensors are equal: numbers up to 1 may differ by `noise`, larger ones by that share of the
    largest; NaN equals NaN.
    """
    one, other = found.float(), expected.float()
    finite = other[other.isfinite()]
    largest = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=noise * largest, equal_nan=True)
