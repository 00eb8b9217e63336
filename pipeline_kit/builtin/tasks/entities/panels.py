"""What ``postprocessor=entities`` shows: each token's label, the windows put together, words, and entities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

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
from pipeline_kit.builtin.tasks.entities.words import (
    LABELS,
    SCORES,
    Aggregation,
    Pieces,
    Tokens,
    given_words,
    group,
    merge_tokens,
    pieces_of_tokens,
    pieces_of_words,
    words_of_text,
)
from pipeline_kit.contract.stages import Cell, Panel
from pipeline_kit.contract.types import Encoding, RowOutput

Array = np.ndarray[Any, Any]

_LOGITS, _WINDOW, _PLACE = "logits", "window", "place"

_SAYS = {
    "first": "a word has the label of its first token",
    "max": "a word has the label of its likeliest token",
    "average": "a word has the label whose mean over its tokens is highest",
}


def entity_panels(
    text: str,
    words: Sequence[str] | None,
    how: Aggregation,
    labels: Sequence[str],
    table: LabelTable,
    encodings: Sequence[Encoding],
    raw: Sequence[RowOutput],
    outputs: Sequence[RowOutput],
) -> list[Panel]:
    """Show the way from logits to entities.

    :param words: the words that the user passed, None where the text is to be split.
    :param labels: the checkpoint's whole label names.
    """
    tokens = merge_tokens(
        encodings, [_row(i, given, row) for i, (given, row) in enumerate(zip(raw, outputs, strict=True))]
    )
    if not len(tokens.starts):
        return [Panel("no tokens", note="the text has no token but special ones, so there is no entity")]
    panels = [_tokens(text, labels, table, tokens)]
    if len(encodings) > 1:
        panels.append(_merged(tokens, encodings))
    # As places among the tokens, so that what was joined can be told.
    count = len(tokens.starts)
    counted_tokens = replace(tokens, starts=np.arange(count), ends=np.arange(1, count + 1))
    if how == "simple":
        pieces, inside = pieces_of_tokens(counted_tokens, table), tokens.inside
        return [*panels, _entities(text, tokens, table, pieces, group(_counted(pieces), table, inside), "token")]
    if how == "none":
        pieces = pieces_of_words(counted_tokens, ~tokens.inside, "none")
        return [*panels, _entities(text, tokens, table, pieces, _counted(pieces), "")]
    begins = words_of_text(tokens, text) if words is None else given_words(tokens, text, words)
    pieces = pieces_of_words(counted_tokens, begins, how)
    panels.append(_words(text, tokens, table, pieces, how))
    return [*panels, _entities(text, tokens, table, pieces, group(_counted(pieces), table), "word")]


def _row(window: int, given: RowOutput, row: RowOutput) -> RowOutput:
    count = len(given[_LOGITS])
    return {**row, _LOGITS: given[_LOGITS], _WINDOW: np.full(count, window), _PLACE: np.arange(count)}


def _counted(pieces: Pieces) -> Pieces:
    """Return `pieces` with their places among themselves for their places in the text."""
    count = len(pieces.labels)
    return Pieces(np.arange(count), np.arange(1, count + 1), pieces.labels, pieces.scores)


def _best(tokens: Tokens) -> tuple[Array, Array]:
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


def _entities(text: str, tokens: Tokens, table: LabelTable, pieces: Pieces, runs: Pieces, noun: str) -> Panel:
    """Show the entities that are left, with the pieces that each was joined of.

    :param pieces: places among the tokens; `runs` has places among the pieces.
    :param noun: what a piece is; empty if none were joined.
    """
    found: list[tuple[Sequence[Cell], range]] = []
    for begin, end, label, score in zip(runs.starts, runs.ends, runs.labels, runs.scores, strict=True):
        start, stop = int(tokens.starts[pieces.starts[begin]]), int(tokens.ends[pieces.ends[end - 1] - 1])
        slim = text[start:stop].strip()
        if slim and not table.ignored[label]:
            start += len(text[start:stop]) - len(text[start:stop].lstrip())
            row: Sequence[Cell] = (
                cell(slim),
                start,
                start + len(slim),
                table.names[label],
                int(end - begin),
                float(score),
            )
            found.append((row, range(int(begin), int(end))))
    rows, left = first_rows([row for row, _ in found], "row")
    columns = ("entity", "start", "end", "label", f"{noun or 'token'}s", "score")
    if not found:
        return Panel("entities", columns, (), note="every label is ignored, so nothing is left")
    best, members = max(found, key=lambda item: (len(item[1]) > 1, pieces.scores[item[1][0]]))
    scores = [float(pieces.scores[i]) for i in members]
    formula = mean_line(f"{best[3]} ({named(str(best[0]), 16)})", scores)
    note = f"neighbouring {noun}s of one tag are joined; the score is their mean" if noun else "no token is joined"
    if noun == "token" and not np.array_equal(pieces.scores, _best(tokens)[1]):
        note += "; an entity never begins within a character, whose tokens all take what its first one has"
    return Panel("entities", columns, rows, "score", formula, notes(note, left))
