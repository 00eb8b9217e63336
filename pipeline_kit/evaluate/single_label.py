"""One label for a row: accuracy, precision and recall of each label, and what is taken for what."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from pipeline_kit.errors import InputError
from pipeline_kit.evaluate.base import Evaluator, Metrics, Verdict, value_of
from pipeline_kit.evaluate.labels import listed
from pipeline_kit.evaluate.numbers import share
from pipeline_kit.evaluate.spaces import Space
from pipeline_kit.types import Result

__all__ = ["SingleLabel", "absent", "confusion", "per_label"]

NONE = -1
MOST_IN_MATRIX = 200
MOST_PAIRS = 50


@final
class SingleLabel(Evaluator):
    """Accuracy; macro and per-label precision, recall and F1 by scikit-learn; a confusion matrix.

    Macro means are over the labels that occur in the file or among the predictions, as scikit-learn has it. A row for
    which no label reaches its threshold is wrong, and a miss of its label.
    """

    def __init__(self, space: Space) -> None:
        """Start with no rows."""
        self._space = space
        self._gold, self._predicted = array("i"), array("i")

    def read(self, gold: Any, example: Mapping[str, Any]) -> int:
        """Give the label's number."""
        if isinstance(gold, list):
            raise InputError("the label is a list; the first row has one label, so all must (or all have lists)")
        return self._space.gold(gold, example)

    def add(self, gold: int, results: Sequence[Result]) -> Verdict:
        """Compare ``label``."""
        name = value_of(results[0], "label")
        found = NONE if name is None else self._space.predicted(name)
        self._gold.append(gold)
        self._predicted.append(found)
        return Verdict(found == gold, self._space.names[gold], name, results[0].get("score"))

    def metrics(self) -> Metrics:
        """See :class:`SingleLabel`."""
        names = self._space.names
        gold, predicted = np.asarray(self._gold), np.asarray(self._predicted)
        present = sorted({*gold.tolist(), *predicted.tolist()} - {NONE})
        right = int((gold == predicted).sum())
        values = share("accuracy", right, len(gold)) | per_label(gold, predicted, present, names)
        values["confusion"] = confusion(gold, predicted, present, names)
        unchosen = int((predicted == NONE).sum())
        notes = [self._space.note, *absent(names, set(gold.tolist()), set(present))]
        if unchosen:
            notes.append(f"for {unchosen:,} rows no label reached its threshold; they count as wrong")
        return Metrics(values, tuple(note for note in notes if note))


def per_label(gold: Any, predicted: Any, present: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Give ``macro_...`` and ``per_label`` by scikit-learn.

    :param gold: labels ``[N]``, or a sparse matrix ``[N, L]`` of 0 and 1; the same for `predicted`.
    :param present: the labels to count, at least one.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(gold, predicted, labels=present, average=None, zero_division=0)
    rows = {
        names[label]: {"precision": p, "recall": r, "f1": f, "support": s}
        for label, p, r, f, s in zip(present, *(column.tolist() for column in columns), strict=True)
    }
    means = {
        f"macro_{name}": float(np.mean(column))
        for name, column in zip(("precision", "recall", "f1"), columns[:3], strict=True)
    }
    return {**means, "per_label": rows}


def confusion(gold: Any, predicted: Any, present: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Give the matrix ``counts``, a row for each label of the file and a column for each predicted one.

    The last column, named null, counts rows for which nothing was predicted, if there are any. Of more than
    `MOST_IN_MATRIX` labels there is no matrix. ``pairs`` are the commonest mistakes, at most `MOST_PAIRS`.
    """
    from sklearn.metrics import confusion_matrix

    columns = [*present, NONE] if (predicted == NONE).any() else list(present)
    shown: dict[str, Any] = {"labels": None, "predicted": None, "counts": None}
    name = {NONE: None, **{label: names[label] for label in present}}
    if len(present) <= MOST_IN_MATRIX:
        # The column for none is always asked for, since scikit-learn warns of a matrix of one label.
        counts = confusion_matrix(gold, predicted, labels=[*present, NONE])[: len(present), : len(columns)]
        shown = {
            "labels": [name[label] for label in present],
            "predicted": [name[label] for label in columns],
            "counts": counts.tolist(),
        }
    wrong = gold != predicted
    pairs = Counter(zip(gold[wrong].tolist(), predicted[wrong].tolist(), strict=True)).most_common(MOST_PAIRS)
    return {**shown, "pairs": [{"gold": name[a], "predicted": name[b], "count": n} for (a, b), n in pairs]}


def absent(names: Sequence[str], gold: set[int], present: set[int]) -> list[str]:
    """Say which labels no row has, and what that does to the means."""
    never = [name for number, name in enumerate(names) if number not in present]
    only = [name for number, name in enumerate(names) if number in present - gold]
    notes = []
    if never:
        notes.append(f"neither in the file nor predicted, so not in the macro means: {listed(never)}")
    if only:
        notes.append(f"predicted, but never in the file, so 0 in the macro means: {listed(only)}")
    return notes
