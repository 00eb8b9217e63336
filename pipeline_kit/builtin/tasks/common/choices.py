"""What the postprocessors tell that choose among an example's parts: choices, documents, candidate labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline_kit.builtin.tasks.common.merge import RankedParts
from pipeline_kit.builtin.tasks.common.panels import (
    Function,
    Item,
    activation_panel,
    by_part,
    cell,
    first_rows,
    merge_panels,
    minus,
    named,
    notes,
    panel_number,
    sigmoid_lines,
    softmax_lines,
)
from pipeline_kit.contract.stages import Cell, Panel, Seen
from pipeline_kit.contract.types import Encoding, RowOutput

PartMerge = Literal["mean", "max"]


def choice_panels(choices: Sequence[str], seen: Seen, ranked: RankedParts) -> list[Panel]:
    """Show the logit of each choice and the softmax over them."""
    values = [float(row["logits"][0]) for row in seen.outputs]
    names = [cell(choice) for choice in choices]
    title = "choices: logits to scores (softmax)"
    note = "the choice with the highest score is the result"
    return [
        *merge_panels(_items(names, seen.encodings, values, ranked), "mean", "logit", heading="choice"),
        activation_panel(
            title, names, ranked.values, ranked.scores, "softmax", heading="choice", noun="choices", note=note
        ),
    ]


def ranking_panels(
    documents: Sequence[str],
    function: Function,
    label: tuple[int, str],
    merge: PartMerge,
    seen: Seen,
    ranked: RankedParts,
) -> list[Panel]:
    """Show each document's logit, how it became a score, and the order.

    :param label: the place and the name of the label that ranks.
    """
    values, order = ranked.values, ranked.order
    what = "log p" if function == "softmax" else "logit"
    names = [f"{i}: {named(document, 60)}" for i, document in enumerate(documents)]
    listed = {item["index"] for item in seen.result["ranking"]}
    rows: list[Sequence[Cell]] = [
        (rank, i, cell(documents[i]), float(values[i]), float(ranked.scores[i]), i in listed)
        for rank, i in enumerate(order, 1)
    ]
    shown, left = first_rows(rows, "document")
    best = order[0]
    given = [float(row["value"][0]) for row in seen.outputs]
    if function == "softmax":
        formula = _log_lines(best, by_part(seen.encodings)[best], label, given, seen.raw, float(values[best]))
    elif function == "sigmoid":
        formula = sigmoid_lines(f"document {best}", float(values[best]))
    else:
        formula = f"score(document {best}) = logit = {panel_number(values[best])}"
    return [
        *merge_panels(_items(names, seen.encodings, given, ranked), merge, what, heading="document"),
        Panel(
            f"documents, best first ({function})",
            ("rank", "index", "document", what, "score", "in the result"),
            shown,
            "score",
            formula,
            notes(f"documents are sorted by their {what}", left),
        ),
    ]


def _log_lines(
    document: int,
    windows: range,
    label: tuple[int, str],
    given: Sequence[float],
    raw: Sequence[RowOutput],
    value: float,
) -> str:
    """Write the softmax of a document, or of its window that is most in favour, and the score of the whole."""
    at = max(windows, key=lambda i: given[i])
    logits = raw[at]["logits"]
    lines = [softmax_lines(label[1], float(logits[label[0]]), logits, "labels")]
    if len(windows) > 1:
        lines.insert(0, f"of window {at - windows[0]}:")
        lines.append("of the document, whose log p was put together of its windows':")
    lines.append(f"score(document {document}) = exp({panel_number(value)}) = {panel_number(float(np.exp(value)))}")
    return "\n".join(lines)


def zero_shot_panels(
    labels: Sequence[str],
    sentences: Sequence[str],
    places: tuple[int, int | None],
    names: Sequence[str],
    merge: PartMerge,
    seen: Seen,
    ranked: RankedParts,
) -> list[Panel]:
    """Show the entailment logits, the windows put together, and the scores of the candidates.

    :param labels: the candidates; `sentences` has the hypothesis of each.
    :param places: of entailment and, if each candidate is scored by itself, of contradiction in `names`, the
        checkpoint's labels.
    """
    shown = [cell(label) for label in labels]
    logits = [row["logits"] for row in seen.raw]
    entailed, opposite = places
    values = [float(row[entailed] if opposite is None else row[entailed] - row[opposite]) for row in logits]
    return [
        _hypotheses(shown, [cell(sentence) for sentence in sentences], places, names, seen, ranked.order),
        *merge_panels(_items(shown, seen.encodings, values, ranked), merge, "logit" if opposite is None else "lead"),
        _softmax_panel(shown, ranked) if opposite is None else _lead_panel(shown, ranked),
    ]


def _hypotheses(
    labels: Sequence[str],
    sentences: Sequence[str],
    places: tuple[int, int | None],
    names: Sequence[str],
    seen: Seen,
    order: Sequence[int],
) -> Panel:
    """Show each pair's logits for entailment and, where it counts, contradiction."""
    entailed, opposite = places
    parts = by_part(seen.encodings)
    columns = ["label", "hypothesis", "window", names[entailed]]
    if opposite is not None:
        columns += [names[opposite], "lead"]
    rows: list[Sequence[Cell]] = []
    for i in order:
        for at in parts[i]:
            logits = seen.raw[at]["logits"]
            row: list[Cell] = [labels[i], sentences[i], seen.encodings[at].window, float(logits[entailed])]
            if opposite is not None:
                row += [float(logits[opposite]), float(logits[entailed] - logits[opposite])]
            rows.append(row)
    shown, left = first_rows(rows, "row")
    note = f"the checkpoint's label for entailment is {named(names[entailed])}"
    formula = ""
    if opposite is not None:
        note += f", for contradiction {named(names[opposite])}"
        logits = seen.raw[parts[order[0]][0]]["logits"]
        lead = panel_number(float(logits[entailed] - logits[opposite]))
        formula = f"lead({named(labels[order[0]])}) = {minus(logits[entailed], logits[opposite])} = {lead}"
    return Panel("does the text entail the hypothesis?", tuple(columns), shown, columns[3], formula, notes(note, left))


def _softmax_panel(names: Sequence[str], ranked: RankedParts) -> Panel:
    title = "entailment logits to scores (softmax over the candidates)"
    return activation_panel(title, names, ranked.values, ranked.scores, "softmax", noun="candidates")


def _lead_panel(names: Sequence[str], ranked: RankedParts) -> Panel:
    values, order = ranked.values, ranked.order
    rows, left = first_rows([(names[i], float(values[i]), float(ranked.scores[i])) for i in order], "label")
    formula = "p = exp(entailment) / (exp(entailment) + exp(contradiction))\n  = 1 / (1 + exp(-lead))\n"
    formula += sigmoid_lines(names[order[0]], float(values[order[0]])).partition("\n")[2]
    note = "each candidate is scored by itself: entailment against contradiction"
    return Panel("leads to scores (sigmoid)", ("label", "lead", "score"), rows, "score", formula, notes(note, left))


def _items(
    names: Sequence[str], encodings: Sequence[Encoding], values: Sequence[float], ranked: RankedParts
) -> list[Item]:
    """Return each part with its values in all its windows, the one with the highest merged value first."""
    parts = by_part(encodings)
    return [Item(names[i], [encodings[at] for at in parts[i]], [values[at] for at in parts[i]]) for i in ranked.order]
