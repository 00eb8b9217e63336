"""The text that a generating pipeline writes, in pieces as they come."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline_kit.errors import RowError, UsageError
from pipeline_kit.isolate import Failed, InStage, is_interruption
from pipeline_kit.padding import PaddingPolicy, collate
from pipeline_kit.prepare import chunks, encode_chunk
from pipeline_kit.stages import Model, Postprocessor, Tokenizer
from pipeline_kit.stats import RunStats
from pipeline_kit.types import Encoding, Example
from pipeline_kit.writing import TextReader, TextWriter

__all__ = ["stream_text"]


def stream_text(
    tokenizer: Tokenizer,
    model: Model,
    postprocessor: Postprocessor,
    padding: PaddingPolicy,
    device: str,
    example: Example,
    stats: RunStats,
) -> Iterator[str]:
    """See :meth:`pipeline_kit.pipeline.Pipeline.stream_text`."""
    if not isinstance(model, TextWriter) or not isinstance(postprocessor, TextReader):
        stage = postprocessor if isinstance(model, TextWriter) else model
        raise UsageError(
            f"{type(stage).__name__} gives no text in pieces; use a task that writes, such as task=text-generation"
        )
    found = encode_chunk(tokenizer, next(chunks([example], 1, postprocessor.prepare)))[0]
    if isinstance(found, Failed):
        stage_name, error = ("tokenizer", found.error)
        if isinstance(error, InStage):
            stage_name, error = error.stage, error.cause
        raise RowError(0, stage_name, type(error).__name__, str(error)) from error
    if len(found) > 1:
        raise UsageError(
            f"the text was split into {len(found)} windows, whose texts are joined at the end; set "
            "tokenizer.overflow to truncate or error"
        )
    stats.rows += 1
    stats.truncated_rows += bool(found[0].truncated or found[0].truncated_chars)
    return _pieces(model, postprocessor, found[0], example, padding, device)


def _pieces(
    model: TextWriter, reader: TextReader, encoding: Encoding, example: Example, padding: PaddingPolicy, device: str
) -> Iterator[str]:
    ids = model.write(collate([encoding], padding, device))
    pieces = reader.read(example, encoding, ids)
    try:
        while (piece := _next(pieces)) is not None:
            yield piece
    finally:
        close = getattr(ids, "close", None)  # what was cut off by a stop string goes on being written otherwise
        if close is not None:
            close()


def _next(pieces: Iterator[str]) -> str | None:
    try:
        return next(pieces, None)
    except BaseException as error:
        if isinstance(error, UsageError) or is_interruption(error):
            raise
        raise RowError(0, "model", type(error).__name__, str(error)) from error
