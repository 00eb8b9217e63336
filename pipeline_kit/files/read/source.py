"""The rows of a job: from any files or Python objects, numbered, with ids, in one order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

from pipeline_kit.contract.types import Example
from pipeline_kit.errors import InputError, RowFailure, UsageError, for_message
from pipeline_kit.files.read.columns import Columns, IdSet, ParsedRow, RawRow, json_value
from pipeline_kit.files.read.formats import import_optional
from pipeline_kit.files.read.lines import ROWS_LOOKED_AT
from pipeline_kit.files.read.opened import DecompressionLimits
from pipeline_kit.files.read.parts import InputConfig, InputPart, ReadRow, RowSelection, as_input_error
from pipeline_kit.files.read.paths import parts_of


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row of the input.

    :param index: its number in the whole input, from 0; skip, limit and shard do not change it.
    :param id: what the id column holds, or where the row is: ``reviews.csv:17`` counts lines from 1,
        ``reviews.parquet:16`` rows from 0. No two rows have the same.
    :param example: the example, or why there is none.
    :param carried: JSON values by column, for the output; empty if the row could not be read.
    """

    index: int
    id: str
    example: Example | RowFailure
    carried: Mapping[str, Any]


@final
class Source:
    """The input of a job. What it returns for a row depends on the input alone, so a job can continue at any row."""

    def __init__(self, parts: Sequence[InputPart], options: InputConfig, columns: Columns) -> None:
        """Put `parts` one behind another; see :meth:`open` and :meth:`of`."""
        self._parts = parts
        self._options = options
        self._columns = columns

    @classmethod
    def open(cls, names: Sequence[str | Path], options: InputConfig, takes: Sequence[str]) -> Source:
        """Name files, patterns (``data/*.jsonl``), folders of saved datasets, and ``-`` for stdin.

        Stdin and named pipes are first copied, to their end, to a temporary file without a name.

        :param takes: the task's fields, see :class:`~pipeline_kit.compose.schema.TaskConfig`.
        :raises InputError: if something is not there, or no format that is read here.
        :raises UsageError: if ``input.fields`` names a field the task does not have, or a library is not installed.
        """
        columns = Columns.of(takes, options.fields, options.id, options.carry)
        if isinstance(names, str | Path):
            names = [names]
        if not names:
            raise UsageError("no input was named")
        limits = DecompressionLimits(options.max_decompressed_bytes, options.max_ratio)
        return cls(parts_of(names, options.format, limits), options, columns)

    @classmethod
    def of(cls, rows: Iterable[Any], options: InputConfig, takes: Sequence[str]) -> Source:
        """Take texts and mappings from a list or any iterable, or the rows of a ``datasets`` object.

        :raises UsageError: as :meth:`open`, or for something that holds no rows.
        """
        columns = Columns.of(takes, options.fields, options.id, options.carry)
        if isinstance(rows, str | bytes | Mapping):
            several = isinstance(rows, Mapping) and all(hasattr(part, "features") for part in rows.values())
            if several:
                raise UsageError(
                    f"the input holds several datasets; take one: {for_message(', '.join(map(str, rows)))}"
                )
            raise UsageError("the input is one row; put it in a list")
        if all(hasattr(rows, name) for name in ("_fingerprint", "with_format", "features", "__len__")):
            module = import_optional("pipeline_kit.files.read.arrow", "pyarrow", "reading a dataset")
            return cls([module.DatasetPart(rows)], options, columns)
        if not isinstance(rows, Iterable):
            raise UsageError(f"the input is {type(rows).__name__}, which has no rows")
        return cls([PythonPart(rows)], options, columns)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove copies of stdin and pipes."""
        for part in self._parts:
            part.close()

    def check(self) -> None:
        """Open everything and look for the columns, so that mistakes show before a model is loaded.

        :raises InputError: about the first part that lacks one, cannot be read, or holds a type without a
            meaning in JSON.
        """
        for part in self._parts:
            part.check(self._columns)

    def rows(self, start: int = 0) -> Iterator[SourceRow]:
        """Go through the rows that skip, limit and shard leave, in bounded memory.

        :param start: leave out rows with a smaller index, as a job does that continues. Without an id column they are
            passed over fast; with one, their ids are read, so that a duplicate is found wherever the job began.
        :raises InputError: if a part cannot be read to its end; it names the last whole row.
        """
        options, seen = self._options, IdSet() if self._columns.id is not None else None
        first = max(start, options.skip)
        end = None if options.limit is None else options.skip + options.limit
        shard, shards = options.part
        before = 0
        for part in self._parts:
            if end is not None and before >= end:
                return
            skip = max(0, first - before)
            if skip and (known := part.count(read=False)) is not None and seen is None and known <= skip:
                before += known
                continue
            if seen is not None and skip:
                self._remember(part, skip, seen)
            # With ids, all rows are read: one of another shard may be what a row here repeats the id of.
            take = RowSelection(skip, shard, shards, before) if seen is None else RowSelection(skip)
            for place, picked in part.rows(self._columns, take):
                if end is not None and before >= end:
                    part.unchanged()
                    return
                if picked is not None:
                    row = _row(part, place, picked, before, seen)
                    if before % shards == shard:
                        yield row
                before += 1

    def identity(self) -> list[dict[str, Any]]:
        """Describe the input as JSON values: for each file its name, size and sha256.

        A ``Dataset`` has its fingerprint instead, a list the sha256 of its rows, and what can be gone
        through only once a sha256 of None: nothing can tell whether it is the same again.
        """
        return [item for part in self._parts for item in part.identity()]

    def count(self) -> int | None:
        """Count the rows that :meth:`rows` returns; None if finding out takes long.

        Parquet and datasets know; files of lines up to 1 GiB are read through; compressed ones are not.
        """
        total = 0
        for part in self._parts:
            rows = part.count(read=True)
            if rows is None:
                return None
            total += rows
        options = self._options
        end = total if options.limit is None else min(total, options.skip + options.limit)
        shard, shards = options.part
        return len(range(options.skip + (shard - options.skip) % shards, end, shards))

    def _remember(self, part: InputPart, rows: int, seen: IdSet) -> None:
        """Go through the ids of a part's first rows, exactly as if the rows were given."""
        for place, picked in part.rows(Columns(id=self._columns.id), RowSelection()):
            if rows == 0:
                return
            rows -= 1
            assert picked is not None
            _row(part, place, picked, 0, seen)


