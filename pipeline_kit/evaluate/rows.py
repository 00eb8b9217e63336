"""Rows of a file: an example, and the label it should get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline_kit.errors import InputError
from pipeline_kit.evaluate.base import Evaluator
from pipeline_kit.evaluate.tasks import GOLD
from pipeline_kit.records import SourceRow
from pipeline_kit.types import RowFailure

__all__ = ["Labelled", "check_rows", "in_row", "labelled", "read_gold"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row.

    :param index: its place among all rows, from 0.
    :param id: where it stands, such as ``reviews.csv:17``, which counts lines from 1.
    :param gold: the label as the file has it.
    """

    index: int
    id: str
    example: dict[str, Any]
    gold: Any


def labelled(rows: Iterable[SourceRow]) -> Iterator[Labelled | RowFailure]:
    """Part each row into example and label; a row that cannot be read stays a failure in its place."""
    for row in rows:
        if isinstance(row.example, RowFailure):
            yield row.example
        elif isinstance(row.example, str):
            problem = f"{row.id}: is a text alone; a labelled row has the fields of its task and '{GOLD}'"
            yield RowFailure(row.index, "input", "InputError", problem)
        else:
            example = {name: value for name, value in row.example.items() if name != GOLD}
            yield Labelled(row.index, row.id, example, row.example[GOLD])


def read_gold(evaluator: Evaluator, row: Labelled) -> Any:
    """Understand the label of `row`.

    :raises InputError: naming the row.
    """
    with in_row(row):
        return evaluator.read(row.gold, row.example)


@contextmanager
def in_row(row: Labelled) -> Iterator[None]:
    """Say in an InputError of the body which row it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{row.id}: {error}") from error


def check_rows(rows: Iterable[Labelled | RowFailure], evaluator: Evaluator) -> int:
    """Read all labels before a model is loaded; give the number of rows.

    :raises InputError: at the first label that is none.
    """
    count = 0
    for row in rows:
        count += 1
        if isinstance(row, Labelled):
            read_gold(evaluator, row)
    return count
