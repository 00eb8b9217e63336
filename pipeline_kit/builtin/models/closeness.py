"""Tells whether another way of running a network gives its answers."""

from __future__ import annotations

import torch

from pipeline_kit.types import Device, ModelOutput, TokenBatch

__all__ = ["alike", "noise_of"]

_NOISE = {"float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}
_NOISE_ON_GPU = 2e-4  # a GPU may round the factors of a float32 product


def noise_of(device: Device) -> float:
    """Give how far equal answers may be apart on `device`, as a share of the largest number in them."""
    noise = _NOISE[device.dtype]
    return noise if device.kind == "cpu" else max(noise, _NOISE_ON_GPU)


def alike(found: ModelOutput, expected: ModelOutput, batch: TokenBatch, noise: float) -> bool:
    """Tell whether two outputs for `batch` are equal, whatever they hold at its padding.

    Numbers up to 1 may differ by `noise`, larger ones by that share of the largest; NaN equals NaN.
    """
    tokens = batch.attention_mask.bool()
    for name, value in expected.tensors.items():
        one, other = found[name].float(), value.float()
        if one.shape != other.shape:
            return False
        if name in expected.per_token:
            one, other = one[tokens], other[tokens]
        finite = other[other.isfinite()]
        largest = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        if not torch.allclose(one, other, rtol=0.0, atol=noise * largest, equal_nan=True):
            return False
    return True
