"""A ``datasets.Dataset`` in memory as the input; the library itself is not needed here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

from pipeline_kit.errors import InputError
from pipeline_kit.records.arrow_part import batch_places, readings
from pipeline_kit.records.arrow_tables import BATCH_ROWS, told
from pipeline_kit.records.columns import Columns
from pipeline_kit.records.part import Part, Place, Take

__all__ = ["DatasetPart"]


@final
class DatasetPart(Part):
    """A dataset with rows at known places; selections and shuffles of it are followed."""

    unit = "row"

    def __init__(self, dataset: Any, label: str = "dataset") -> None:
        """Read `dataset` as Arrow tables, whatever format it was set to."""
        self.label = label
        self._dataset = dataset

    def check(self, columns: Columns) -> None:
        """Look at the columns and their types."""
        self._plan(columns)

    def rows(self, columns: Columns, take: Take) -> Iterator[Place]:
        """Go through the rows."""
        plan = self._plan(columns)
        total = len(self._dataset)
        yield from ((number, None) for number in range(min(take.skip, total)))
        tables = self._dataset.with_format("arrow", columns=list(plan))
        for start in range(take.skip, total, BATCH_ROWS):
            number = start
            try:
                with told():
                    for batch in tables[start : start + BATCH_ROWS].to_batches():
                        yield from batch_places(batch, plan, columns, take, number)
                        number += batch.num_rows
            except InputError as error:
                raise InputError(f"{self.label}: rows from {start}: {error}") from error

    def count(self, read: bool) -> int:
        """Count the rows."""
        return len(self._dataset)

    def identity(self) -> list[dict[str, Any]]:
        """Give the fingerprint that the library keeps of the data and what was done to it."""
        return [
            {
                "name": self.label,
                "rows": len(self._dataset),
                "fingerprint": str(self._dataset._fingerprint),
            }
        ]

    def _plan(self, columns: Columns) -> Any:
        try:
            return readings(self._dataset.features.arrow_schema, columns)
        except InputError as error:
            raise InputError(f"{self.label}: {error}") from error
