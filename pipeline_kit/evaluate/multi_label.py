"""Any number of labels for a row."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.evaluate.base import Evaluator, Metrics, Setting, Verdict, value_of
from pipeline_kit.evaluate.numbers import share
from pipeline_kit.evaluate.single_label import absent, per_label
from pipeline_kit.evaluate.spaces import Space
from pipeline_kit.records.json import parse_json
from pipeline_kit.types import Result

__all__ = ["MultiLabel", "as_list"]


@final
class MultiLabel(Evaluator):
    """Micro, macro and per-label precision, recall and F1 by scikit-learn, and ``exact_match``, the share of rows whose
    labels are all right and no other.

    A label is predicted from the threshold on; from its own one, where ``postprocessor.thresholds`` has one.
    """

    def __init__(self, space: Space, setting: Setting) -> None:
        """Start with no rows."""
        self._space = space
        self._threshold = setting.threshold
        self._own = dict(getattr(setting.options, "thresholds", {}))
        self._lists_some = getattr(setting.options, "top_k", None) == 1
        self._gold, self._predicted = _Rows(), _Rows()
        self._right = 0

    @property
    def options(self) -> Mapping[str, Any]:
        """All labels must be listed."""
        return {"top_k": None} if self._lists_some else {}

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[int]:
        """Give the labels' numbers, sorted."""
        values = as_list(gold)
        if values is None:
            raise InputError(
                f"the label {shorten(repr(gold), 80)} is no list; the first row has a list, so all must; "
                '[] means no label, and in CSV a list is written as JSON: ["one", "two"]'
            )
        found = [self._space.gold(value, example) for value in values]
        if len(set(found)) < len(found):
            raise InputError("a label is there twice in the list")
        return sorted(found)

    def add(self, gold: list[int], results: Sequence[Result]) -> Verdict:
        """Compare the labels in ``labels`` whose score is high enough."""
        listed = [(item["label"], item["score"]) for item in value_of(results[0], "labels")]
        chosen = [name for name, score in listed if name in self._own or score >= self._threshold]
        found = sorted(self._space.predicted(name) for name in chosen)
        self._gold.add(gold)
        self._predicted.add(found)
        self._right += found == gold
        return Verdict(found == gold, [self._space.names[number] for number in gold], chosen, results[0].get("score"))

    def metrics(self) -> Metrics:
        """See :class:`MultiLabel`."""
        from sklearn.metrics import precision_recall_fscore_support

        names = self._space.names
        gold, predicted = self._gold.matrix(len(names)), self._predicted.matrix(len(names))
        in_file = set(self._gold.labels.tolist())
        present = sorted(in_file | set(self._predicted.labels.tolist()))
        values = share("exact_match", self._right, len(self._gold))
        notes = [self._space.note, *absent(names, in_file, set(present))]
        if not present:
            return Metrics(values, ("no row has a label, and none was predicted",))
        micro = precision_recall_fscore_support(gold, predicted, labels=present, average="micro", zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), micro[:3], strict=True):
            values[f"micro_{name}"] = float(value)
        return Metrics(values | per_label(gold, predicted, present, names), tuple(note for note in notes if note))


class _Rows:
    """Sets of numbers, a row each, in little memory."""

    def __init__(self) -> None:
        self._labels, self._ends = array("i"), array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, labels: Sequence[int]) -> None:
        self._labels.extend(labels)
        self._ends.append(len(self._labels))

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.asarray(self._labels, dtype=np.int32)

    def matrix(self, width: int) -> Any:
        """Give a sparse matrix ``[N, width]`` of 0 and 1."""
        from scipy.sparse import csr_matrix

        ones = np.ones(len(self._labels), dtype=np.int8)
        return csr_matrix((ones, self.labels, np.asarray(self._ends)), shape=(len(self), width))


def as_list(gold: Any) -> list[Any] | None:
    """Give a list of labels, also one that is written as JSON in a cell; None if it is none."""
    if isinstance(gold, str) and gold.lstrip().startswith("["):
        gold = parse_json(gold)
    return gold if isinstance(gold, list) else None
