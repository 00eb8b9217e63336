"""The rows of a job: from any files or Python objects, numbered, with ids, in one order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast, final

from pipeline_kit.contract.types import Example
from pipeline_kit.errors import InputError, RowFailure, UsageError, for_message
from pipeline_kit.files.read.columns import AllColumns, Columns, IdSet, ParsedRow, RawRow, json_value
from pipeline_kit.files.read.formats import import_optional
from pipeline_kit.files.read.lines import ROWS_LOOKED_AT
from pipeline_kit.files.read.opened import DecompressionLimits
from pipeline_kit.files.read.parts import InputConfig, InputPart, Mark, PartIndex, ReadRow, RowSelection, as_input_error
from pipeline_kit.files.read.paths import expand_patterns, parts_of
from pipeline_kit.files.read.plan import InputPlan, Stretch


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

    def __init__(
        self, parts: Sequence[InputPart], options: InputConfig, columns: Columns, names: Sequence[str] = ()
    ) -> None:
        """Put `parts` one behind another; see :meth:`open` and :meth:`of`.

        :ivar names: by which another process can open the same input.
        """
        self._parts = parts
        self.names = names
        self._options = options
        self._columns = columns
        self._checked = None if options.unique_ids == "trusted" else columns.id
        self._reading: _Reading | None = None

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
        found = expand_patterns(names)
        return cls(parts_of(found, options.format, limits), options, columns, found)

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
        """Close the part that is being read; remove copies of stdin and pipes."""
        self._leave()
        for part in self._parts:
            part.close()

    def check(self) -> None:
        """Open everything and look for the columns, so that mistakes show before a model is loaded.

        :raises InputError: about the first part that lacks one, cannot be read, or holds a type without a
            meaning in JSON.
        """
        for part in self._parts:
            part.check(self._columns)

    def column_names(self) -> list[str]:
        """List the columns that every part has; of JSON and Python rows those that the first rows show."""
        found = []
        for part in self._parts:
            part.check(columns := AllColumns())
            found.append(columns.there)
        return [name for name in dict.fromkeys(found[0]) if all(name in other for other in found)] if found else []

    def carrying(self, carry: Sequence[str]) -> Source:
        """Return the same rows with these columns carried."""
        return Source(self._parts, self._options, replace(self._columns, carry=tuple(carry)), self.names)

    def rows(self, start: int = 0) -> Iterator[SourceRow]:
        """Go through the rows that skip, limit and shard leave, in bounded memory.

        :param start: leave out rows with a smaller index, as a job does that continues. Without an id column they are
            passed over fast; with one, their ids are read, so that a duplicate is found wherever the job began.
        :raises InputError: if a part cannot be read to its end; it names the last whole row.
        """
        options, seen = self._options, IdSet() if self._checked is not None else None
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
                    row = _row(part, place, picked, before, _repeats(part, place, picked.id, seen))
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
        return len(self._options.indices(total))

    def _remember(self, part: InputPart, rows: int, seen: IdSet) -> None:
        """Go through the ids of a part's first rows, exactly as if the rows were returned."""
        for place, picked in part.rows(Columns(id=self._columns.id), RowSelection()):
            if rows == 0:
                return
            rows -= 1
            assert picked is not None
            _repeats(part, place, picked.id, seen)

    @property
    def splittable(self) -> bool:
        """Whether other processes can open the same input by its names, and read stretches of it."""
        return all(part.splittable for part in self._parts)

    @property
    def parts(self) -> int:
        """How many files, or folders of a saved dataset, the input has."""
        return len(self._parts)

    @property
    def rows_needed(self) -> int | None:
        """How many rows at the start of the input all that is read lies in; None: all of them."""
        return None if self._options.limit is None else self._options.skip + self._options.limit

    def index(self, part: int) -> PartIndex:
        """Go through a part once, for :meth:`plan`. Any process that opened the same names may do it.

        :raises InputError: as :meth:`rows`.
        """
        return self._parts[part].index(self._checked, self.rows_needed)

    def plan(self, indexes: Sequence[PartIndex], rows_per_shard: int) -> InputPlan:
        """Cut the rows of :meth:`rows` into stretches.

        :param indexes: what :meth:`index` returned for each part, from the first on; the parts behind
            `rows_needed` may be left out.
        :raises ValueError: if parts are left out that are needed.
        """
        needed = self.rows_needed
        enough = needed is not None and sum(index.rows for index in indexes) >= needed
        if len(indexes) != self.parts and not enough:
            raise ValueError(f"{len(indexes)} of {self.parts} parts have an index")
        labels = [part.label for part in self._parts]
        return InputPlan(indexes, labels, self._options, rows_per_shard)

    def read(self, stretch: Stretch) -> list[SourceRow]:
        """Read the rows of a stretch, exactly as :meth:`rows` yields them.

        The part that holds the last of them stays open: a stretch further on is read from there.

        :raises InputError: if a file cannot be read, or is not what it was when it was named.
        """
        found: list[SourceRow] = []
        number, row, first, mark = stretch.part, stretch.row, stretch.first, stretch.mark
        try:
            while number < self.parts:
                part = self._parts[number]
                reading = self._reach(number, row, first - row, mark)
                before = reading.take.before
                for place, picked in reading.rows:
                    index = before + reading.row
                    reading.row += 1
                    if picked is not None:
                        found.append(_row(part, place, picked, index, stretch.renamed.get(index)))
                        if index == stretch.last:
                            part.unchanged()
                            return found
                number, row, first, mark = number + 1, 0, before + reading.row, None
            raise InputError(f"{self._parts[-1].label}: has fewer rows than before; was it changed?")
        except BaseException:
            self._leave()
            raise

    def _reach(self, part: int, row: int, before: int, mark: Mark | None) -> _Reading:
        """Return the open part if row `row` of this part is not far on in it; else open the part."""
        begun, start, known = self._reading, 0 if mark is None else mark.row, self._parts[part]
        if known.any_row:
            start, mark = row - FARTHEST, Mark(row, 0, 0)
        if begun is None or begun.part != part or not start <= begun.row <= row:
            self._leave()
            shard, shards = self._options.part
            take = RowSelection(row, shard, shards, before, mark)
            rows = cast("Generator[ReadRow]", known.rows(self._columns, take))
            begun = self._reading = _Reading(part, 0 if mark is None else mark.row, take, rows)
        begun.take.skip = row
        return begun

    def _leave(self) -> None:
        if self._reading is not None:
            self._reading.rows.close()
            self._reading = None


