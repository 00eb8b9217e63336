"""Start and end logits to the best spans of the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.answers.panels import LISTED, answer_panels
from pipeline_kit.builtin.tasks.answers.spans import (
    Answer,
    Context,
    WindowSteps,
    null_token,
    ranked_answers,
    window_steps,
)
from pipeline_kit.builtin.tasks.common.merge import floats
from pipeline_kit.builtin.tasks.options import AnswersConfig
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Overflow, Panel, Postprocessor, Seen, StageContext, Tokenizer, Truncation
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ConfigError, ExampleError, Fault, StageError

NAME = "span_logits"


@final
class Answers(Postprocessor):
    """Returns ``answer``, ``score``, ``start`` and ``end``; with ``top_k`` over 1 also ``answers``, best first.

    ``answer`` is the context's slice from ``start`` to ``end``, in characters, without white space at its ends.
    ``score`` is the probability that the answer has this text: a softmax over the context's tokens and the first
    special token, for start and for end, their product for a span, and the sum over all spans with the text, such
    as those that start in the middle of its first word. ``start`` and ``end`` are its likeliest place.

    Each window of a long context is scored by itself; an answer has the score of its best window.

    With ``handle_impossible_answer`` the empty answer, at 0, is one of those listed. Its score is the probability
    of the first special token, the least of all windows.
    """

    required_fields: ClassVar[frozenset[str]] = frozenset({"offsets", "sequence_ids", "word_ids"})
    truncation: ClassVar[Truncation] = "only_second"
    overflow: ClassVar[Overflow] = "window"
    pair_names: ClassVar[tuple[str, str]] = ("the field 'question'", "the field 'context'")

    def __init__(self, config: AnswersConfig, context: StageContext) -> None:
        """Take the options.

        :raises ConfigError: for ``handle_impossible_answer`` with a tokenizer that has no token for it.
        """
        self._config = config
        if config.handle_impossible_answer and context.tokenizer is not None:
            _check_null(context.tokenizer, context.checkpoint.name)

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return the pair of question and context.

        :raises ExampleError: if one of them is missing, not a string or empty, or there are other fields.
        """
        fields = read_fields(example, ("question", "context"))
        question, context = (text_of(fields[name], name, empty=False) for name in ("question", "context"))
        return ({"text": question, "text_pair": context},)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``span_logits [B, T, 2]``, float32: start and end side by side, for one copy instead of two."""
        del batch
        both = [floats(output, name, 2, "[B, T]") for name in ("start_logits", "end_logits")]
        return ModelOutput({NAME: torch.stack(both, dim=-1)}, frozenset({NAME}))

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Find the best spans of each context.

        :raises StageError: if the model returned more or fewer logits than there are tokens.
        :raises ExampleError: if a logit is not finite, or a context has no token that could be an answer.
        """
        if not examples:
            return []
        return [
            self._result(ranked_answers(self._steps(example, windows, rows), self._config.handle_impossible_answer))
            for example, windows, rows in zip(examples, encodings, outputs, strict=True)
        ]

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show start and end probabilities, spans, and the answers they make."""
        windows = self._steps(seen.example, seen.encodings, seen.outputs, LISTED)
        return answer_panels(self._config, _context(seen.example), windows)

    def _steps(
        self, example: Example, windows: Sequence[Encoding], rows: Sequence[RowOutput], least: int = 1
    ) -> list[WindowSteps]:
        """Score the windows of one context, with ``top_k`` answers each, at the least `least`."""
        logits = [_checked(row[NAME], window) for row, window in zip(rows, windows, strict=True)]
        top_k = max(self._config.top_k, least)
        return window_steps(self._config, Context(_context(example)), windows, logits, top_k)

    def _result(self, answers: Sequence[tuple[str, Answer]]) -> Result:
        if not answers:
            raise ExampleError("the field 'context' has no token that could be an answer")
        listed = [
            # Rounding may take a sum just over 1.
            {"answer": text, "score": min(answer.score, 1.0), "start": answer.start, "end": answer.end}
            for text, answer in answers[: self._config.top_k]
        ]
        return listed[0] if self._config.top_k == 1 else {**listed[0], "answers": listed}


def _context(example: Example) -> str:
    assert not isinstance(example, str), "prepare refuses a bare string"
    context: str = example["context"]
    return context


def _checked(logits: NDArray[Any], window: Encoding) -> NDArray[Any]:
    if len(logits) != len(window.input_ids):
        raise StageError(f"the model returned {len(logits)} start and end logits for {len(window.input_ids)} tokens")
    if not np.isfinite(logits).all():
        raise ExampleError("the model's start and end logits for this example are not all finite numbers")
    return logits


def _check_null(tokenizer: Tokenizer, checkpoint: str) -> None:
    """Refuse a tokenizer whose pairs have no token that could stand for no answer."""
    try:
        [pair, *_] = tokenizer.encode([{"text": "a", "text_pair": "a"}])
    except ExampleError:  # as few tokens as that are a matter for the texts to come
        return
    if pair.sequence_ids is not None and null_token(pair.input_ids, pair.sequence_ids) is None:
        problem = (
            f"the tokenizer of '{checkpoint}' begins no pair with a special token, which would stand for no answer."
        )
        raise ConfigError([Fault("postprocessor.handle_impossible_answer", problem, ("false",))])
