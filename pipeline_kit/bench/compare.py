"""Whether two sides answer alike: the difference of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

__all__ = ["compare", "scored"]


def compare(first: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    """Hold the results of two sides against each other, row by row.

    :returns: ``rows`` that could be compared (those with scores, and as many on both sides), the
        ``largest_score_difference`` among them, None if there is none, and ``same_label``, the share of these rows
        whose best labels are equal, None where results have no labels.
    """
    differences: list[float] = []
    same: list[bool] = []
    for mine, theirs in zip(first, other, strict=True):
        a, b = scored(mine), scored(theirs)
        if not a or len(a) != len(b):
            continue
        # By score, since two sides may list equal labels in different orders.
        pairs = zip(sorted((s for _, s in a), reverse=True), sorted((s for _, s in b), reverse=True), strict=True)
        differences.append(max(abs(x - y) for x, y in pairs))
        if a[0][0] is not None and b[0][0] is not None:
            same.append(a[0][0] == b[0][0])
    return {
        "rows": len(differences),
        "largest_score_difference": max(differences, default=None),
        "same_label": sum(same) / len(same) if same else None,
    }


def scored(result: Any) -> list[tuple[Any, float]]:
    """Give the labels (None where there is none) and scores of a result, ours or transformers' own."""
    if isinstance(result, list | tuple):
        return [item for part in result for item in scored(part)]
    if not isinstance(result, Mapping):
        return []
    if isinstance(result.get("labels"), list) and isinstance(result.get("scores"), list):
        return list(zip(result["labels"], result["scores"], strict=True))
    for value in result.values():
        if isinstance(value, list) and (found := scored(value)):
            return found
    score = result.get("score")
    if not isinstance(score, Real):
        return []
    names = ("label", "entity_group", "entity", "id", "token", "answer", "index")
    return [(next((result[name] for name in names if name in result), None), float(score))]
