"""Options of the group ``input``: how rows are read from files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pipeline_kit.config import option

__all__ = ["InputConfig"]

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)


@dataclass
class InputConfig:
    """Options of the group ``input``.

    ``skip`` and ``limit`` cut a stretch out of the whole input; ``shard`` takes a part of that stretch.
    What becomes of a row, its index and its id depend on none of the three.
    """

    format: Literal["text", "jsonl", "csv", "tsv", "parquet", "arrow"] | None = option(
        None, "the format of every file; null: by each file's ending, else by its first bytes, else text"
    )
    fields: dict[str, str] = option(
        {}, "take a field of the task from another column: {text: review_body}", secret=False
    )
    id: str | None = option(
        None, "the column with each row's id, which no two rows may share; null: file and line, such as reviews.csv:17"
    )
    carry: list[str] = option([], "columns copied into the output")
    skip: int = option(0, "rows left out at the start", minimum=0)
    limit: int | None = option(None, "the most rows taken after that; null: all", minimum=0)
    shard: str | None = option(
        None, "one part of n, as 'i/n' with i from 0: the rows whose number in the whole input leaves i divided by n"
    )
    max_decompressed_bytes: int = option(100 << 30, "the most bytes that one compressed file may unpack to", minimum=1)
    max_ratio: float = option(
        200.0, "the most bytes unpacked for each byte of a compressed file, once it gave 16 MiB", minimum=1
    )

    def __post_init__(self) -> None:
        """Refuse a shard that is none.

        :raises ValueError: saying what a shard is.
        """
        if self.shard is not None:
            found = _SHARD.fullmatch(self.shard)
            if found is None or int(found[1]) >= int(found[2]):
                raise ValueError(f"shard '{self.shard[:40]}' is not i/n with i from 0 to n - 1, such as 0/4 or 3/4.")
        if len(set(self.carry)) < len(self.carry):
            raise ValueError("carry names a column twice.")

    @property
    def part(self) -> tuple[int, int]:
        """The shard's i and n; 0 and 1 for all rows."""
        i, _, n = (self.shard or "0/1").partition("/")
        return int(i), int(n)
