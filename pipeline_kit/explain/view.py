"""Views: what a plugin shows of a run besides the stages' own account, as blocks that terminal, page and JSON share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from pipeline_kit.contract.stages import Seen
from pipeline_kit.errors import PipelineKitError, StageError, for_message
from pipeline_kit.explain.blocks import Block, Marked
from pipeline_kit.explain.formats import visible
from pipeline_kit.explain.trace import SequenceTrace, Trace

if TYPE_CHECKING:
    from pipeline_kit.runtime.pipeline import Pipeline


class View(ABC):
    """A section of ``explain``, built as ``View(config)`` with the options that it was registered with."""

    def check(self, pipeline: Pipeline) -> None:  # noqa: B027 - most views show any pipeline
        """Look at the pipeline before anything runs.

        :raises UsageError: if it is not one that this view can show, saying what to change.
        """

    @abstractmethod
    def __call__(self, pipeline: Pipeline, trace: Trace, seen: Sequence[Seen | None]) -> Sequence[Sequence[Block]]:
        """Return for each row of `trace` the blocks that show it; none where there is nothing to show.

        The pipeline may be run again, on these rows or on others; it must be left as it was.

        :param seen: for each row what the postprocessor got and returned, None for one that failed. It is read only.
        :raises UsageError: if the view has nothing to show of any such pipeline.
        """


def add_views(pipeline: Pipeline, trace: Trace, seen: Sequence[Seen | None], views: Mapping[str, View]) -> Trace:
    """Return `trace` with what `views` show of its rows, under their names.

    :raises StageError: if a view fails, or returns something else than blocks for each row.
    """
    for name, view in views.items():
        try:
            found = [tuple(blocks) for blocks in view(pipeline, trace, seen)]
        except PipelineKitError:
            raise
        except Exception as error:
            raise StageError(f"the view {name} failed: {type(error).__name__}: {for_message(str(error))}") from error
        if len(found) != len(trace.rows):
            raise StageError(f"the view {name} returned blocks for {len(found)} rows, not for {len(trace.rows)}")
        for block in (block for blocks in found for block in blocks):
            if not isinstance(block, get_args(Block)):
                raise StageError(f"the view {name} returned {type(block).__name__}, which is not a block")
        rows = [replace(row, views={**row.views, name: own}) for row, own in zip(trace.rows, found, strict=True)]
        trace = replace(trace, rows=tuple(rows))
    return trace


def marked_tokens(title: str, sequence: SequenceTrace, scores: Sequence[float]) -> Marked:
    """Mark each token of a sequence with its score, in its texts; a token without a place there is left out.

    Where tokens have no places in the text, they stand for it.
    """
    pieces: list[tuple[str, float | None]] = []
    for number, text in enumerate(sequence.source):
        at = 0
        for token, score in zip(sequence.tokens, scores, strict=True):
            if token.start is None or token.end is None or (token.sequence or 0) != number:
                continue
            # Of tokens that overlap, the later one has what is left.
            start, end = max(at, token.start), min(token.end, len(text))
            if end > start:
                pieces += [(text[at:start], None), (text[start:end], score)]
                at = end
        if at:
            pieces += [(text[at:], None), ("\n", None)]
    if not pieces:
        marked = zip(sequence.tokens, scores, strict=True)
        pieces = [part for token, score in marked for part in ((visible(token.text), score), (" ", None))]
    return Marked(title, tuple(piece for piece in pieces[:-1] if piece[0]))
