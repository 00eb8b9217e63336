"""What a model that writes text, and a postprocessor that reads it, may have besides their interfaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from pipeline_kit.types import Encoding, Example, TokenBatch

__all__ = ["TextReader", "TextWriter"]


@runtime_checkable
class TextWriter(Protocol):
    """What a model may have besides: it writes ids, and can give them one by one.

    :ivar stop_strings: writing ends where the text has one of these.
    """

    stop_strings: Sequence[str]

    def write(self, batch: TokenBatch) -> Iterator[int]:
        """Give the ids for a batch of one row as they are written; closing the iterator ends the writing.

        :raises UsageError: if the options do not allow it.
        """
        ...


@runtime_checkable
class TextReader(Protocol):
    """What a postprocessor may have besides: it reads such ids one by one."""

    def read(self, example: Example, encoding: Encoding, ids: Iterator[int]) -> Iterator[str]:
        """Give the result's text in pieces, as early as each is certain; joined they are that text."""
        ...
