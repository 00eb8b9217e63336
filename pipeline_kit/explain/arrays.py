"""Tensors as numpy arrays; nothing here imports torch."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["to_numpy"]


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Copy a tensor to the CPU; floats as float32, which holds every value of the shorter ones."""
    found: np.ndarray[Any, Any] = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    return found.copy()
