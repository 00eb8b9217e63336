"""The rows that failed, kept aside with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_kit.errors import shorten
from pipeline_kit.sinks import json_line
from pipeline_kit.types import RowFailure

__all__ = ["DeadLetter", "lines"]

LONGEST = 200


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row that failed.

    :param id: the row's id, as in the output.
    :param index: its number in the whole input.
    :param failure: the stage, the error's class and its message.
    """

    id: str
    index: int
    failure: RowFailure

    @property
    def content(self) -> dict[str, Any]:
        """What is written: the text itself is not, it stands in the input."""
        message = shorten(self.failure.message, LONGEST)
        return {
            "id": self.id,
            "index": self.index,
            "stage": self.failure.stage,
            "error": shorten(self.failure.error, 80),
            "message": message,
        }


def lines(letters: Sequence[DeadLetter]) -> bytes:
    """Give the dead letters as lines of JSON, in the rows' order."""
    return "".join(json_line(letter.content) + "\n" for letter in letters).encode()
