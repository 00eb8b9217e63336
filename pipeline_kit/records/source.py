"""The rows of a job: from any files or Python objects, numbered, with ids, in one order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pipeline_kit.errors import InputError, UsageError, shorten
from pipeline_kit.records.columns import Columns, Picked
from pipeline_kit.records.extras import need
from pipeline_kit.records.ids import SeenIds
from pipeline_kit.records.names import parts_of
from pipeline_kit.records.options import InputConfig
from pipeline_kit.records.part import Part, Take
from pipeline_kit.records.python_part import PythonPart
from pipeline_kit.records.unpack import Limits
from pipeline_kit.types import Example, RowFailure

__all__ = ["Source", "SourceRow"]


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
    """The input of a job. What it gives for a row depends on the input alone, so a job can go on at any row."""

    def __init__(self, parts: Sequence[Part], options: InputConfig, columns: Columns) -> None:
        """Put `parts` one behind another; see :meth:`open` and :meth:`of`."""
        self._parts = parts
        self._options = options
        self._columns = columns

    @classmethod
    def open(cls, names: Sequence[str | Path], options: InputConfig, takes: Sequence[str]) -> Source:
        """Name files, patterns (``data/*.jsonl``), folders of saved datasets, and ``-`` for stdin.

        Stdin and named pipes are first copied, to their end, to a temporary file without a name.

        :param takes: the task's fields, see :class:`~pipeline_kit.pipeline_config.TaskConfig`.
        :raises InputError: if something is not there, or no format that is read here.
        :raises UsageError: if ``input.fields`` names a field the task does not have, or a library is not installed.
        """
        columns = Columns.of(takes, options.fields, options.id, options.carry)
        if isinstance(names, str | Path):
            names = [names]
        if not names:
            raise UsageError("no input was named")
        limits = Limits(options.max_decompressed_bytes, options.max_ratio)
        return cls(parts_of(names, options.format, limits), options, columns)

    @classmethod
    def of(cls, rows: Iterable[Any], options: InputConfig, takes: Sequence[str]) -> Source:
        """Take texts and mappings from a list or any iterable, or the rows of a ``datasets`` object.

        :raises UsageError: as :meth:`open`, or for something that gives no rows.
        """
        columns = Columns.of(takes, options.fields, options.id, options.carry)
        if isinstance(rows, str | bytes | Mapping):
            several = isinstance(rows, Mapping) and all(hasattr(part, "features") for part in rows.values())
            if several:
                raise UsageError(f"the input holds several datasets; take one: {shorten(', '.join(map(str, rows)))}")
            raise UsageError("the input is one row; put it in a list")
        if all(hasattr(rows, name) for name in ("_fingerprint", "with_format", "features", "__len__")):
            module = need("pipeline_kit.records.dataset_part", "pyarrow", "reading a dataset")
            return cls([module.DatasetPart(rows)], options, columns)
        if not isinstance(rows, Iterable):
            raise UsageError(f"the input is {type(rows).__name__}, which gives no rows")
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

        :param start: leave out rows with a smaller index, as a job does that goes on. Without an id column they are
            passed over fast; with one, their ids are read, so that a duplicate is found wherever the job began.
        :raises InputError: if a part cannot be read to its end; it names the last whole row.
        """
        options, seen = self._options, SeenIds() if self._columns.id is not None else None
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
            take = Take(skip, shard, shards, before) if seen is None else Take(skip)
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
        """Count the rows that :meth:`rows` gives; None if finding out takes long.

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

    def _remember(self, part: Part, rows: int, seen: SeenIds) -> None:
        """Go through the ids of a part's first rows, exactly as if the rows were given."""
        for place, picked in part.rows(self._columns.only_id, Take()):
            if rows == 0:
                return
            rows -= 1
            assert picked is not None
            _row(part, place, picked, 0, seen)


def _row(part: Part, place: int, picked: Picked, index: int, seen: SeenIds | None) -> SourceRow:
    problem = picked.example if isinstance(picked.example, InputError) else None
    id = picked.id
    if id is not None and seen is not None and not seen.add(id):
        problem = problem or InputError(f"the id '{shorten(id, 80)}' was there before")
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
