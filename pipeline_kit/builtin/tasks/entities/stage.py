"""A label for each token to entities with their places in the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch

from pipeline_kit.builtin.tasks.common.merge import check_labels, floats
from pipeline_kit.builtin.tasks.entities.labels import label_table
from pipeline_kit.builtin.tasks.entities.panels import entity_panels, with_places
from pipeline_kit.builtin.tasks.entities.words import (
    LABELS,
    SCORES,
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
from pipeline_kit.contract.stages import Overflow, Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ExampleError

DELIMITER = " "


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
        """Read the labels off the checkpoint.

        :raises ConfigError: if ``ignore_labels`` names what the checkpoint does not have.
        """
        self._how = config.aggregation
        self._checkpoint, self._names = context.checkpoint.name, context.checkpoint.labels
        self._labels = label_table(context.checkpoint.labels, config.ignore_labels, aggregated=self._how != "none")

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return the one text that is tagged.

        :raises ExampleError: if there is neither ``text`` nor ``words``, or both.
        """
        return (_source(example)[0],)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``labels [B, T]`` and ``scores [B, T]``, float32: each token's best; for ``average`` all
        ``scores [B, T, L]``.

        :raises StageError: if the model's width is not the number of labels.
        """
        del batch
        scores = torch.softmax(floats(output, "logits", 3, "[B, T, L]"), dim=-1)
        check_labels(scores.shape[-1], self._labels.names, self._checkpoint)
        if self._how == "average":
            return ModelOutput({SCORES: scores}, frozenset({SCORES}))
        best, labels = scores.max(dim=-1)
        return ModelOutput({LABELS: labels, SCORES: best}, frozenset({LABELS, SCORES}))

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """List the entities.

        :raises StageError: if the model returned more or fewer values than there are tokens.
        :raises ExampleError: if a score is not finite.
        """
        return [
            {"entities": self._entities(*_source(example), windows, rows)}
            for example, windows, rows in zip(examples, encodings, outputs, strict=True)
        ]

    def _entities(
        self, text: str, words: Sequence[str] | None, windows: Sequence[Encoding], rows: Sequence[RowOutput]
    ) -> list[dict[str, Any]]:
        if not all([np.isfinite(row[SCORES]).all() for row in rows]):
            raise ExampleError("the model's 'logits' for this example are not all finite numbers")
        tokens, _, found = self._steps(text, words, windows, rows)
        return [entity for _, entity in self._listed(text, tokens, found)]

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show each token's label, and how tokens became entities."""
        text, words = _source(seen.example)
        tokens, pieces, found = self._steps(text, words, seen.encodings, with_places(seen))
        entities = [
            (int(found.starts[i]), int(found.ends[i]), entity) for i, entity in self._listed(text, tokens, found)
        ]
        return entity_panels(text, self._how, self._names, self._labels, seen.encodings, tokens, pieces, entities)

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
            return DELIMITER.join(words), words
    return text_of(read_fields(example, ("text",), ("words",))["text"], "text"), None
