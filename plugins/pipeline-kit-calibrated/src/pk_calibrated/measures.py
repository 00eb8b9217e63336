"""How far scores are from the truth, and the temperature that brings them closest to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOWEST, HIGHEST = 0.01, 100.0
"""The temperatures looked at."""


def log_softmax(logits: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities ``[N, L]``, float64, of logits ``[N, L]``."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def loss(logits: NDArray[Any], truth: NDArray[np.int64], temperature: float) -> float:
    """Return the mean negative log likelihood, in nats, of the true labels ``[N]``."""
    return float(-log_softmax(logits, temperature)[np.arange(len(truth)), truth].mean())


def fit_temperature(logits: NDArray[Any], truth: NDArray[np.int64]) -> float:
    """Return the temperature that minimises :func:`loss`, between `LOWEST` and `HIGHEST`.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599. The loss is convex in ``1 / temperature``, so its
    only minimum is where the slope changes sign, and halving the interval finds it.
    """
    values = logits.astype(np.float64)
    correct = values[np.arange(len(truth)), truth]

    def falling(temperature: float) -> bool:
        """Return whether the loss still falls as the temperature rises."""
        expected = (np.exp(log_softmax(values, temperature)) * values).sum(axis=1)
        return bool(np.mean(expected - correct) > 0)

    low, high = LOWEST, HIGHEST
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if falling(middle) else (low, middle)
    return float(np.sqrt(low * high))


def calibration_error(logits: NDArray[Any], truth: NDArray[np.int64], temperature: float, bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, 0 to 1.

    Rows are sorted into `bins` of equal width by the score of their best label; the error is the mean,
    weighted by rows, of the differences between a bin's mean score and its accuracy.
    Section 2 of https://arxiv.org/abs/1706.04599.
    """
    probabilities = np.exp(log_softmax(logits, temperature))
    scores = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == truth).astype(np.float64)
    places = np.minimum((scores * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(places, weights=scores - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))
