"""How far results are from those of float32, whatever the task: labels, numbers and vectors, row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, final

import numpy as np

from pipeline_kit.contract.column_types import COUNTS

LEAST_COSINE = 0.99
"""From here on a vector counts as the same."""

# Keys whose lists of numbers are scores of several things and no vector.
_SCORES = frozenset(("scores",))


@dataclass(frozen=True)
class Quality:
    """What separates results from the reference.

    :param rows: results that were compared.
    :param agreement: the share of rows with the same answer: texts, labels and whole numbers are equal, and each
        vector has a cosine of `LEAST_COSINE` or more with its reference; 1 where results hold numbers only.
    :param differences: by key of a result, the largest absolute difference of its numbers.
    :param smallest_cosine: of all vectors; None if there are none.
    :param not_finite: numbers that are NaN or infinite here and not in the reference.
    """

    rows: int
    agreement: float
    differences: Mapping[str, float]
    smallest_cosine: float | None
    not_finite: int

    @property
    def largest(self) -> float | None:
        """The largest difference of any number; None if results hold none."""
        return max(self.differences.values(), default=None)


def compare_results(reference: Sequence[Any], other: Sequence[Any], best_first: Collection[str] = ()) -> Quality:
    """Compare `other` with `reference`, two lists of as many results.

    :param best_first: the keys whose lists' first item is the answer, while the others may change places.
    """
    found = _Comparison(best_first)
    same = [found.walk("", mine, theirs) for mine, theirs in zip(reference, other, strict=True)]
    agreement = sum(same) / len(same) if same else 1.0
    cosine = min(found.cosines, default=None)
    return Quality(len(same), agreement, dict(found.differences), cosine, found.not_finite)


def is_varied(results: Iterable[Any]) -> bool:
    """Return whether agreement with `results` means anything: they hold vectors, or not the same labels everywhere."""
    labels = set()
    for result in results:
        plain = _without_numbers("", result)
        if plain is None:
            return True
        labels.add(json.dumps(plain, sort_keys=True, default=repr))
        if len(labels) > 1:
            return True
    return False


def _without_numbers(key: str, value: Any) -> Any:
    """Return a part of a result without its fractions and counts; None if it holds a vector."""
    if isinstance(value, float):
        return []
    if isinstance(value, Mapping):
        if _is_vector(key, list(value.values())):
            return None
        kept = {str(name): _without_numbers(str(name), item) for name, item in value.items() if name not in COUNTS}
        return None if None in kept.values() else kept
    if isinstance(value, list | tuple):
        parts = None if _is_vector(key, value) else [_without_numbers(key, item) for item in value]
        return None if parts is None or None in parts else parts
    return [] if value is None else value


@final
class _Comparison:
    """Goes through pairs of results and keeps what differs."""

    def __init__(self, best_first: Collection[str]) -> None:
        self._best_first = best_first
        self.differences: dict[str, float] = {}
        self.cosines: list[float] = []
        self.not_finite = 0

    def walk(self, path: str, mine: Any, theirs: Any) -> bool:
        """Compare a part of the reference with the same part of the other; return whether both say the same."""
        key = path.rpartition(".")[2]
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            if mine.keys() != theirs.keys():
                return False
            values = list(mine.values())
            same = all([self.walk(f"{path}.{name}" if path else str(name), mine[name], theirs[name]) for name in mine])
            return same and (not _is_vector(key, values) or self._cosine(values, [theirs[name] for name in mine]))
        if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
            return self._lists(path, key, mine, theirs)
        if _is_number(mine) and _is_number(theirs) and (isinstance(mine, float) or isinstance(theirs, float)):
            return self._numbers(path, [mine], [theirs])
        return bool(type(mine) is type(theirs) and mine == theirs)

    def _lists(self, path: str, key: str, mine: Sequence[Any], theirs: Sequence[Any]) -> bool:
        if mine and theirs and all(isinstance(item, Mapping) for item in (*mine, *theirs)):
            # Labels with scores, entities and the like: what is called the same is the same item.
            named, other = _named(mine), _named(theirs)
            inside = [self.walk(path, item, other[name]) for name, item in named.items() if name in other]
            if key in self._best_first:
                return next(iter(named)) == next(iter(other))
            return named.keys() == other.keys() and all(inside)
        if len(mine) != len(theirs):
            return False
        if mine and all(map(_is_number, (*mine, *theirs))) and any(isinstance(item, float) for item in mine):
            comparable = self._numbers(path, mine, theirs)
            return comparable and (not _is_vector(key, mine) or self._cosine(mine, theirs))
        return all([self.walk(path, a, b) for a, b in zip(mine, theirs, strict=True)])

    def _numbers(self, path: str, mine: Sequence[float], theirs: Sequence[float]) -> bool:
        """Keep the largest difference; return whether all could be compared."""
        found = np.asarray(theirs, dtype=np.float64)  # whole numbers of any size too
        with np.errstate(invalid="ignore"):
            differences = np.abs(np.asarray(mine, dtype=np.float64) - found)
        finite = np.isfinite(differences)
        self.not_finite += int((~finite & ~np.isfinite(found)).sum())
        if finite.any():
            self.differences[path] = max(self.differences.get(path, 0.0), float(differences[finite].max()))
        return bool(finite.all())

    def _cosine(self, mine: Sequence[float], theirs: Sequence[float]) -> bool:
        a, b = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        # Two vectors of zeros are the same; the direction of one alone is not known.
        cosine = float(a @ b) / (lengths[0] * lengths[1]) if all(lengths) else float(lengths[0] == lengths[1])
        self.cosines.append(cosine)
        return cosine >= LEAST_COSINE


def _named(items: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Name items by all their values that are not numbers, the second of the same name apart from the first."""
    seen: Counter[str] = Counter()
    named = {}
    for item in items:
        plain = {str(key): value for key, value in item.items() if not isinstance(value, float)}
        name = json.dumps(plain, sort_keys=True, default=repr)
        named[name, seen[name]] = item
        seen[name] += 1
    return named


def _is_vector(key: str, values: Sequence[Any]) -> bool:
    return key not in _SCORES and len(values) > 1 and all(isinstance(item, float) for item in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def compare_scores(first: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    """Compare the results of two sides, row by row.

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
    """Return the labels (None where there is none) and scores of a result, ours or transformers' own."""
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
