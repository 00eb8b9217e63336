"""The right one of several choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.fields import texts_of
from pipeline_kit.contract.types import Result
from pipeline_kit.errors import ExampleError, InputError
from pipeline_kit.evaluate.labels import Labels
from pipeline_kit.evaluate.numbers import share


@final
class ChoiceEvaluator(Evaluator):
    """``accuracy``: the share of rows with the right choice. A label is a choice's text or its number, from 0."""

    def __init__(self, setting: EvaluationContext) -> None:
        self._mapping = setting.labels_map
        self._rows, self._right = 0, 0

    def read(self, gold: Any, example: Mapping[str, Any]) -> str:
        """Return the choice."""
        try:
            choices = texts_of(example.get("choices"), "choices")
        except ExampleError as error:
            raise InputError(str(error)) from error
        if type(gold) is int and 0 <= gold < len(choices):
            return choices[gold]  # also where the choices are numbers themselves
        return choices[Labels(choices, self._mapping, "choices").find(gold)]

    def add(self, gold: str, results: Sequence[Result]) -> Verdict:
        """Compare ``choice``."""
        choice = value_of(results[0], "choice")
        self._rows += 1
        self._right += choice == gold
        return Verdict(choice == gold, gold, choice, results[0].get("score"))

    def metrics(self) -> Metrics:
        """See :class:`ChoiceEvaluator`."""
        return Metrics(share("accuracy", self._right, self._rows))
