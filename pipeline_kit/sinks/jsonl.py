"""JSON lines: strict JSON, a row a line, any keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

from pipeline_kit.sinks.base import Append, Row, Schema, StreamFormat, Write
from pipeline_kit.sinks.json_text import json_line
from pipeline_kit.sinks.refused import Refused

__all__ = ["Jsonl"]


@final
class Jsonl(StreamFormat):
    """Writes rows as they are: nothing in one row depends on another."""

    suffix = ".jsonl"
    chunk_rows = 1_000

    def schema(self, rows: Sequence[Row]) -> Schema | None:
        """Give None: lines need not agree."""
        del rows
        return None

    @contextmanager
    def stream(self, write: Write, schema: Schema | None) -> Iterator[Append]:
        """Write a line a row."""
        del schema

        def append(rows: Sequence[Row]) -> None:
            refused = Refused()
            lines: list[str] = []
            for index, row in enumerate(rows):
                try:
                    lines.append(json_line(row if isinstance(row, dict) else dict(row)) + "\n")
                except (TypeError, ValueError, RecursionError) as error:
                    refused.add(index, error)
            refused.check()
            write("".join(lines).encode("utf-8"))

        yield append
