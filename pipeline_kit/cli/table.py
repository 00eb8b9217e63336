"""A table of results for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline_kit.cli.rows import Row
from pipeline_kit.cli.streams import stdout
from pipeline_kit.errors import shorten
from pipeline_kit.types import Example

__all__ = ["print_table"]

CELL = 72


def print_table(rows: Sequence[Row], title: str | None = None) -> None:
    """Print `rows`, one column for each key that any of them has.

    Cells are plain text: markup and control characters of a row never reach the terminal.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row.value))
    inputs = any(row.example is not None for row in rows)
    console = Console(file=stdout())
    if title is not None:
        console.print(Text(shorten(title, 1000)), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    if inputs:
        table.add_column("input", overflow="fold")
    for key in keys:
        numbers = all(isinstance(row.value.get(key, 0.0), int | float) for row in rows)
        table.add_column(Text(shorten(key, CELL)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        cells = [Text(_input(row.example))] if inputs else []
        style = "red" if row.failure is not None else None
        table.add_row(*cells, *(Text(_cell(row.value[key]) if key in row.value else "") for key in keys), style=style)
    console.print(table)


def _input(example: Example | None) -> str:
    if example is None:
        return ""
    if isinstance(example, Mapping):
        return shorten(" | ".join(str(value) for value in example.values()), CELL)
    return shorten(example, CELL)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping) and value.keys() == {"stage", "type", "message"}:
        return shorten(f"{value['stage']}: {value['type']}: {value['message']}", 2 * CELL)
    if isinstance(value, Mapping):
        return shorten(" ".join(f"{key}={_cell(item)}" for key, item in value.items()), 2 * CELL)
    if isinstance(value, list):
        shown = ", ".join(_cell(item) for item in value[:4])
        return shorten(shown, 2 * CELL) + (f", … ({len(value)})" if len(value) > 4 else "")
    return shorten(value if isinstance(value, str) else str(value), 2 * CELL)
