"""Written texts: exact match only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from pipeline_kit.contract.evaluator import Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.types import Result
from pipeline_kit.errors import InputError, for_message
from pipeline_kit.evaluate.numbers import share

NOTE = "exact match, white space at the ends and between words apart; no measure of likeness such as BLEU or ROUGE"


@final
class TextEvaluator(Evaluator):
    """``exact_match``: the share of rows whose text is one of the file's, white space apart."""

    def __init__(self) -> None:
        self._rows, self._right = 0, 0

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[str]:
        """Return the texts that are right."""
        del example
        texts = gold if isinstance(gold, list) else [gold]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the label {for_message(repr(gold), 80)} is neither a text nor a list of texts")
        return texts

    def add(self, gold: list[str], results: Sequence[Result]) -> Verdict:
        """Compare ``text``."""
        text = value_of(results[0], "text")
        right = text.split() in [wanted.split() for wanted in gold]
        self._rows += 1
        self._right += right
        return Verdict(right, gold if len(gold) > 1 else gold[0], text)

    def metrics(self) -> Metrics:
        """See :class:`TextEvaluator`."""
        return Metrics(share("exact_match", self._right, self._rows), (NOTE,))
