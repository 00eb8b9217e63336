"""Panels: what a stage tells about its own work, as plain data that every view can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cell", "Panel"]

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
