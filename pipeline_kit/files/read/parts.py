"""Options of the group ``input``: how rows are read from files."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, final

from pipeline_kit.contract.options import option
from pipeline_kit.errors import InputError
from pipeline_kit.files.read.columns import EVERY, Columns, ParsedRow, id_hash

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)


@dataclass
class InputConfig:
    """Options of the group ``input``.

    ``skip`` and ``limit`` cut a stretch out of the whole input; ``shard`` takes a part of that stretch.
    What becomes of a row, its index and its id depend on none of the three.
    """

    format: str | None = option(
        None,
        "the format of every file: text, jsonl, csv, tsv, parquet, arrow, or a plugin's; null: by each file's ending, "
        "else by its first bytes, else text",
    )
    fields: dict[str, str] = option(
        {}, "take a field of the task from another column: {text: review_body}", secret=False
    )
    id: str | None = option(
        None, "the column with each row's id, which no two rows may share; null: file and line, such as reviews.csv:17"
    )
    unique_ids: Literal["checked", "trusted"] = option(
        "checked", "checked: of rows with the same id all but the first fail; trusted: ids are not compared"
    )
    carry: list[str] = option([], "columns copied into the output; [*]: all whose names no column of the output has")
    skip: int = option(0, "rows left out at the start", minimum=0)
    limit: int | None = option(None, "the most rows taken after that; null: all", minimum=0)
    shard: str | None = option(
        None, "one part of n, as 'i/n' with i from 0: the rows whose number in the whole input leaves i divided by n"
    )
    max_decompressed_bytes: int = option(100 << 30, "the most bytes that one compressed file may unpack to", minimum=1)
    max_ratio: float = option(
        200.0, "the most bytes unpacked for each byte of a compressed file, once it has unpacked to 16 MiB", minimum=1
    )

    def __post_init__(self) -> None:
        """Reject a shard number out of range.

        :raises ValueError: saying what a shard is.
        """
        if self.shard is not None:
            found = _SHARD.fullmatch(self.shard)
            if found is None or int(found[1]) >= int(found[2]):
                raise ValueError(f"shard '{self.shard[:40]}' is not i/n with i from 0 to n - 1, such as 0/4 or 3/4.")
        if len(set(self.carry)) < len(self.carry):
            raise ValueError("carry names a column twice.")
        if EVERY in self.carry and len(self.carry) > 1:
            raise ValueError("carry=[*] means all columns; write it without others.")

    @property
    def part(self) -> tuple[int, int]:
        """The shard's i and n; 0 and 1 for all rows."""
        i, _, n = (self.shard or "0/1").partition("/")
        return int(i), int(n)

    def indices(self, total: int) -> range:
        """Return the numbers of the rows that are taken of `total`."""
        end = total if self.limit is None else min(total, self.skip + self.limit)
        shard, shards = self.part
        return range(self.skip + (shard - self.skip) % shards, end, shards)


ReadRow = tuple[int, ParsedRow | None]
"""Where a row is in its part, and what was taken of it; None if it is not among those taken."""


class Mark(NamedTuple):
    """A row of a part at which reading can begin.

    :param row: its number in the part, from 0.
    :param byte: where its line begins, or blank ones before it.
    :param line: how many lines end before that byte.
    """

    row: int
    byte: int
    line: int


MARK_ROWS = 512
"""How many rows lie between two marks."""


@dataclass(frozen=True)
class PartIndex:
    """What one pass over a part finds out. Its bytes hold unsigned numbers of 64 bits.

    :param rows: how many rows it has, or as many as were asked for.
    :param marks: for the rows 512, 1024 and so on the byte and the line of their :class:`Mark`; empty for parts that
        are read from their start, or can be read from any row.
    :param ids: the hash of each row's id; None if ids are not compared.
    :param places: with ids: pairs of a row and its place, for each row whose place is not the one after the row before.
    """

    rows: int
    marks: bytes = b""
    ids: bytes | None = None
    places: bytes = b""


@final
class PartIds:
    """The hashes of the ids of a part's rows, and the rows' places."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._hashes = array("Q")
        self._places = array("Q")
        self._next = -1

    def add(self, place: int, id: str | None) -> None:
        """Add the next row."""
        if place != self._next:
            self._places.extend((len(self._hashes), place))
        self._next = place + 1
        self._hashes.append(id_hash(f"{self._label}:{place}" if id is None else id))

    def index(self, marks: bytes = b"") -> PartIndex:
        """Return what is known of the part."""
        return PartIndex(len(self._hashes), marks, self._hashes.tobytes(), self._places.tobytes())


@dataclass(slots=True)
class RowSelection:
    """Which rows of a part are taken, by their number in it from 0.

    :param skip: those from this one on; who reads may raise it on the way.
    :param shard: of these, the ones whose number in the whole input leaves this,
    :param shards: divided by this.
    :param before: how many rows stand before the part.
    :param mark: where reading begins; the rows before it are not even counted.
    """

    skip: int = 0
    shard: int = 0
    shards: int = 1
    before: int = 0
    mark: Mark | None = None

    def __contains__(self, number: int) -> bool:
        """Return whether row `number` is taken."""
        return number >= self.skip and (self.before + number) % self.shards == self.shard


@contextmanager
def as_input_error(label: str) -> Iterator[None]:
    """Put the name of a part before what an InputError says."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


class InputPart(ABC):
    """A file, a saved dataset, or Python rows.

    :param label: its name in ids and messages.
    :param unit: what a row's place counts: ``line`` from 1, or ``row`` from 0.
    :param splittable: whether another process can open it by its name.
    :param any_row: whether reading can begin at any row, so that of a mark its row is enough.
    """

    label: str
    unit: str
    splittable = False
    any_row = False

    @abstractmethod
    def check(self, columns: Columns) -> None:
        """Check what takes no time, such as a missing column.

        :raises InputError: about the part, whose label opens the message.
        """

    @abstractmethod
    def rows(self, columns: Columns, take: RowSelection) -> Iterator[ReadRow]:
        """Go through all rows in order from the mark on, in bounded memory.

        A bad row is what was parsed of an InputError. Each call begins anew.

        :raises InputError: about the part, such as a stream that is cut off; it names the last whole row.
        """

    @abstractmethod
    def count(self, read: bool) -> int | None:
        """Count the rows; None if that is not known.

        :param read: whether the part may be read through for that, where that is fast.
        """

    def index(self, id: str | None, most: int | None) -> PartIndex:
        """Go through the part once for its rows, its marks and, with a column `id`, the ids.

        :param most: stop after this many rows; None: at the end.
        :raises InputError: as :meth:`rows`.
        """
        if id is None and (rows := self.count(read=True)) is not None:
            return PartIndex(rows if most is None else min(rows, most))
        ids = PartIds(self.label)
        for place, picked in islice(self.rows(Columns(id=id), RowSelection()), most):
            assert picked is not None, "all rows were asked for"
            ids.add(place, picked.id)
        return ids.index()

    @abstractmethod
    def identity(self) -> list[dict[str, Any]]:
        """Describe the content as JSON values, so that a change of it can be told."""

    def unchanged(self) -> None:  # noqa: B027 - what is in memory stays as it is
        """See that its files are what they were when they were named, for a reader that stops before their end.

        :raises InputError: if not.
        """

    def close(self) -> None:  # noqa: B027 - most parts hold nothing
        """Release what is held; the part cannot be read again."""
