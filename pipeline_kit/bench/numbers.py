"""What is made of measured times: medians with their spread, percentiles, ratios of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["counted", "paired_ratio", "percentiles", "quartiles", "speeds", "spread"]


def counted(number: int, thing: str) -> str:
    """Write ``1 round`` or ``5 rounds``."""
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Give ``median``, ``q1`` and ``q3``, interpolated linearly between neighbours."""
    q1, median, q3 = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "q1": q1, "q3": q3}


def speeds(count: int, seconds: Sequence[float]) -> dict[str, float]:
    """Give the quartiles of `count` things a second over several rounds."""
    return quartiles([count / max(value, 1e-9) for value in seconds])


def spread(values: Sequence[float]) -> float:
    """Give the distance between the quartiles as a share of the median."""
    found = quartiles(values)
    return (found["q3"] - found["q1"]) / found["median"] if found["median"] else 0.0


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Give ``p50``, ``p95`` and ``p99``; of fewer than 100 values the last is close to the largest of them."""
    found = np.percentile(values, (50, 95, 99))
    return dict(zip(("p50", "p95", "p99"), map(float, found), strict=True))


def paired_ratio(first: Sequence[float], other: Sequence[float]) -> dict[str, object]:
    """Say how many times as fast as the other the first was, from the seconds of the same rounds.

    A ratio is taken within each round, since what slows the machine down for a while slows both sides of a
    round; then come the ``median``, ``min`` and ``max`` of these.
    """
    rounds = [b / max(a, 1e-9) for a, b in zip(first, other, strict=True)]
    return {"median": float(np.median(rounds)), "min": min(rounds), "max": max(rounds), "rounds": rounds}
