"""The right token for each mask of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from pipeline_kit.builtin.tasks.classification.metrics import as_list
from pipeline_kit.contract.evaluator import Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.types import Result
from pipeline_kit.errors import InputError, for_message
from pipeline_kit.evaluate.numbers import share


@final
class MaskEvaluator(Evaluator):
    """``accuracy``: the share of masks whose likeliest token is the file's, white space at its ends apart;
    ``listed``: the share of masks in whose list it is, which ``postprocessor.top_k`` makes longer.
    """

    def __init__(self) -> None:
        self._masks, self._right, self._listed = 0, 0, 0

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[str]:
        """Return the token of each mask."""
        del example
        values = as_list(gold)
        values = [gold] if values is None else values
        if not values or not all(isinstance(value, str) and value.strip() for value in values):
            raise InputError(
                f"the label {for_message(repr(gold), 80)} is neither a token nor a list of them, one a mask"
            )
        return [value.strip() for value in values]

    def add(self, gold: list[str], results: Sequence[Result]) -> Verdict:
        """Compare the tokens in ``masks``."""
        masks = value_of(results[0], "masks")
        if len(masks) != len(gold):
            raise InputError(f"the text has {len(masks)} masks, and the label {len(gold)} tokens for them")
        found = [[item["token"].strip() for item in mask] for mask in masks]
        hits = [tokens[:1] == [wanted] for tokens, wanted in zip(found, gold, strict=True)]
        self._masks += len(gold)
        self._right += sum(hits)
        self._listed += sum(wanted in tokens for tokens, wanted in zip(found, gold, strict=True))
        best = [tokens[0] if tokens else None for tokens in found]
        score = masks[0][0]["score"] if len(masks) == 1 and masks[0] else None
        one = len(gold) == 1
        return Verdict(all(hits), gold[0] if one else gold, best[0] if one else best, score)

    def metrics(self) -> Metrics:
        """See :class:`MaskEvaluator`."""
        values = share("accuracy", self._right, self._masks) | share("listed", self._listed, self._masks)
        return Metrics(values | {"masks": self._masks})
