"""Logits to labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.classification.panels import classification_panels, logits_panels
from pipeline_kit.builtin.tasks.common.merge import check_labels, floats, merge_windows
from pipeline_kit.builtin.tasks.options import ClassificationConfig, LogitsConfig
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ConfigError, Fault, closest_match, for_message

Function = Literal["softmax", "sigmoid", "none"]


def score_function(config: Mapping[str, Any], labels: int) -> Function:
    """Decide how logits become scores, as transformers 5 does.

    ``problem_type`` decides first (regression: none, multi-label: sigmoid); then one label means sigmoid
    and several mean softmax.
    https://github.com/huggingface/transformers/blob/main/src/transformers/pipelines/text_classification.py

    :param config: the checkpoint's ``config.json``.
    :param labels: how many labels it has.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or labels == 1 else "softmax"


@final
class Classification(Postprocessor):
    """Returns ``label`` and ``score``, and with ``top_k`` other than 1 also ``labels``, best first.

    Equal scores keep the order of the checkpoint's labels. With ``thresholds``, a label whose score is
    below its own is neither chosen nor listed. When no label reaches its threshold, ``label`` is None,
    ``score`` is the best score all the same, and ``labels`` is empty: no key ever goes missing.

    The windows of a long text are merged by `merge`, with ``w_i`` the tokens that window ``i`` stands for (see
    :func:`~pipeline_kit.builtin.tasks.common.merge.window_weights`), ``z_i`` its logits and ``f`` the function:

    - ``mean``: ``sum(w_i f(z_i)) / sum(w_i)``, the score of the text's average passage;
    - ``max``: the largest ``f(z_i)`` of each label, the score of its strongest passage; softmax scores are not
      scaled to add up to 1 again.
    """

    def __init__(self, config: ClassificationConfig, context: StageContext) -> None:
        """Read the labels off the checkpoint.

        :raises ConfigError: for thresholds of unknown labels, or that no score can reach.
        """
        self._labels = context.checkpoint.labels
        self._checkpoint = context.checkpoint.name
        decided = score_function(context.checkpoint.config, len(self._labels))
        self._function: Function = decided if config.function == "auto" else config.function
        self._top_k = config.top_k
        self._merge = config.merge
        _check_thresholds(config.thresholds, self._labels, self._function)
        # In float32 as the scores are: 0.9 as a float64 is above 0.9 as a float32.
        limits = [config.thresholds.get(label, -np.inf) for label in self._labels]
        self._thresholds = np.array(limits, dtype=np.float32) if config.thresholds else None

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``scores [B, L]``, float32."""
        del batch
        return ModelOutput({"scores": _scores(floats(output, "logits", 2, "[B, L]"), self._function)})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Choose labels.

        :raises StageError: if the model's width is not the number of labels.
        :raises ExampleError: if a score is not finite.
        """
        if not examples:
            return []
        scores = merge_windows(encodings, outputs, "scores", self._merge)
        check_labels(scores.shape[1], self._labels, self._checkpoint)
        ranked = scores
        if self._thresholds is not None:
            ranked = np.where(scores >= self._thresholds, scores, np.float32(-np.inf))
        best = ranked.argmax(axis=1)
        chosen = np.isfinite(ranked.max(axis=1)).tolist()
        shown = np.where(chosen, scores[np.arange(len(scores)), best], scores.max(axis=1)).tolist()
        results: list[Result] = [
            {"label": self._labels[i] if found else None, "score": score}
            for i, score, found in zip(best.tolist(), shown, chosen, strict=True)
        ]
        if self._top_k != 1:
            for result, listed in zip(results, self._listed(ranked), strict=True):
                result["labels"] = listed
        return results

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show how logits became scores, and scores labels."""
        return classification_panels(self._labels, self._function, self._merge, self._thresholds, self._top_k, seen)

    def _listed(self, ranked: NDArray[np.float32]) -> list[list[dict[str, Any]]]:
        """List each row's labels and scores, best first; minus infinity marks the ones left out."""
        order = np.argsort(-ranked, axis=1, kind="stable")[:, : self._top_k]
        counts = np.isfinite(ranked).sum(axis=1).tolist()
        scores = np.take_along_axis(ranked, order, axis=1).tolist()
        return [
            [{"label": self._labels[i], "score": score} for i, score in zip(row[:count], values, strict=False)]
            for row, values, count in zip(order.tolist(), scores, counts, strict=True)
        ]


def _scores(logits: torch.Tensor, function: Function) -> torch.Tensor:
    if function == "softmax":
        return torch.softmax(logits, dim=-1)
    return torch.sigmoid(logits) if function == "sigmoid" else logits


def _check_thresholds(thresholds: Mapping[str, float], labels: Sequence[str], function: Function) -> None:
    faults: list[Fault] = []
    for label, value in thresholds.items():
        key = f"postprocessor.thresholds.{for_message(label, 80)}"
        if label not in labels:
            faults.append(Fault(key, "the checkpoint has no such label.", tuple(labels), closest_match(label, labels)))
        elif function != "none" and not 0 <= value <= 1:
            faults.append(Fault(key, f"{value} is out of range for {function} scores.", ("0 to 1",)))
    if faults:
        raise ConfigError(faults)


@final
class Logits(Postprocessor):
    """Returns ``labels`` and ``logits``, two lists of equal length in the checkpoint's order.

    The windows of a long text are merged by the mean of their logits, weighted by their tokens.
    """

    def __init__(self, config: LogitsConfig, context: StageContext) -> None:
        """Read the labels off the checkpoint."""
        del config
        self._labels = context.checkpoint.labels
        self._checkpoint = context.checkpoint.name

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
