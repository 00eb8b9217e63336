"""Scores held against scores: correlation."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.evaluate.base import Evaluator, Metrics, Verdict, value_of
from pipeline_kit.types import Example, Result

__all__ = ["Scores", "cosine", "number_of", "score_of", "two_texts"]


@final
class Scores(Evaluator):
    """Spearman's and Pearson's correlation by scipy, equal scores sharing their mean rank.

    Neither is defined for fewer than two rows, or where all scores of one side are equal.
    """

    def __init__(
        self,
        predicted: Callable[[Sequence[Result]], float],
        parts: Callable[[Mapping[str, Any]], Sequence[Example]] | None = None,
    ) -> None:
        """Start with no rows.

        :param predicted: the score in the results of a row.
        :param parts: the examples of a row; None: the row itself.
        """
        self._score = predicted
        self._parts = parts
        self._gold, self._predicted = array("d"), array("d")

    def read(self, gold: Any, example: Mapping[str, Any]) -> float:
        """Give the number."""
        del example
        return number_of(gold, "the label")

    def parts(self, example: Mapping[str, Any]) -> Sequence[Example]:
        """See :class:`~pipeline_kit.evaluate.base.Evaluator`."""
        return (example,) if self._parts is None else self._parts(example)

    def add(self, gold: float, results: Sequence[Result]) -> Verdict:
        """Keep both."""
        found = self._score(results)
        self._gold.append(gold)
        self._predicted.append(found)
        return Verdict(None, gold, found, found)

    def metrics(self) -> Metrics:
        """See :class:`Scores`."""
        from scipy.stats import pearsonr, spearmanr

        gold, predicted = np.asarray(self._gold), np.asarray(self._predicted)
        problem = None
        if len(gold) < 2:
            problem = "a correlation needs two rows at least"
        elif np.ptp(gold) == 0 or np.ptp(predicted) == 0:
            side = "of the file" if np.ptp(gold) == 0 else "that were predicted"
            problem = f"all scores {side} are equal, so there is no correlation"
        if problem is not None:
            return Metrics({"spearman": None, "pearson": None}, (problem,))
        rank, linear = spearmanr(gold, predicted), pearsonr(gold, predicted)
        return Metrics({"spearman": float(rank.statistic), "pearson": float(linear.statistic)})


def score_of(results: Sequence[Result]) -> float:
    """Give the ``score`` of a checkpoint with one label."""
    return float(value_of(results[0], "score"))


def cosine(results: Sequence[Result]) -> float:
    """Give the cosine of the angle between two vectors; 0 if one of them is all zeros."""
    one, other = (np.asarray(value_of(result, "embedding"), dtype=np.float64) for result in results)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0


def two_texts(example: Mapping[str, Any]) -> Sequence[Example]:
    """Give ``text`` and ``text_pair`` as examples of their own."""
    rest = {name: value for name, value in example.items() if name != "text_pair"}
    return (rest, {**rest, "text": example["text_pair"]})


def number_of(value: Any, what: str) -> float:
    """Read a finite number, also one in a cell.

    :raises InputError: naming `what` is none.
    """
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
        if math.isfinite(found):
            return found
    shown = "empty" if value is None or value == "" else f"'{shorten(value, 60)}'"
    raise InputError(f"{what} is {shown}, not a number")
