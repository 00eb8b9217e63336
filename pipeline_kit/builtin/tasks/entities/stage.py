"""A label for each token to entities with their places in the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import Outputs, Windows, check_labels, floats
from pipeline_kit.builtin.tasks.common.panels import (
    ROWS,
    cell,
    counted,
    digits,
    exponentials,
    mean_line,
    named,
    softmax_lines,
    table_panel,
)
from pipeline_kit.builtin.tasks.entities.labels import BLANK, LabelTable, label_table
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
from pipeline_kit.builtin.tasks.options import EntitiesConfig
from pipeline_kit.contract.fields import read_fields, text_of, texts_of
from pipeline_kit.contract.gradients import Target
from pipeline_kit.contract.stages import Cell, Overflow, Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ExampleError, for_message


@final
class Entities(Postprocessor):
    """Returns ``entities``, a list of ``label``, ``score``, ``text``, ``start`` and ``end`` in the order of the text.

    They never overlap, and ``text`` is what stands in the source from ``start`` to ``end``, in characters, without
    white space around it. The source is the field ``text``, or the field ``words``, joined by a blank.

    ``simple`` and the aggregations by word return tags, without their ``B-`` or ``I-``; ``none`` returns each token
    with its whole label. A long text is split into windows and put together again before anything else is done, so an
    entity may reach from one window into the next.
    """

    required_fields: ClassVar[frozenset[str]] = frozenset({"special_tokens_mask", "offsets", "word_ids"})
    overflow: ClassVar[Overflow] = "window"

    def __init__(self, config: EntitiesConfig, context: StageContext) -> None:
        """Read the labels; raise ConfigError if ``ignore_labels`` names what the checkpoint does not have."""
        self._how = config.aggregation
        self._checkpoint, self._names = context.checkpoint.name, context.checkpoint.labels
        self._labels = label_table(context.checkpoint.labels, config.ignore_labels, aggregated=self._how != "none")

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return the one text that is tagged; raise ExampleError without ``text`` and ``words``, or for both."""
        return (_source(example)[0],)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``labels [B, T]`` and ``scores [B, T]``, float32: each token's best; for ``average`` all
        ``scores [B, T, L]``.

        :raises StageError: if the model's width is not the number of labels.
        """
        scores = torch.softmax(floats(output, "logits", 3, "[B, T, L]"), dim=-1)
        check_labels(scores.shape[-1], self._labels.names, self._checkpoint)
        if self._how == "average":
            return ModelOutput({SCORES: scores}, frozenset({SCORES}))
        best, labels = scores.max(dim=-1)
        return ModelOutput({LABELS: labels, SCORES: best}, frozenset({LABELS, SCORES}))

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
        """List the entities.

        :raises StageError: if the model returned more or fewer values than there are tokens.
        :raises ExampleError: if a score is not finite.
        """
        results: list[Result] = []
        for example, windows, rows in zip(examples, encodings, outputs, strict=True):
            if not all([np.isfinite(row[SCORES]).all() for row in rows]):
                raise ExampleError("the model's 'logits' for this example are not all finite numbers")
            text, words = _source(example)
            tokens, _, found = self._steps(text, words, windows, rows)
            results.append({"entities": [entity for _, entity in self._listed(text, tokens, found)]})
        return results

    def panels(self, seen: Seen) -> Sequence[Panel]:
        text, words = _source(seen.example)
        numbers: list[RowOutput] = [
            {**row, _LOGITS: raw[_LOGITS], _WINDOW: np.full(len(raw[_LOGITS]), i), _PLACE: np.arange(len(raw[_LOGITS]))}
            for i, (raw, row) in enumerate(zip(seen.raw, seen.outputs, strict=True))
        ]
        tokens, pieces, found = self._steps(text, words, seen.encodings, numbers)
        if not len(tokens.starts):
            return [Panel("no tokens", note="the text has no token but special ones, so there is no entity")]
        panels = [_tokens(text, self._names, self._labels, tokens)]
        if len(seen.encodings) > 1:
            panels.append(_merged(tokens, seen.encodings))
        if self._how not in ("simple", "none"):
            panels.append(_words(text, tokens, self._labels, pieces, self._how))
        noun = {"simple": "token", "none": ""}.get(self._how, "word")
        entities = [
            (int(found.starts[i]), int(found.ends[i]), entity) for i, entity in self._listed(text, tokens, found)
        ]
        return [*panels, _entities(tokens, pieces, entities, noun)]

    def cells(self, example: Example, result: Result) -> Mapping[str, Any]:
        text, parts, at = _source(example)[0], [], 0
        for entity in result["entities"]:
            parts += [text[at : entity["start"]], f"[{entity['text']} {entity['label']}]"]
            at = entity["end"]
        return {**result, "entities": "".join([*parts, text[at:]])}

    def attribution_targets(self, seen: Seen) -> Sequence[Target]:
        """Return the first token of the likeliest entity, in the window with most around it."""
        if not seen.result["entities"]:
            return ()
        entity = max(seen.result["entities"], key=lambda found: float(found["score"]))
        held = []
        for number, encoding in enumerate(seen.encodings):
            offsets, special = encoding.offsets or (), encoding.special_tokens_mask or ()
            for place, (start, end) in enumerate(offsets):
                if not special[place] and start < entity["end"] and end > entity["start"]:
                    held.append((min(place, len(offsets) - 1 - place), -number, place))
                    break
        if not held:
            return ()
        _, negated, place = max(held)
        label = int(seen.raw[-negated]["logits"][place].argmax())
        name = for_message(f"logit of '{self._names[label]}' at token {place} of '{entity['text']}'")
        return [Target.logit(-negated, name, place, label)]

    def _steps(
        self, text: str, words: Sequence[str] | None, windows: Sequence[Encoding], rows: Sequence[RowOutput]
    ) -> tuple[Tokens, Pieces, Pieces]:
        """Return the tokens of all windows, what is joined (tokens or words), and the entities of any label."""
        tokens = merge_tokens(windows, rows)
        if not len(tokens.starts):
            none = Pieces(*[np.zeros(0, dtype=np.int64)] * 4)
            return tokens, none, none
        if self._how == "simple":
            pieces = pieces_of_tokens(tokens, self._labels)
            return tokens, pieces, group(pieces, self._labels, tokens.inside)
        if self._how == "none":
            pieces = pieces_of_words(tokens, ~tokens.inside, "none")
            return tokens, pieces, pieces
        begins = words_of_text(tokens, text) if words is None else given_words(tokens, text, words)
        pieces = pieces_of_words(tokens, begins, self._how)
        return tokens, pieces, group(pieces, self._labels)

    def _listed(self, text: str, tokens: Tokens, pieces: Pieces) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the pieces that are not ignored, without white space around them; one of white space alone is none."""
        kept = np.flatnonzero(~self._labels.ignored[pieces.labels])
        starts, ends = tokens.starts[pieces.starts[kept]], tokens.ends[pieces.ends[kept] - 1]
        columns = [column.tolist() for column in (kept, starts, ends, pieces.labels[kept], pieces.scores[kept])]
        for place, start, end, label, score in zip(*columns, strict=True):
            part = text[start:end]
            slim = part.strip()
            if slim:
                start += len(part) - len(part.lstrip())
                place_in_text = {"text": slim, "start": start, "end": start + len(slim)}
                yield place, {"label": self._labels.names[label], "score": score, **place_in_text}