def _row(part: InputPart, place: int, picked: ParsedRow, index: int, seen: IdSet | None) -> SourceRow:
    problem = picked.example if isinstance(picked.example, InputError) else None
    id = picked.id
    if id is not None and seen is not None and not seen.add(id):
        problem = problem or InputError(f"the id '{for_message(id, 80)}' was there before")
        id = None
    if id is None:
        id = f"{part.label}:{place}"
        while seen is not None and not seen.add(id):
            id += "'"  # a hostile file has this very id in a row of its own
    if problem is None:
        assert not isinstance(picked.example, InputError)
        return SourceRow(index, id, picked.example, picked.carried)
    message = f"{part.label}, {part.unit} {place}: {problem}"
    return SourceRow(index, id, RowFailure(index, "input", "InputError", message), picked.carried)


@final
class PythonPart(InputPart):
    """Texts and mappings from any iterable. An iterator can be gone through once, anything else again and again."""

    unit = "row"

    def __init__(self, rows: Iterable[Any], label: str = "rows") -> None:
        self.label = label
        self._rows = rows
        self._once = isinstance(rows, Iterator)
        self._used = False

    def check(self, columns: Columns) -> None:
        """Look for the columns in the first rows of a list, or in the columns a dataset names."""
        named = getattr(self._rows, "column_names", None)
        found: list[str] = list(named) if isinstance(named, list) else []
        if isinstance(self._rows, Sequence):
            rows = [row for row in self._rows[:ROWS_LOOKED_AT] if not isinstance(row, str)]
            found = list(dict.fromkeys(str(key) for row in rows if isinstance(row, Mapping) for key in row))
            if len(rows) < len(self._rows[:ROWS_LOOKED_AT]):  # a text alone is an example, too
                columns = columns.without_fields
        if found:
            with as_input_error(self.label):
                columns.check(found)

    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through the rows.

        :raises UsageError: if an iterator is gone through again.
        """
        if self._once and self._used:
            raise UsageError(
                f"{self.label}: an iterator can be gone through once; pass a list, or an object whose "
                "__iter__ begins anew"
            )
        self._used = True
        skipped = min(take.skip, len(self._rows)) if isinstance(self._rows, Sequence) else take.skip
        yield from ((number, None) for number in range(skipped))
        for number, row in enumerate(self._from(take.skip), start=take.skip):
            yield number, columns.parse(_python_row(row), absent=None) if number in take else None

    def count(self, read: bool) -> int | None:
        """Count the rows of a list."""
        return len(self._rows) if isinstance(self._rows, Sequence) else None

    def identity(self) -> list[dict[str, Any]]:
        """Return the sha256 of a list's rows as JSON lines; None for rows that come once or may differ each time."""
        if not isinstance(self._rows, Sequence):
            return [{"name": self.label, "rows": None, "sha256": None}]
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(_written(row).encode("utf-8", errors="surrogatepass") + b"\n")
        return [{"name": self.label, "rows": len(self._rows), "sha256": digest.hexdigest()}]

    def _from(self, skip: int) -> Iterator[Any]:
        """Begin at row `skip`; a streaming dataset knows how to without making the rows before it."""
        if isinstance(self._rows, Sequence):
            return (self._rows[place] for place in range(skip, len(self._rows)))
        jump = getattr(self._rows, "skip", None)
        if skip and callable(jump):
            return iter(jump(skip))
        return islice(self._rows, skip, None)


def _python_row(row: Any) -> RawRow:
    if isinstance(row, str | Mapping):
        return row
    return InputError(f"a row is a text or a mapping, not {type(row).__name__}")


def _written(row: Any) -> str:
    try:
        return json.dumps(json_value(row), ensure_ascii=False)
    except InputError:
        return repr(row)
