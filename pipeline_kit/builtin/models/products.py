"""Which kernel computes a network's matrix products, by what the user asks for and what the device can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline_kit.builtin.models.linears import Replaced
from pipeline_kit.builtin.models.packed import LinearKernel, can_pack, pack_linears
from pipeline_kit.builtin.models.quantized import TOLERANCES, Quantization, can_quantize, quantize_linears
from pipeline_kit.errors import ConfigError, Fault
from pipeline_kit.types import Device

__all__ = ["Products", "settle_products"]

Probe = Callable[[], Mapping[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Products:
    """What was decided on.

    :param tolerance: how far outputs may be from those in float32 because of it; 0 for no further than float32.
    """

    packed: Replaced
    rounded: Replaced
    tolerance: float

    @property
    def details(self) -> Mapping[str, Any]:
        """How many linear layers are packed or rounded, and how many of them do the activation after them."""
        found = {"packed_linears": self.packed.layers, "int8_linears": self.rounded.layers}
        return {**found, "fused_activations": self.packed.activations + self.rounded.activations}

    @property
    def settled(self) -> Mapping[str, LinearKernel]:
        """What ``linear=auto`` came to, as that option."""
        return {"linear": "packed" if self.packed.layers else "eager"}


def settle_products(
    network: nn.Module, probe: Probe, linear: LinearKernel, quantization: Quantization, device: Device
) -> Products:
    """Replace the linear layers of `network` in place, where that was asked for or is measured to be faster.

    :param probe: runs the network on a few rows and gives its outputs.
    :raises ConfigError: if the device or this network cannot do what was asked for.
    """
    rounded = _quantized(network, probe, quantization, device)
    packed = _packed(network, probe, linear, device)
    return Products(packed, rounded, TOLERANCES.get(quantization, 0.0))


def _packed(network: nn.Module, probe: Probe, kernel: LinearKernel, device: Device) -> Replaced:
    if kernel == "eager":
        return Replaced()
    if can_pack(device):
        return pack_linears(network, probe, kernel)
    if kernel == "packed":
        problem = (
            "'packed' is for float32, or bfloat16 where the CPU has it, on a CPU with oneDNN, "
            f"not for {device.dtype} on {device.name} here."
        )
        raise ConfigError([Fault("model.linear", problem, ("auto", "eager"))])
    return Replaced()


def _quantized(network: nn.Module, probe: Probe, quantization: Quantization, device: Device) -> Replaced:
    if quantization == "none":
        return Replaced()
    if device.kind != "cpu" or device.dtype != "float32":
        problem = f"'{quantization}' is for device=cpu in float32, not for {device.dtype} on {device.name}."
        raise ConfigError([Fault("model.quantization", problem, hint="leave it out, or add device=cpu")])
    if not can_quantize():
        problem = f"'{quantization}' needs products in int8, which torch does not have on this CPU."
        raise ConfigError([Fault("model.quantization", problem, ("none",))])
    done = quantize_linears(network, probe, quantization)
    if not done.layers:
        problem = f"'{quantization}': nothing in this network can be rounded, or its answers change too much."
        raise ConfigError([Fault("model.quantization", problem, ("none",))])
    return done
