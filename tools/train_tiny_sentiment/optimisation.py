"""The optimiser both the teacher and the students use."""

from __future__ import annotations

import torch
from torch import nn


class WarmupAdamW:
    """AdamW with a linear warm-up, a linear decay to zero and gradients clipped to norm 1."""

    def __init__(self, model: nn.Module, learning_rate: float, steps: int, warmup: float) -> None:
        """Decay only weight matrices of layers: rare embedding rows would shrink unseen."""
        decayed: list[nn.Parameter] = []
        kept: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_matrix = parameter.ndim > 1 and "embeddings" not in name
                (decayed if is_matrix else kept).append(parameter)
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
        self._parameters = decayed + kept
        self._optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        ramp = max(1, int(steps * warmup))

        def scale(step: int) -> float:
            return (step + 1) / ramp if step < ramp else max(0.0, (steps - step) / max(1, steps - ramp))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, scale)

    def step(self, loss: torch.Tensor) -> None:
        """Back-propagate one scalar loss and move the parameters."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
