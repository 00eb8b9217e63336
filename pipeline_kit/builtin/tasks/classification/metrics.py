"""One label for a row: accuracy, precision and recall of each label, and what is taken for what."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.zero_shot.hypotheses import CandidateLabels
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.types import Example, Result
from pipeline_kit.errors import InputError, for_message
from pipeline_kit.evaluate.labels import Labels, listed
from pipeline_kit.evaluate.numbers import share
from pipeline_kit.files.json_text import parse_json

LabelSet = Labels | CandidateLabels
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
        """Return the label's number."""
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
    """Return ``macro_...`` and ``per_label`` by scikit-learn.

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
        """Return the labels' numbers, sorted."""
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
    def labels(self) -> NDArray[np.int32]:
        return np.asarray(self._labels, dtype=np.int32)

    def matrix(self, width: int) -> Any:
        """Return a sparse matrix ``[N, width]`` of 0 and 1."""
        from scipy.sparse import csr_matrix

        ones = np.ones(len(self._labels), dtype=np.int8)
        return csr_matrix((ones, self.labels, np.asarray(self._ends)), shape=(len(self), width))


def as_list(gold: Any) -> list[Any] | None:
    """Return a list of labels, also one that is written as JSON in a cell; None if it is none."""
    if isinstance(gold, str) and gold.lstrip().startswith("["):
        gold = parse_json(gold)
    return gold if isinstance(gold, list) else None


@final
class ScoreEvaluator(Evaluator):
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
        """Return the number."""
        del example
        return number_of(gold, "the label")

    def parts(self, example: Mapping[str, Any]) -> Sequence[Example]:
        """See :class:`~pipeline_kit.contract.evaluator.Evaluator`."""
        return (example,) if self._parts is None else self._parts(example)

    def add(self, gold: float, results: Sequence[Result]) -> Verdict:
        """Keep both."""
        found = self._score(results)
        self._gold.append(gold)
        self._predicted.append(found)
        return Verdict(None, gold, found, found)

    def metrics(self) -> Metrics:
        """See :class:`ScoreEvaluator`."""
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
    """Return the ``score`` of a checkpoint with one label."""
    return float(value_of(results[0], "score"))


def cosine(results: Sequence[Result]) -> float:
    """Return the cosine of the angle between two vectors; 0 if one of them is all zeros."""
    one, other = (np.asarray(value_of(result, "embedding"), dtype=np.float64) for result in results)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0


def two_texts(example: Mapping[str, Any]) -> Sequence[Example]:
    """Return ``text`` and ``text_pair`` as examples of their own."""
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
    shown = "empty" if value is None or value == "" else f"'{for_message(value, 60)}'"
    raise InputError(f"{what} is {shown}, not a number")
