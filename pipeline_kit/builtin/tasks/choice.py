"""The best of several choices for a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar, final

from pipeline_kit.builtin.tasks.common.merge import Outputs, Windows, floats, rank_parts
from pipeline_kit.builtin.tasks.common.panels import activation_panel, cell, merge_panels, ranked_items
from pipeline_kit.builtin.tasks.options import ChoiceConfig
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.fields import read_fields, text_of, texts_of
from pipeline_kit.contract.gradients import Target
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext, Truncation
from pipeline_kit.contract.types import Example, ModelOutput, Result, TokenBatch
from pipeline_kit.errors import for_message
from pipeline_kit.evaluate.labels import Labels, texts_of_row
from pipeline_kit.evaluate.numbers import share


@final
class Choice(Postprocessor):
    """Returns ``choice``, the best one's text, its ``score``, and ``scores``, one per choice in their order.

    The scores are the softmax of the choices' logits and add up to 1. Of equal ones the first given wins.

    Where text and choice do not fit together the text is cut: a choice that lost tokens could no longer be
    told from another one that begins alike. In windows of a long text, which all hold the whole choice, a
    choice's logit is the mean of theirs, weighted by tokens.
    """

    truncation: ClassVar[Truncation] = "only_first"

    def __init__(self, config: ChoiceConfig, context: StageContext) -> None:
        """Take nothing: there are no options, and nothing of the context is needed."""

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return a pair for each choice: the text and the choice; raise ExampleError for a wrong field."""
        text, choices = _fields(example)
        return [{"text": text, "text_pair": choice} for choice in choices]

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``logits [B, 1]``, float32: the choices of an example may be rows of several batches."""
        return ModelOutput({"logits": floats(output, "logits", 1, "[B]")[:, None]})

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
        """Choose; raise ExampleError if a logit is not finite."""
        found = []
        for example, ranked in zip(examples, rank_parts(encodings, outputs, "logits", repeat("softmax")), strict=True):
            best, scores = ranked.order[0], ranked.scores.tolist()
            found.append({"choice": _fields(example)[1][best], "score": scores[best], "scores": scores})
        return found

    def panels(self, seen: Seen) -> Sequence[Panel]:
        [ranked] = rank_parts([seen.encodings], [seen.outputs], "logits", ["softmax"])
        values = [float(row["logits"][0]) for row in seen.outputs]
        names = [cell(choice) for choice in _fields(seen.example)[1]]
        title = "choices: logits to scores (softmax)"
        shown: Any = {"heading": "choice", "noun": "choices", "note": "the choice with the highest score is the result"}
        return [
            *merge_panels(ranked_items(names, seen, values, ranked), "mean", "logit", heading="choice"),
            activation_panel(title, names, ranked.values, ranked.scores, "softmax", **shown),
        ]

    def attribution_targets(self, seen: Seen) -> Sequence[Target]:
        best = seen.result["scores"].index(seen.result["score"])
        name = f"logit of the choice '{for_message(seen.result['choice'], 60)}'"
        return [Target.logit(place, name) for place in seen.places(best)]


def _fields(example: Example) -> tuple[str, list[str]]:
    fields = read_fields(example, ("text", "choices"))
    choices = texts_of(fields["choices"], "choices", least=2)
    for place, choice in enumerate(choices):
        text_of(choice, f"choices[{place}]", empty=False)
    return text_of(fields["text"], "text", empty=False), choices


@final
class ChoiceEvaluator(Evaluator):
    """``accuracy``: the share of rows with the right choice. A label is a choice's text or its number, from 0."""

    def __init__(self, setting: EvaluationContext) -> None:
        self._mapping = setting.labels_map
        self._rows, self._right = 0, 0

    def read(self, gold: Any, example: Mapping[str, Any]) -> str:
        choices = texts_of_row(example, "choices")
        if type(gold) is int and 0 <= gold < len(choices):
            return choices[gold]  # also where the choices are numbers themselves
        return choices[Labels(choices, self._mapping, "choices").find(gold)]

    def add(self, gold: str, results: Sequence[Result]) -> Verdict:
        choice = value_of(results[0], "choice")
        self._rows += 1
        self._right += choice == gold
        return Verdict(choice == gold, gold, choice, results[0].get("score"))

    def metrics(self) -> Metrics:
        return Metrics(share("accuracy", self._right, self._rows))
