"""JSON lines: strict JSON, a row a line, any keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any, final

from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.write.base import Append, OutputValues, RowErrors, Schema, StreamFormat, Write
from pipeline_kit.files.write.layout import Layout


@final
class Jsonl(StreamFormat):
    """Writes rows as they are: nothing in one row depends on another."""

    suffix = ".jsonl"
    chunk_rows = 1_000

    def schema(self, rows: Sequence[OutputValues]) -> Schema | None:
        """Return None: lines need not agree."""
        del rows
        return None

    @contextmanager
    def stream(self, write: Write, schema: Schema | None) -> Iterator[Append]:
        """Write a line a row."""
        del schema

        def append(rows: Sequence[OutputValues]) -> None:
            refused = RowErrors()
            lines: list[str] = []
            for index, row in enumerate(rows):
                try:
                    lines.append(json_line(row if isinstance(row, dict) else dict(row)) + "\n")
                except (TypeError, ValueError, RecursionError) as error:
                    refused.add(index, error)
            refused.check()
            write("".join(lines).encode("utf-8"))

        yield append


_FORMULA = re.compile(r"'*[=+\-@\t\r\n\0]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_QUOTED = re.compile(r'[",\r\n\0]|\A\s|\s\Z|\A\Z')


@final
class Csv(StreamFormat):
    r"""A header and a line a row: UTF-8 without a byte order mark, lines ended by ``\r\n``."""

    suffix = ".csv"
    chunk_rows = 1_000

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def schema(self, rows: Sequence[OutputValues]) -> Schema | None:
        """Return the header."""
        return {"columns": self._layout.names(rows)}

    @contextmanager
    def stream(self, write: Write, schema: Schema | None) -> Iterator[Append]:
        """Write the header, then a line a row."""
        assert schema is not None, "`schema` returns one"
        names: list[str] = schema["columns"]
        write((",".join(map(csv_cell, names)) + "\r\n").encode("utf-8"))

        def append(rows: Sequence[OutputValues]) -> None:
            refused = RowErrors()
            refused.add_unknown(rows, names)
            text = "".join([_line(index, row, names, refused) for index, row in enumerate(rows)])
            refused.check()
            write(text.encode("utf-8"))

        yield append


def csv_cell(value: Any) -> str:
    """Write one value as a cell, quoted where it must be.

    Null is an empty cell and an empty text a quoted one; numbers and booleans are as in JSON; lists and objects
    are JSON text. A text that a spreadsheet might run as a formula (its first character is one of ``= + - @``, tab,
    line end or NUL, and it is not a plain number such as -0.5) gets an apostrophe before it; so does such a text that
    has apostrophes before it already, which makes it possible to undo this: see :func:`strip_formula_guard`. Sources:
    OWASP ASVS 1.2.10, CWE-1236.

    :raises ValueError: for a number or a text that no CSV can hold: NaN, Infinity, a lone surrogate.
    :raises TypeError: for something that is not a JSON value.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        value.encode("utf-8")
        text = "'" + value if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return repr(float(value))
    else:
        text = json_line(value)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def strip_formula_guard(text: str) -> str:
    """Return the text that :func:`csv_cell` put an apostrophe before; any other text as it is."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _line(index: int, row: OutputValues, names: Sequence[str], refused: RowErrors) -> str:
    cells: list[str] = []
    for name in names:
        try:
            cells.append(csv_cell(row.get(name)))
        except (TypeError, ValueError, RecursionError) as error:
            refused.add(index, error, name)
    # A line with nothing on it would be read as no row at all.
    return (",".join(cells) or '""') + "\r\n"
