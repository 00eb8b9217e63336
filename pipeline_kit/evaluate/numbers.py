"""Shares, their confidence intervals, and precision with recall from counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

CONFIDENCE = 0.95


def wilson(hits: int, count: int) -> list[float]:
    """Return the 95 % confidence interval of the share ``hits / count`` by Wilson's score method.

    It stays within 0 to 1 and holds for few rows and for shares near 0 or 1, unlike the normal approximation.
    https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval
    """
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return [float(found.low), float(found.high)]


def share(name: str, hits: int, count: int) -> dict[str, Any]:
    """Return ``hits / count`` as `name`, and its interval."""
    return {name: hits / count, f"{name}_interval": wilson(hits, count)}


def precision_recall(hits: int, predicted: int, gold: int) -> dict[str, float]:
    """Return ``precision``, ``recall`` and ``f1``, each 0 where it would be divided by 0."""
    precision = hits / predicted if predicted else 0.0
    recall = hits / gold if gold else 0.0
    f1 = 2 * hits / (predicted + gold) if predicted + gold else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def mean(rows: Iterable[dict[str, float]], names: Sequence[str] = ("precision", "recall", "f1")) -> dict[str, float]:
    """Return the unweighted means of `names` as ``macro_NAME``; there must be a row."""
    listed = list(rows)
    return {f"macro_{name}": sum(row[name] for row in listed) / len(listed) for name in names}
