"""What ``postprocessor=entities`` shows: each token's label, the windows put together, words, and entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.panels import (
    ROWS,
    cell,
    counted,
    exponentials,
    first_rows,
    mean_line,
    named,
    notes,
    panel_number,
    softmax_lines,
)
from pipeline_kit.builtin.tasks.entities.labels import LabelTable
from pipeline_kit.builtin.tasks.entities.words import LABELS, SCORES, Aggregation, Pieces, Tokens
from pipeline_kit.contract.stages import Cell, Panel, Seen
from pipeline_kit.contract.types import Encoding, RowOutput

_LOGITS, _WINDOW, _PLACE = "logits", "window", "place"

_SAYS = {
    "first": "a word has the label of its first token",
    "max": "a word has the label of its likeliest token",
    "average": "a word has the label whose mean over its tokens is highest",
}


def entity_panels(
    text: str,
    how: Aggregation,
    labels: Sequence[str],
    table: LabelTable,
    encodings: Sequence[Encoding],
    tokens: Tokens,
    pieces: Pieces,
    entities: Sequence[tuple[int, int, Mapping[str, Any]]],
) -> list[Panel]:
    """Show the way from logits to entities.

    :param labels: the checkpoint's whole label names.
    :param tokens: with the values of :func:`with_places`.
    :param entities: those of the result, each with its first token and the one behind its last.
    """
    if not len(tokens.starts):
        return [Panel("no tokens", note="the text has no token but special ones, so there is no entity")]
    panels = [_tokens(text, labels, table, tokens)]
    if len(encodings) > 1:
        panels.append(_merged(tokens, encodings))
    if how not in ("simple", "none"):
        panels.append(_words(text, tokens, table, pieces, how))
    noun = {"simple": "token", "none": ""}.get(how, "word")
    return [*panels, _entities(tokens, pieces, entities, noun)]


def with_places(seen: Seen) -> list[RowOutput]:
    """Return what `reduce` left of each window, with the logits and the places of its tokens."""
    return [
        {**row, _LOGITS: raw[_LOGITS], _WINDOW: np.full(len(raw[_LOGITS]), i), _PLACE: np.arange(len(raw[_LOGITS]))}
        for i, (raw, row) in enumerate(zip(seen.raw, seen.outputs, strict=True))
    ]


def _best(tokens: Tokens) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return each token's best label and its score, ``[N]`` each."""
    scores = tokens.values[SCORES]
    if LABELS in tokens.values:
        return tokens.values[LABELS], scores
    best = scores.argmax(axis=1)
    return best, scores[np.arange(len(best)), best]


def _tokens(text: str, labels: Sequence[str], table: LabelTable, tokens: Tokens) -> Panel:
    """Show each token's best label; of many tokens those whose label counts, as far as there is room."""
    best, scores = _best(tokens)
    logits = tokens.values[_LOGITS]
    kept = ~table.ignored[best]
    first = int(np.where(kept, scores, scores - 2).argmax())
    places = np.arange(len(best))
    if len(best) > ROWS and kept.any():
        places = np.flatnonzero(kept)
    rows: list[Sequence[Cell]] = []
    for i in places[:ROWS].tolist():
        powers, _, total = exponentials(logits[i][best[i]], logits[i])
        start, end = int(tokens.starts[i]), int(tokens.ends[i])
        found = (labels[best[i]], float(logits[i][best[i]]), float(powers), total, float(scores[i]))
        rows.append((cell(text[start:end]), start, end, *found))
    left = len(best) - len(rows)
    only = f"{counted(left, 'token')} left out" + (", those of ignored labels first" if len(places) < len(best) else "")
    columns = ("token", "start", "end", "label", "logit", "exp(logit - max)", "sum", "score")
    name = f"{labels[best[first]]} at {named(text[tokens.starts[first] : tokens.ends[first]], 12)}"
    formula = softmax_lines(name, float(logits[first][best[first]]), logits[first], "labels")
    return Panel("tokens: logits to labels", columns, rows, "score", formula, only if left else "")


