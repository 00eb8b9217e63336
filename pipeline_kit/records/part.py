"""What every kind of input is to :class:`~pipeline_kit.records.source.Source`: parts, one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline_kit.records.columns import Columns, Picked

__all__ = ["Part", "Place", "Take"]

Place = tuple[int, Picked | None]
"""Where a row is in its part, and what was taken of it; None if it is not among those taken."""


@dataclass(frozen=True, slots=True)
class Take:
    """Which rows of a part are taken, by their number in it from 0.

    :param skip: those from this one on.
    :param shard: of these, the ones whose number in the whole input leaves this,
    :param shards: divided by this.
    :param before: how many rows stand before the part.
    """

    skip: int = 0
    shard: int = 0
    shards: int = 1
    before: int = 0

    def __contains__(self, number: int) -> bool:
        """Tell whether row `number` is taken."""
        return number >= self.skip and (self.before + number) % self.shards == self.shard


class Part(ABC):
    """A file, a saved dataset, or Python rows.

    :param label: its name in ids and messages.
    :param unit: what a row's place counts: ``line`` from 1, or ``row`` from 0.
    """

    label: str
    unit: str

    @abstractmethod
    def check(self, columns: Columns) -> None:
        """Find out what can be found out fast, such as a missing column.

        :raises InputError: about the part, whose label opens the message.
        """

    @abstractmethod
    def rows(self, columns: Columns, take: Take) -> Iterator[Place]:
        """Go through all rows in order, in bounded memory.

        A bad row is given as what was picked of an InputError. Each call begins anew.

        :raises InputError: about the part, such as a stream that is cut off; it names the last whole row.
        """

    @abstractmethod
    def count(self, read: bool) -> int | None:
        """Count the rows; None if that is not known.

        :param read: whether the part may be read through for that, where that is fast.
        """

    @abstractmethod
    def identity(self) -> list[dict[str, Any]]:
        """Describe the content as JSON values, so that a change of it can be told."""

    def unchanged(self) -> None:  # noqa: B027 - what is in memory stays as it is
        """See that its files are what they were when they were named, for a reader that stops before their end.

        :raises InputError: if not.
        """

    def close(self) -> None:  # noqa: B027 - most parts hold nothing
        """Give up what is held; the part cannot be read again."""
