"""The panels of ``postprocessor=classification`` and ``logits``: their arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import merge_windows
from pipeline_kit.builtin.tasks.common.panels import (
    Function,
    Item,
    activation_panel,
    cell,
    counted,
    first_rows,
    merge_panels,
    named,
    notes,
    panel_number,
)
from pipeline_kit.contract.stages import Cell, Panel, Seen
from pipeline_kit.contract.types import Encoding, Result, RowOutput


def classification_panels(
    labels: Sequence[str],
    function: Function,
    merge: Literal["mean", "max"],
    thresholds: NDArray[Any] | None,
    top_k: int | None,
    seen: Seen,
) -> list[Panel]:
    """Show the function with its numbers, the windows put together, and how labels were chosen.

    :param thresholds: the least score of each label ``[L]``, None without any.
    """
    encodings, raw, outputs, result = seen.encodings, seen.raw, seen.outputs, seen.result
    scores = merge_windows([encodings], [outputs], "scores", merge)[0]
    best = labels.index(result["label"]) if result["label"] is not None else int(scores.argmax())
    title = f"logits to scores ({function})"
    panels = [
        _windows(title, labels, function, raw, outputs, best),
        *merge_panels(_items(labels, scores, encodings, outputs, "scores"), merge, "score"),
    ]
    if len(encodings) > 1 or thresholds is not None or top_k != 1:
        panels.append(_chosen(labels, scores, thresholds, top_k, result))
    return panels


def logits_panels(labels: Sequence[str], encodings: Sequence[Encoding], outputs: Sequence[RowOutput]) -> list[Panel]:
    """Show the logits, the highest first, and the windows put together."""
    logits = merge_windows([encodings], [outputs], "logits")[0]
    order = np.argsort(-logits, kind="stable").tolist()
    rows, left = first_rows([(cell(labels[i]), float(logits[i])) for i in order], "label")
    panels = merge_panels(_items(labels, logits, encodings, outputs, "logits"), "mean", "logit")
    return [
        *panels,
        Panel("logits", ("label", "logit"), rows, "logit", note=notes("the result has them as they are", left)),
    ]


def _windows(
    title: str,
    labels: Sequence[str],
    function: Function,
    raw: Sequence[RowOutput],
    outputs: Sequence[RowOutput],
    best: int,
) -> Panel:
    """Show the function for the text, or for that of its windows where the best label has its highest score."""
    at = int(np.argmax([row["scores"][best] for row in outputs]))
    note = f"window {at} of {len(raw)}, where {named(labels[best])} is highest" if len(raw) > 1 else ""
    return activation_panel(title, labels, raw[at]["logits"], outputs[at]["scores"], function, best=best, note=note)


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
    columns = ["label", "score", "in the result"]
    if thresholds is not None:
        columns.insert(2, "threshold")
    rows: list[Sequence[Cell]] = []
    for i in order:
        row: list[Cell] = [cell(labels[i]), float(scores[i]), labels[i] in listed]
        if thresholds is not None:
            least = float(thresholds[i])
            row.insert(2, least if np.isfinite(least) else None)
        rows.append(row)
    shown, left = first_rows(rows, "label")
    if result["label"] is None:
        formula = f"no label reaches its threshold; the best score is {panel_number(result['score'])}"
    else:
        formula = f"label = {named(result['label'])}, score = {panel_number(result['score'])}"
    limit = "all labels are listed" if top_k is None else f"the best {counted(top_k, 'label')} can be listed"
    return Panel("scores to labels", tuple(columns), shown, "score", formula, notes(limit, left))
