"""The raw logits with their label names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from pipeline_kit.builtin.postprocessors.classification_panels import logits_panels
from pipeline_kit.builtin.postprocessors.configs import LogitsConfig
from pipeline_kit.builtin.postprocessors.merge import check_labels, floats, merge_windows
from pipeline_kit.panels import Panel, Seen
from pipeline_kit.stages import Postprocessor, StageContext
from pipeline_kit.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch

__all__ = ["Logits"]


@final
class Logits(Postprocessor):
    """Gives ``labels`` and ``logits``, two lists of equal length in the checkpoint's order.

    The windows of a long text are merged by the mean of their logits, weighted by their tokens.
    """

    def __init__(self, config: LogitsConfig, context: StageContext) -> None:
        """Read the labels off the checkpoint."""
        del config
        self._labels = context.checkpoint.labels
        self._checkpoint = context.checkpoint.name

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Give ``logits [B, L]``, float32, and drop the rest."""
        del batch
        return ModelOutput({"logits": floats(output, "logits", 2, "[B, L]")})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """List the logits.

        :raises StageError: if the model's width is not the number of labels.
        :raises ExampleError: if a logit is not finite.
        """
        if not examples:
            return []
        rows = merge_windows(encodings, outputs, "logits")
        check_labels(rows.shape[1], self._labels, self._checkpoint)
        return [{"labels": list(self._labels), "logits": row} for row in rows.tolist()]

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show the logits, the highest first."""
        return logits_panels(self._labels, seen.encodings, seen.outputs)