def _merged(tokens: Tokens, encodings: Sequence[Encoding]) -> Panel:
    """Show which tokens each window has."""
    windows, places = tokens.values[_WINDOW], tokens.values[_PLACE]
    rows: list[Sequence[Cell]] = []
    for window, encoding in enumerate(encodings):
        own = places[windows == window]
        ends: tuple[Cell, Cell] = (int(own.min()), int(own.max())) if len(own) else (None, None)
        mask = encoding.special_tokens_mask or ()
        rows.append((window, len(encoding.input_ids), len(mask) - sum(mask), len(own), *ends))
    shown, left = first_rows(rows, "window")
    columns = ("window", "tokens", "of the text", "taken", "first taken", "last taken")
    note = "a token that two windows share is taken from the one where it is farther from the border"
    return Panel("windows put together", columns, shown, note=notes(note, left))


def _words(text: str, tokens: Tokens, table: LabelTable, pieces: Pieces, how: Aggregation) -> Panel:
    """Show each word's label; of many words those whose label counts."""
    kept = ~table.ignored[pieces.labels]
    places = np.flatnonzero(kept) if len(kept) > ROWS and kept.any() else np.arange(len(kept))
    rows: list[Sequence[Cell]] = []
    for i in places[:ROWS].tolist():
        begin, end = int(pieces.starts[i]), int(pieces.ends[i])
        start, stop = int(tokens.starts[begin]), int(tokens.ends[end - 1])
        word = cell(text[start:stop])
        rows.append((word, start, stop, end - begin, table.names[pieces.labels[i]], float(pieces.scores[i])))
    left = len(kept) - len(rows)
    columns = ("word", "start", "end", "tokens", "label", "score")
    sizes = np.where(kept, 1_000_000, 0) + pieces.ends - pieces.starts
    formula = _word_line(text, tokens, table, pieces, int(sizes.argmax()), how)
    note = notes(_SAYS[how], f"{counted(left, 'word')} left out" if left else "")
    return Panel(f"tokens to words ({how})", columns, rows, "score", formula, note)


def _word_line(text: str, tokens: Tokens, table: LabelTable, pieces: Pieces, i: int, how: Aggregation) -> str:
    begin, end, label = int(pieces.starts[i]), int(pieces.ends[i]), int(pieces.labels[i])
    name = named(text[tokens.starts[begin] : tokens.ends[end - 1]].strip(), 16)
    if how == "average":
        scores = tokens.values[SCORES][begin:end, label].astype(np.float64).tolist()
        return mean_line(f"{table.names[label]} ({name})", scores)
    which = "first" if how == "first" else "likeliest"
    return f"score({name}) = that of its {which} token = {panel_number(pieces.scores[i])}"


def _entities(
    tokens: Tokens, pieces: Pieces, entities: Sequence[tuple[int, int, Mapping[str, Any]]], noun: str
) -> Panel:
    """Show the entities that are left, with the pieces that each was joined of.

    :param noun: what a piece is; empty if none were joined.
    """
    columns = ("entity", "start", "end", "label", f"{noun or 'token'}s", "score")
    if not entities:
        return Panel("entities", columns, note="every label is ignored, so nothing is left")
    members = [slice(*np.searchsorted(pieces.starts, (begin, end)).tolist()) for begin, end, _ in entities]
    scores = [pieces.scores[own].tolist() for own in members]
    rows, left = first_rows(
        [
            (cell(found["text"]), found["start"], found["end"], found["label"], len(own), float(found["score"]))
            for (_, _, found), own in zip(entities, scores, strict=True)
        ],
        "row",
    )
    best = max(range(len(scores)), key=lambda i: (len(scores[i]) > 1, scores[i][0]))
    found = entities[best][2]
    formula = mean_line(f"{found['label']} ({named(cell(found['text']), 16)})", scores[best])
    note = f"neighbouring {noun}s of one tag are joined; the score is their mean" if noun else "no token is joined"
    if noun == "token" and not np.array_equal(pieces.scores, _best(tokens)[1]):
        note += "; an entity never begins within a character, whose tokens all take what its first one has"
    return Panel("entities", columns, rows, "score", formula, notes(note, left))