def _source(example: Example) -> tuple[str, list[str] | None]:
    """Return the text that is tagged and, where the user has split it, its words."""
    if isinstance(example, Mapping):
        # A table with both columns has an empty cell or a null in one of them.
        empty = {"words": (None, ""), "text": (None, "") if example.get("words") else (None,)}
        example = {name: value for name, value in example.items() if value not in empty.get(name, ())}
        if not example:
            raise ExampleError(
                "the example has neither 'text' nor 'words'; to take one from another column: --fields text=COLUMN"
            )
        if "words" in example:
            if "text" in example:
                raise ExampleError("the fields 'text' and 'words' are both there; pass one of them")
            words = texts_of(read_fields(example, ("words",), ("text",))["words"], "words", least=0)
            return BLANK.join(words), words
    return text_of(read_fields(example, ("text",), ("words",))["text"], "text"), None


_LOGITS, _WINDOW, _PLACE = "logits", "window", "place"

_SAYS = {
    "first": "a word has the label of its first token",
    "max": "a word has the label of its likeliest token",
    "average": "a word has the label whose mean over its tokens is highest",
}


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
    columns = ("window", "tokens", "of the text", "taken", "first taken", "last taken")
    note = "a token that two windows share is taken from the one where it is farther from the border"
    return table_panel("windows put together", columns, rows, "window", note)


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
    title = f"tokens to words ({how})"
    return table_panel(title, columns, rows, "word", _SAYS[how], bar="score", formula=formula, left=left)


def _word_line(text: str, tokens: Tokens, table: LabelTable, pieces: Pieces, i: int, how: Aggregation) -> str:
    begin, end, label = int(pieces.starts[i]), int(pieces.ends[i]), int(pieces.labels[i])
    name = named(text[tokens.starts[begin] : tokens.ends[end - 1]].strip(), 16)
    if how == "average":
        scores = tokens.values[SCORES][begin:end, label].astype(np.float64).tolist()
        return mean_line(f"{table.names[label]} ({name})", scores)
    which = "first" if how == "first" else "likeliest"
    return f"score({name}) = that of its {which} token = {digits(pieces.scores[i])}"


def _entities(
    tokens: Tokens, pieces: Pieces, entities: Sequence[tuple[int, int, Mapping[str, Any]]], noun: str
) -> Panel:
    """Show the entities that are left, with the pieces, each a `noun`, that were joined; "" if none were."""
    columns = ("entity", "start", "end", "label", f"{noun or 'token'}s", "score")
    if not entities:
        return Panel("entities", columns, note="every label is ignored, so nothing is left")
    members = [slice(*np.searchsorted(pieces.starts, (begin, end)).tolist()) for begin, end, _ in entities]
    scores = [pieces.scores[own].tolist() for own in members]
    rows = [
        (cell(found["text"]), found["start"], found["end"], found["label"], len(own), float(found["score"]))
        for (_, _, found), own in zip(entities, scores, strict=True)
    ]
    best = max(range(len(scores)), key=lambda i: (len(scores[i]) > 1, scores[i][0]))
    found = entities[best][2]
    formula = mean_line(f"{found['label']} ({named(cell(found['text']), 16)})", scores[best])
    note = f"neighbouring {noun}s of one tag are joined; the score is their mean" if noun else "no token is joined"
    if noun == "token" and not np.array_equal(pieces.scores, _best(tokens)[1]):
        note += "; an entity never begins within a character, whose tokens all take what its first one has"
    return table_panel("entities", columns, rows, "row", note, bar="score", formula=formula)
