"""Python rows as the input: lists, generators, streaming datasets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, final

from pipeline_kit.errors import InputError, UsageError
from pipeline_kit.records.cells import json_value
from pipeline_kit.records.columns import Columns, Row
from pipeline_kit.records.line_rows import LOOKED_AT
from pipeline_kit.records.part import Part, Place, Take

__all__ = ["PythonPart"]


@final
class PythonPart(Part):
    """Texts and mappings from any iterable. An iterator can be gone through once, anything else again and again."""

    unit = "row"

    def __init__(self, rows: Iterable[Any], label: str = "rows") -> None:
        """Take `rows`, which are left alone until they are asked for."""
        self.label = label
        self._rows = rows
        self._once = isinstance(rows, Iterator)
        self._used = False

    def check(self, columns: Columns) -> None:
        """Look for the columns in the first rows of a list, or in the columns a dataset names."""
        named = getattr(self._rows, "column_names", None)
        found: list[str] = list(named) if isinstance(named, list) else []
        if isinstance(self._rows, Sequence):
            rows = [row for row in self._rows[:LOOKED_AT] if not isinstance(row, str)]
            found = list(dict.fromkeys(str(key) for row in rows if isinstance(row, Mapping) for key in row))
            if len(rows) < len(self._rows[:LOOKED_AT]):  # a text alone is an example, too
                columns = Columns(type(columns.fields)(), columns.id, columns.carry)
        if found:
            try:
                columns.check(found)
            except InputError as error:
                raise InputError(f"{self.label}: {error}") from error

    def rows(self, columns: Columns, take: Take) -> Iterator[Place]:
        """Go through the rows.

        :raises UsageError: if an iterator is gone through again.
        """
        if self._once and self._used:
            raise UsageError(
                f"{self.label}: an iterator can be gone through once; give a list, or an object whose "
                "__iter__ begins anew"
            )
        self._used = True
        yield from ((number, None) for number in self._skipped(take.skip))
        for number, row in enumerate(self._from(take.skip), start=take.skip):
            yield number, columns.pick(_row(row), absent=None) if number in take else None

    def count(self, read: bool) -> int | None:
        """Count the rows of a list."""
        return len(self._rows) if isinstance(self._rows, Sequence) else None

    def identity(self) -> list[dict[str, Any]]:
        """Give the sha256 of a list's rows as JSON lines; None for rows that come once or may differ each time."""
        if not isinstance(self._rows, Sequence):
            return [{"name": self.label, "rows": None, "sha256": None}]
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(_written(row).encode("utf-8", errors="surrogatepass") + b"\n")
        return [{"name": self.label, "rows": len(self._rows), "sha256": digest.hexdigest()}]

    def _skipped(self, skip: int) -> range:
        return range(min(skip, len(self._rows)) if isinstance(self._rows, Sequence) else skip)

    def _from(self, skip: int) -> Iterator[Any]:
        """Begin at row `skip`; a streaming dataset knows how to without making the rows before it."""
        if isinstance(self._rows, Sequence):
            return (self._rows[place] for place in range(skip, len(self._rows)))
        jump = getattr(self._rows, "skip", None)
        if skip and callable(jump):
            return iter(jump(skip))
        return islice(self._rows, skip, None)


def _row(row: Any) -> Row:
    if isinstance(row, str | Mapping):
        return row
    return InputError(f"a row is a text or a mapping, not {type(row).__name__}")


def _written(row: Any) -> str:
    try:
        return json.dumps(json_value(row), ensure_ascii=False)
    except InputError:
        return repr(row)
