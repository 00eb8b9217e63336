"""One label for a row: accuracy, precision and recall of each label, and what is taken for what."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.types import Result
from pipeline_kit.errors import InputError, UsageError, for_message
from pipeline_kit.evaluate.labels import Labels, LabelSet, as_list, listed
from pipeline_kit.evaluate.numbers import ScoreEvaluator, share

NONE = -1
MOST_IN_MATRIX = 200
MOST_PAIRS = 50


@final
class SingleLabel(Evaluator):
    """Accuracy; macro and per-label precision, recall and F1 by scikit-learn; a confusion matrix.

    Macro means are over the labels that occur in the file or among the predictions, as scikit-learn has it. A row for
    which no label reaches its threshold is wrong, and a miss of its label.
    """

    def __init__(self, space: LabelSet) -> None:
        self._space = space
        self._gold, self._predicted = array("i"), array("i")

    def read(self, gold: Any, example: Mapping[str, Any]) -> int:
        if isinstance(gold, list):
            raise InputError("the label is a list; the first row has one label, so all must (or all have lists)")
        return self._space.gold(gold, example)

    def add(self, gold: int, results: Sequence[Result]) -> Verdict:
        name = value_of(results[0], "label")
        found = NONE if name is None else self._space.predicted(name)
        self._gold.append(gold)
        self._predicted.append(found)
        return Verdict(found == gold, self._space.names[gold], name, results[0].get("score"))

    def metrics(self) -> Metrics:
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
    """Return ``macro_...`` and ``per_label`` by scikit-learn.

    :param gold: labels ``[N]``, or a sparse matrix ``[N, L]`` of 0 and 1; the same for `predicted`.
    :param present: the labels to count, at least one.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(gold, predicted, labels=present, average=None, zero_division=0)
    rows = {
        names[label]: {"precision": p, "recall": r, "f1": f, "support": int(s)}
        for label, p, r, f, s in zip(present, *(column.tolist() for column in columns), strict=True)
    }
    means = {
        f"macro_{name}": float(np.mean(column))
        for name, column in zip(("precision", "recall", "f1"), columns[:3], strict=True)
    }
    return {**means, "per_label": rows}


def confusion(gold: Any, predicted: Any, present: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Return the matrix ``counts``, a row for each label of the file and a column for each predicted one.

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
    """Describe which labels no row has, and what that does to the means."""
    never = [name for number, name in enumerate(names) if number not in present]
    only = [name for number, name in enumerate(names) if number in present - gold]
    notes = []
    if never:
        notes.append(f"neither in the file nor predicted, so not in the macro means: {listed(never)}")
    if only:
        notes.append(f"predicted, but never in the file, so 0 in the macro means: {listed(only)}")
    return notes


@final
class MultiLabel(Evaluator):
    """Micro, macro and per-label precision, recall and F1 by scikit-learn, and ``exact_match``, the share of rows whose
    labels are all right and no other.

    A label is predicted from the threshold on; from its own one, where ``postprocessor.thresholds`` has one.
    """

    def __init__(self, space: LabelSet, setting: EvaluationContext) -> None:
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
        values = as_list(gold)
        if values is None:
            raise InputError(
                f"the label {for_message(repr(gold), 80)} is not a list; the first row has a list, so all must; "
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
    def labels(self) -> NDArray[np.int32]:
        return np.asarray(self._labels, dtype=np.int32)

    def matrix(self, width: int) -> Any:
        """Return a sparse matrix ``[N, width]`` of 0 and 1."""
        from scipy.sparse import csr_matrix

        ones = np.ones(len(self._labels), dtype=np.int8)
        return csr_matrix((ones, self.labels, np.asarray(self._ends)), shape=(len(self), width))


def classification_evaluator(context: EvaluationContext) -> Evaluator:
    """Choose by the first row's label: a number for a checkpoint of one label, a list, or one label."""
    from pipeline_kit.builtin.tasks.classification.stage import score_function

    if len(context.labels) == 1 or context.config.get("problem_type") == "regression":
        if len(context.labels) > 1:
            raise UsageError(f"a regression with {len(context.labels)} outputs cannot be evaluated, only with one")
        return ScoreEvaluator(context)
    space = Labels(context.labels, context.labels_map)
    space.check_map()
    if not is_list(context.first, space):
        return SingleLabel(space)
    function = getattr(context.options, "function", None)
    if function == "auto":
        function = score_function(context.config, len(context.labels))
    if function in ("softmax", "none"):
        raise UsageError(
            f"the labels are lists, and with postprocessor.function={function} a text has one label; for a "
            "checkpoint that was trained on several: postprocessor.function=sigmoid"
        )
    return MultiLabel(space, context)


def is_list(first: Any, space: LabelSet) -> bool:
    """Return whether the first row has a list of labels and not one label that looks like a list."""
    return first not in space.names and as_list(first) is not None
