"""The best of several choices for a text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import ClassVar, final

from pipeline_kit.builtin.tasks.common.choices import choice_panels
from pipeline_kit.builtin.tasks.common.merge import floats, rank_parts
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
        found = []
        for example, ranked in zip(examples, rank_parts(encodings, outputs, "logits", repeat("softmax")), strict=True):
            best, scores = ranked.order[0], ranked.scores.tolist()
            found.append({"choice": _fields(example)[1][best], "score": scores[best], "scores": scores})
        return found

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show each choice's logit, and the softmax over them."""
        [ranked] = rank_parts([seen.encodings], [seen.outputs], "logits", ["softmax"])
        return choice_panels(_fields(seen.example)[1], seen, ranked)


def _fields(example: Example) -> tuple[str, list[str]]:
    fields = read_fields(example, ("text", "choices"))
    choices = texts_of(fields["choices"], "choices", least=2)
    for place, choice in enumerate(choices):
        text_of(choice, f"choices[{place}]", empty=False)
    return text_of(fields["text"], "text", empty=False), choices
