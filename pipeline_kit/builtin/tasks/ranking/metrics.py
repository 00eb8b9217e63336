"""Documents in an order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from pipeline_kit.builtin.tasks.classification.metrics import as_list, number_of
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.fields import texts_of
from pipeline_kit.contract.types import Result
from pipeline_kit.errors import ExampleError, InputError, for_message

DEPTH = 10


@final
class RankingEvaluator(Evaluator):
    """``ndcg_at_10`` and ``mrr``, means over queries; a label is how relevant each document is, 0 or more.

    The reciprocal rank is that of the first document with a relevance over 0. A query without one counts as 0 in
    both.
    """

    def __init__(self, setting: EvaluationContext) -> None:
        self._cuts = getattr(setting.options, "top_k", None) is not None
        self._rows, self._hopeless = 0, 0
        self._ndcg, self._reciprocal = 0.0, 0.0

    @property
    def options(self) -> Mapping[str, Any]:
        """All documents must be listed."""
        return {"top_k": None} if self._cuts else {}

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[float]:
        """Return the relevances."""
        values = as_list(gold)
        try:
            documents = texts_of(example.get("documents"), "documents")
        except ExampleError as error:
            raise InputError(str(error)) from error
        if values is None or len(values) != len(documents):
            raise InputError(
                f"the label {for_message(repr(gold), 60)} is not a list of {len(documents)} numbers, one a document"
            )
        found = [number_of(value, f"relevance {place}") for place, value in enumerate(values)]
        if min(found) < 0:
            raise InputError(f"a relevance is 0 or more, not {min(found):g}")
        return found

    def add(self, gold: list[float], results: Sequence[Result]) -> Verdict:
        """Judge the order in ``ranking``."""
        ranking = value_of(results[0], "ranking")
        order = [item["index"] for item in ranking]
        ranked = [gold[index] for index in order]
        self._rows += 1
        self._hopeless += not any(gold)
        self._ndcg += ndcg(ranked, gold)
        self._reciprocal += next((1 / rank for rank, value in enumerate(ranked, 1) if value), 0.0)
        return Verdict(ranked[0] == max(gold) > 0, gold, order, ranking[0]["score"])

    def metrics(self) -> Metrics:
        """See :class:`RankingEvaluator`."""
        values = {f"ndcg_at_{DEPTH}": self._ndcg / self._rows, "mrr": self._reciprocal / self._rows}
        hopeless = f"{self._hopeless:,} queries have no relevant document and count as 0"
        return Metrics(values, (hopeless,) if self._hopeless else ())


def ndcg(ranked: Sequence[float], gold: Sequence[float]) -> float:
    """Return the discounted gain of the first `DEPTH` documents as a part of the best possible one.

    The gain is the relevance itself, the discount ``log2(rank + 1)``, as in scikit-learn's ``ndcg_score``, which
    takes no query with a single document and no order other than by scores.
    """
    best = _gain(sorted(gold, reverse=True))
    return _gain(ranked) / best if best else 0.0


def _gain(values: Sequence[float]) -> float:
    return sum(value / math.log2(rank + 1) for rank, value in enumerate(values[:DEPTH], 1))
