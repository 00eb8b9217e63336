"""Logits to labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import Outputs, Windows, check_labels, floats, merge_windows
from pipeline_kit.builtin.tasks.common.panels import (
    Function,
    Item,
    activation_panel,
    cell,
    counted,
    digits,
    merge_panels,
    named,
    table_panel,
)
from pipeline_kit.builtin.tasks.options import ClassificationConfig, LogitsConfig
from pipeline_kit.contract.stages import Cell, Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ConfigError, Fault, closest_match, for_message


def score_function(config: Mapping[str, Any], labels: int) -> Function:
    """Decide how logits become scores, as transformers 5 does.

    ``problem_type`` decides first (regression: none, multi-label: sigmoid); then one label means sigmoid
    and several mean softmax.
    https://github.com/huggingface/transformers/blob/main/src/transformers/pipelines/text_classification.py
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

    best_first: ClassVar[frozenset[str]] = frozenset({"labels"})

    def __init__(self, config: ClassificationConfig, context: StageContext) -> None:
        """Read the labels; raise ConfigError for thresholds of unknown labels, or that no score can reach."""
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
        logits = floats(output, "logits", 2, "[B, L]")
        if self._function == "softmax":
            return ModelOutput({"scores": torch.softmax(logits, dim=-1)})
        return ModelOutput({"scores": torch.sigmoid(logits) if self._function == "sigmoid" else logits})

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
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
        labels, result = self._labels, seen.result
        scores = merge_windows([seen.encodings], [seen.outputs], "scores", self._merge)[0]
        best = labels.index(result["label"]) if result["label"] is not None else int(scores.argmax())
        # Of several windows that where the best label has its highest score.
        at = int(np.argmax([row["scores"][best] for row in seen.outputs]))
        note = f"window {at} of {len(seen.raw)}, where {named(labels[best])} is highest" if len(seen.raw) > 1 else ""
        numbers = seen.raw[at]["logits"], seen.outputs[at]["scores"]
        title = f"logits to scores ({self._function})"
        panels = [
            activation_panel(title, labels, *numbers, self._function, best=best, note=note),
            *merge_panels(_items(labels, scores, seen.encodings, seen.outputs, "scores"), self._merge, "score"),
        ]
        if len(seen.encodings) > 1 or self._thresholds is not None or self._top_k != 1:
            panels.append(_chosen(labels, scores, self._thresholds, self._top_k, result))
        return panels

    def _listed(self, ranked: NDArray[np.float32]) -> list[list[dict[str, Any]]]:
        """List each row's labels and scores, best first; minus infinity marks the ones left out."""
        order = np.argsort(-ranked, axis=1, kind="stable")[:, : self._top_k]
        counts = np.isfinite(ranked).sum(axis=1).tolist()
        scores = np.take_along_axis(ranked, order, axis=1).tolist()
        return [
            [{"label": self._labels[i], "score": score} for i, score in zip(row[:count], values, strict=False)]
            for row, values, count in zip(order.tolist(), scores, counts, strict=True)
        ]


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
    """Returns ``labels`` and ``logits``, of equal length; windows are merged by their mean, weighted by tokens."""

    def __init__(self, config: LogitsConfig, context: StageContext) -> None:
        self._labels = context.checkpoint.labels
        self._checkpoint = context.checkpoint.name

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``logits [B, L]``, float32, and drop the rest."""
        return ModelOutput({"logits": floats(output, "logits", 2, "[B, L]")})

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
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
        labels = self._labels
        logits = merge_windows([seen.encodings], [seen.outputs], "logits")[0]
        order = np.argsort(-logits, kind="stable").tolist()
        rows = [(cell(labels[i]), float(logits[i])) for i in order]
        note = "the result has them as they are"
        return [
            *merge_panels(_items(labels, logits, seen.encodings, seen.outputs, "logits"), "mean", "logit"),
            table_panel("logits", ("label", "logit"), rows, "label", note, bar="logit"),
        ]


def _items(
    labels: Sequence[str], merged: NDArray[Any], encodings: Sequence[Encoding], rows: Sequence[RowOutput], name: str
) -> list[Item]:
    """Return each label with its values in all windows, the best one first."""
    order = np.argsort(-merged, kind="stable").tolist()
    return [Item(labels[i], encodings, [float(row[name][i]) for row in rows]) for i in order]


def _chosen(
    labels: Sequence[str], scores: NDArray[Any], thresholds: NDArray[Any] | None, top_k: int | None, result: Result
) -> Panel:
    """Show which labels the result lists, and why the others are missing."""
    order = np.argsort(-scores, kind="stable").tolist()
    listed = {item["label"] for item in result.get("labels", [result])}
    rows: list[list[Cell]] = [[cell(labels[i]), float(scores[i]), labels[i] in listed] for i in order]
    columns = ["label", "score", "in the result"]
    if thresholds is not None:
        columns.insert(2, "threshold")
        for i, row in zip(order, rows, strict=True):
            row.insert(2, float(thresholds[i]) if np.isfinite(thresholds[i]) else None)
    if result["label"] is None:
        formula = f"no label reaches its threshold; the best score is {digits(result['score'])}"
    else:
        formula = f"label = {named(result['label'])}, score = {digits(result['score'])}"
    limit = "all labels are listed" if top_k is None else f"the best {counted(top_k, 'label')} can be listed"
    return table_panel("scores to labels", columns, rows, "label", limit, bar="score", formula=formula)
