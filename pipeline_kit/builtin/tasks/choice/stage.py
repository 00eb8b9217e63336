"""The best of several choices for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np

from pipeline_kit.builtin.tasks.common.choices import choice_panels
from pipeline_kit.builtin.tasks.common.merge import floats, merge_parts
from pipeline_kit.builtin.tasks.options import ChoiceConfig
from pipeline_kit.contract.fields import read_fields, text_of, texts_of
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext, Truncation
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch


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
        del config, context

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return a pair for each choice: the text and the choice.

        :raises ExampleError: if the text or the choices are missing, empty or not of their type, or there are
            fewer than two choices.
        """
        text, choices = _fields(example)
        return [{"text": text, "text_pair": choice} for choice in choices]

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``logits [B, 1]``, float32: the choices of an example may be rows of several batches."""
        del batch
        return ModelOutput({"logits": floats(output, "logits", 1, "[B]")[:, None]})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Choose.

        :raises ExampleError: if a logit is not finite.
        """
        if not examples:
            return []
        merged = merge_parts(encodings, outputs, "logits")
        return [_chosen(_fields(example)[1], rows[:, 0]) for example, rows in zip(examples, merged, strict=True)]

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show each choice's logit, and the softmax over them."""
        return choice_panels(_fields(seen.example)[1], seen.encodings, seen.outputs, seen.result)


def _chosen(choices: Sequence[str], logits: np.ndarray[Any, np.dtype[np.float32]]) -> Result:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    scores = powers / powers.sum()
    best = int(logits.argmax())
    return {"choice": choices[best], "score": float(scores[best]), "scores": scores.tolist()}


def _fields(example: Example) -> tuple[str, list[str]]:
    fields = read_fields(example, ("text", "choices"))
    choices = texts_of(fields["choices"], "choices", least=2)
    for place, choice in enumerate(choices):
        text_of(choice, f"choices[{place}]", empty=False)
    return text_of(fields["text"], "text", empty=False), choices
