"""Parquet and Arrow files, and saved datasets, as parts of the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.records.arrow_tables import BATCH_ROWS, TableFile, opened_table, told
from pipeline_kit.records.arrow_types import Reading, cells_of, reading_of
from pipeline_kit.records.columns import Columns
from pipeline_kit.records.files import File
from pipeline_kit.records.formats import Format
from pipeline_kit.records.part import Part, Place, Take
from pipeline_kit.records.unpack import Limits

__all__ = ["ArrowPart", "batch_places", "readings"]

SLICE_BYTES = 8 << 20
"""About how much of a batch becomes Python objects at a time."""


@final
class ArrowPart(Part):
    """One or more files with the same columns, read in batches."""

    unit = "row"

    def __init__(self, label: str, files: Sequence[File], format: Format, limits: Limits) -> None:
        """Read `files` one after another; their rows are numbered through."""
        self.label = label
        self._files = files
        self._format: Format = format
        self._limits = limits

    def check(self, columns: Columns) -> None:
        """Open every file and look at its columns and their types."""
        for file in self._files:
            try:
                with opened_table(file, self._format) as table:
                    readings(table.schema, columns)
            except InputError as error:
                raise self._error(file, error) from error

    def rows(self, columns: Columns, take: Take) -> Iterator[Place]:
        """Go through the rows."""
        number = 0
        for file in self._files:
            try:
                with opened_table(file, self._format) as table:
                    for place in _places(table, columns, take, number, self._limits):
                        number += 1
                        yield place
                file.check()
            except InputError as error:
                until = f"; the last whole row is {number - 1}" if number else ""
                raise self._error(file, InputError(f"{error}{until}")) from error

    def count(self, read: bool) -> int | None:
        """Count the rows by what the files say of themselves."""
        total = 0
        for file in self._files:
            try:
                with opened_table(file, self._format) as table, told():
                    if table.rows is None and not read:
                        return None
                    total += table.count()
            except InputError as error:
                raise self._error(file, error) from error
        return total

    def identity(self) -> list[dict[str, Any]]:
        """Give name, size and sha256 of each file."""
        found = []
        for file in self._files:
            try:
                found.append(file.identity())
            except InputError as error:
                raise self._error(file, error) from error
        return found

    def unchanged(self) -> None:
        """See that every file is the same."""
        for file in self._files:
            try:
                file.check()
            except InputError as error:
                raise self._error(file, error) from error

    def close(self) -> None:
        """Give up a copy of stdin."""
        for file in self._files:
            file.close()

    def _error(self, file: File, error: InputError) -> InputError:
        return InputError(f"{file.label}: {error}")


def readings(schema: Any, columns: Columns) -> dict[str, Reading]:
    """Plan how the wanted columns of a table are read.

    :raises InputError: if one is missing, there twice or of a type without a meaning in JSON.
    """
    found = {}
    with told():  # a name in a damaged schema may be no UTF-8
        names = schema.names
        columns.check(names)
        for name in columns.wanted:
            if names.count(name) > 1:
                raise InputError(f"the column '{shorten(name, 60)}' is there {names.count(name)} times")
            if name in names:
                try:
                    found[name] = reading_of(schema.field(name).type, name in columns.texts)
                except InputError as error:
                    raise InputError(f"the column '{shorten(name, 60)}': {error}") from error
    return found


def batch_places(batch: Any, plan: dict[str, Reading], columns: Columns, take: Take, number: int) -> Iterator[Place]:
    """Go through the rows of a record batch, of which the first is row `number` of its part.

    :raises pyarrow.ArrowException: if the batch is damaged.
    """
    size = max(1, min(BATCH_ROWS, SLICE_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, size):
        piece = batch.slice(start, size)
        cells = [cells_of(piece.column(name), reading) for name, reading in plan.items()]
        for row in zip(*cells, strict=True):
            picked = columns.pick(dict(zip(plan, row, strict=True)), absent=None) if number in take else None
            yield number, picked
            number += 1


def _places(table: TableFile, columns: Columns, take: Take, number: int, limits: Limits) -> Iterator[Place]:
    """Go through the rows of a file, of which the first is row `number` of its part."""
    plan = readings(table.schema, columns)
    given = 0
    with told():
        for rows, batch in table.batches(list(plan), max(0, take.skip - number)):
            if batch is None:
                yield from ((place, None) for place in range(number, number + rows))
            else:
                batch.validate()  # else nbytes may follow an offset out of the file
                given += batch.nbytes + batch.num_rows  # a column of nulls has rows and no bytes
                limits.check(given, table.size)
                yield from batch_places(batch, plan, columns, take, number)
            number += rows
