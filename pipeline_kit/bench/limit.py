"""How fast this machine multiplies matrices: what no network of linear layers can pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline_kit.types import Device

__all__ = ["MatrixLimit", "matrix_limit"]

_REPEATS = 12
_SECONDS = 0.3  # for each shape: a slow machine repeats less
# Rows, inputs, outputs. A CPU gets what a batch and a base-sized network have, a GPU enough to be full.
_ON_CPU = ((256, 768, 3072), (1024, 768, 3072))
_ELSEWHERE = ((4096, 4096, 4096), (8192, 4096, 4096))


@dataclass(frozen=True)
class MatrixLimit:
    """The best that was measured.

    :param gflops: 10^9 floating point operations a second, a multiplication and an addition counted as two.
    :param kernel: ``eager`` (torch's linear layer) or ``packed`` (its weight packed for oneDNN).
    """

    device: str
    dtype: str
    threads: int
    gflops: float
    kernel: str


def matrix_limit(device: Device, clock: Callable[[], float] = time.perf_counter) -> MatrixLimit:
    """Multiply rows by the weight of a linear layer, on `device` in its dtype with its threads; keep the best time.

    On a CPU the weight is also tried packed for oneDNN, where this build of torch can do that.
    """
    import torch
    from torch import nn

    from pipeline_kit.builtin.models.packed import PackedLinear, can_pack

    if device.kind == "cpu" and torch.get_num_threads() != device.threads:
        torch.set_num_threads(device.threads)
    best = (0.0, "eager")
    for rows, inputs, outputs in _ON_CPU if device.kind == "cpu" else _ELSEWHERE:
        kind: dict[str, Any] = {"device": device.name, "dtype": getattr(torch, device.dtype)}
        linear = nn.Linear(inputs, outputs).to(**kind)
        layers: dict[str, Any] = {"packed": PackedLinear(linear)} if can_pack(device) else {}
        layers["eager"] = linear
        data = torch.ones(rows, inputs, **kind)
        end = clock() + _SECONDS
        with torch.inference_mode():
            for number in range(_REPEATS):
                if number > 2 and clock() > end:
                    break
                for name, layer in layers.items():
                    start = clock()
                    layer(data)
                    _wait(device)
                    seconds = max(clock() - start, 1e-9)
                    best = max(best, (2e-9 * rows * inputs * outputs / seconds, name))
    return MatrixLimit(device.name, device.dtype, device.threads, *best)


def _wait(device: Device) -> None:
    import torch

    if device.kind == "cuda":
        torch.cuda.synchronize(device.name)
    elif device.kind == "mps":
        torch.mps.synchronize()
