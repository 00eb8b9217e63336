"""Shares, their confidence intervals, and precision with recall from counts."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.types import Example, Result
from pipeline_kit.errors import InputError, StageError, for_message

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


class ScoreEvaluator(Evaluator):
    """Spearman's and Pearson's correlation of the ``score`` with the label, by scipy.

    Equal scores share their mean rank. Neither is defined for fewer than two rows, or where all scores of one side
    are equal.
    """

    def __init__(self, context: EvaluationContext) -> None:
        self._gold, self._predicted = array("d"), array("d")

    def score(self, results: Sequence[Result]) -> float:
        found = value_of(results[0], "score")
        return float(found) if isinstance(found, Real) else math.nan

    def read(self, gold: Any, example: Mapping[str, Any]) -> float:
        return number_of(gold, "the label")

    def add(self, gold: float, results: Sequence[Result]) -> Verdict:
        found = self.score(results)
        if not math.isfinite(found):
            raise StageError(
                f"a score is not a finite number in {for_message(results, 200)}; only those can be compared with labels"
            )
        self._gold.append(gold)
        self._predicted.append(found)
        return Verdict(None, gold, found, found)

    def metrics(self) -> Metrics:
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
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            rank, linear = spearmanr(gold, predicted), pearsonr(gold, predicted)
        notes = ("the scores of one side are nearly equal, so the correlations are not exact",) if doubts else ()
        return Metrics({"spearman": float(rank.statistic), "pearson": float(linear.statistic)}, notes)


class PairEvaluator(ScoreEvaluator):
    """The same for how alike the results of two texts are, the fields ``text`` and ``text_pair`` of a row."""

    fields: ClassVar[tuple[str, ...]] = ("text_pair",)

    @abstractmethod
    def score(self, results: Sequence[Result]) -> float:
        """Return how alike the two results are."""

    def parts(self, example: Mapping[str, Any]) -> Sequence[Example]:
        rest = {name: value for name, value in example.items() if name != "text_pair"}
        return (rest, {**rest, "text": example["text_pair"]})


def number_of(value: Any, what: str) -> float:
    """Read a finite number, also one in a cell; raise InputError if `what` is none."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
        if math.isfinite(found):
            return found
    shown = "empty" if value is None or value == "" else f"'{for_message(value, 60)}'"
    raise InputError(f"{what} is {shown}, not a number")
