"""Panels: what a stage tells about its own work, as plain data that every view can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_kit.types import Encoding, Example, Result, RowOutput

__all__ = ["Cell", "Panel", "Seen"]

Cell = str | int | float | bool | None
"""What stands in a panel's table: JSON values."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A heading with a table, a formula, or both.

    :param title: a few words, such as ``logits to probabilities``.
    :param columns: the table's headings; empty if there is no table.
    :param rows: the table's cells, each row as long as `columns`; numbers stay numbers.
    :param bar: the heading of a column of numbers that is drawn as bars too.
    :param formula: the arithmetic with its numbers, as one would write it on paper; lines.
    :param note: what a reader should know besides.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    bar: str | None = None
    formula: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One example on its way through a postprocessor.

    :param raw: for each encoding what the model gave, before `reduce`; padding is taken off.
    :param outputs: for each encoding what `reduce` left of it, as ``Postprocessor.__call__`` gets it.
    """

    example: Example
    encodings: Sequence[Encoding]
    raw: Sequence[RowOutput]
    outputs: Sequence[RowOutput]
    result: Result
