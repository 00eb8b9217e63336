"""Calibrated scores of a text classification, with abstention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from pipeline_kit import Encoding, Example, ModelOutput, Postprocessor, Result, RowOutput, StageContext, TokenBatch
from pipeline_kit.kit import ConfigError, Fault, check_labels, floats, merge_windows, score_function

from . import CalibratedConfig
from .measures import log_softmax


@final
class Calibrated(Postprocessor):
    """Returns ``label``, ``score``, ``best``, ``abstained``, ``margin`` and ``entropy``, always all six.

    ``score`` is the probability of ``best``, the most likely label. ``label`` is ``best``, or
    ``abstain_label`` where the score is below ``abstain_below``. ``margin`` is the distance to the second
    probability, 0 to 1; ``entropy`` that of all of them, in nats, 0 to the logarithm of the number of labels.

    The windows of a long text are merged before the temperature is applied: the mean of their logits,
    weighted by their tokens. The temperature is fitted on logits merged in the same way.
    """

    def __init__(self, config: CalibratedConfig, context: StageContext) -> None:
        """Read the labels off the checkpoint.

        :raises ConfigError: if its scores are no softmax, or one of its labels is called `abstain_label`.
        """
        self._labels = context.checkpoint.labels
        self._checkpoint = context.checkpoint.name
        self._config = config
        if score_function(context.checkpoint.config, len(self._labels)) != "softmax":
            problem = context.checkpoint.config.get("problem_type") or f"{len(self._labels)} label"
            what = f"one temperature calibrates softmax scores, but '{self._checkpoint}' has none ({problem})."
            raise ConfigError([Fault("postprocessor=calibrated", what, hint="use postprocessor=classification")])
        if config.abstain_label in self._labels:
            what = f"'{config.abstain_label}' is a label of the checkpoint, so nobody could tell the two apart."
            raise ConfigError([Fault("postprocessor.abstain_label", what, hint="choose another, such as UNSURE")])

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``logits [B, L]``, float32, and drop the rest."""
        del batch
        return ModelOutput({"logits": floats(output, "logits", 2, "[B, L]")})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Return each example's label.

        :raises StageError: if the model's width is not the number of labels.
        :raises ExampleError: if a logit is not finite.
        """
        if not examples:
            return []
        logits = merge_windows(encodings, outputs, "logits")
        check_labels(logits.shape[1], self._labels, self._checkpoint)
        logarithms = log_softmax(logits, self._config.temperature)
        probabilities = np.exp(logarithms)
        ranked = np.sort(probabilities, axis=1)
        return [
            self._result(*row)
            for row in zip(
                logits.argmax(axis=1).tolist(),
                ranked[:, -1].tolist(),
                (ranked[:, -1] - ranked[:, -2]).tolist(),
                np.abs((probabilities * logarithms).sum(axis=1)).tolist(),
                strict=True,
            )
        ]

    def _result(self, best: int, score: float, margin: float, entropy: float) -> Result:
        abstained = score < self._config.abstain_below
        name = self._labels[best]
        return {
            "label": self._config.abstain_label if abstained else name,
            "score": score,
            "best": name,
            "abstained": abstained,
            "margin": margin,
            "entropy": entropy,
        }
