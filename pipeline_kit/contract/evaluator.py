"""What an evaluator of a task is: it reads labels, judges results, and gives metrics at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline_kit.contract.types import Example, Result
from pipeline_kit.errors import StageError, for_message


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluator may know.

    :param task: the task's name.
    :param labels: the checkpoint's labels by their number.
    :param config: the checkpoint's ``config.json``.
    :param options: the options of the postprocessor.
    :param labels_map: what a label of the file stands for, where the user says it.
    :param threshold: the score from which a label counts as predicted, where several may be.
    :param first: the label of the first row, which may decide between several evaluators.
    """

    task: str
    labels: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Any = None
    labels_map: Mapping[str, str] = field(default_factory=dict)
    threshold: float = 0.5
    first: Any = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row: what it should have been and what it was, as JSON values.

    :param right: None where a result is neither right nor wrong, such as a score.
    :param score: the pipeline's own score of what it predicted, where there is one.
    """

    right: bool | None
    gold: Any
    predicted: Any
    score: float | None = None


@dataclass(frozen=True)
class Metrics:
    """The outcome.

    :param values: JSON values; the numbers among them are shown first, in their order. ``NAME_interval`` is the
        95 % confidence interval of ``NAME``, ``per_label`` a table, ``confusion`` a matrix. A metric that is not
        defined for the rows there were is None.
    :param notes: what a reader has to know about them.
    """

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


class Evaluator(ABC):
    """Judges the results of one task, one row after the other. It keeps labels and predictions, never texts.

    A task names what makes one from an :class:`EvaluationContext`: such a class, or a function that chooses one.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    """Fields of a labelled row beside those of the task, such as a second text."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the postprocessor without which its results do not say enough, with their values."""
        return {}

    @abstractmethod
    def read(self, gold: Any, example: Mapping[str, Any]) -> Any:
        """Understand the label of a row; keeps nothing, since every row is read twice.

        :param gold: a JSON value, or the text of a table's cell.
        :returns: what :meth:`add` takes.
        :raises InputError: saying what a label of this task is.
        """

    def parts(self, example: Mapping[str, Any]) -> Sequence[Example]:
        """Return the examples whose results together answer a row."""
        return (example,)

    @abstractmethod
    def add(self, gold: Any, results: Sequence[Result]) -> Verdict:
        """Judge a row and count it.

        :param gold: from :meth:`read`.
        :param results: one for each of :meth:`parts`.
        :raises StageError: if a result lacks what is judged.
        :raises InputError: if the label does not go with the example.
        """

    @abstractmethod
    def metrics(self) -> Metrics:
        """Return the metrics of the rows added, of which there is at least one."""


def value_of(result: Result, key: str) -> Any:
    """Return what is judged of a result.

    :raises StageError: if it is not there, such as of a postprocessor that is not the task's own.
    """
    if key not in result:
        there = for_message(", ".join(map(str, result)) or "nothing", 120)
        raise StageError(
            f"results of this task are judged by their '{key}', and this postprocessor returns {there}; "
            "leave the task's own postprocessor in place"
        )
    return result[key]