FARTHEST = 1 << 20
"""How many rows are passed over in an open file of which reading can begin at any row."""


@dataclass
class _Reading:
    """A part that is open.

    :param part: its number.
    :param row: the number in the part of the row that comes next.
    :param take: which rows are parsed.
    :param rows: the rows from there on.
    """

    part: int
    row: int
    take: RowSelection
    rows: Generator[ReadRow]


def _repeats(part: InputPart, place: int, id: str | None, seen: IdSet | None) -> int | None:
    """Remember a row's id, or the one it gets instead; return the apostrophes of the latter, None for the former."""
    if seen is None or (id is not None and seen.add(id)):
        return None
    made, count = f"{part.label}:{place}", 0
    while not seen.add(made + "'" * count):
        count += 1  # a hostile file has this very id in a row of its own
    return count


def _row(part: InputPart, place: int, picked: ParsedRow, index: int, repeats: int | None) -> SourceRow:
    """Make a row of what was parsed.

    :param repeats: None if no row before it has its id, else the apostrophes that the one it gets instead ends in.
    """
    problem = picked.example if isinstance(picked.example, InputError) else None
    id = picked.id
    if id is not None and repeats is not None:
        problem = problem or InputError(f"the id '{for_message(id, 80)}' was there before")
        id = None
    if id is None:
        id = f"{part.label}:{place}" + "'" * (repeats or 0)
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
