"""What the tables of the command line are made of: rich for figures and results, plain columns for lists."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from textwrap import wrap as folded_text
from typing import TYPE_CHECKING, Any

from pipeline_kit.cli.stdio import is_terminal, stdout
from pipeline_kit.errors import for_message

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CELL = 60
WIDE = 10_000
_NARROWEST = 12


def columns(rows: Sequence[Sequence[str]], indent: str = "", whole: int = 1) -> str:
    """Lay `rows` out in columns, two spaces apart, as wide as the terminal; another program gets each row in one line.

    :param whole: how many columns, from the left, are never folded: names to copy.
    """
    shown = [[for_message(cell, 1000) for cell in row] for row in rows]
    if not shown:
        return ""
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    screen = shutil.get_terminal_size().columns if is_terminal(stdout()) else WIDE
    room = screen - len(indent) - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths[whole:], default=0) > _NARROWEST:
        widths[widths.index(max(widths[whole:]), whole)] -= 1
    lines = []
    for row in shown:
        cells = [
            folded_text(cell, width) if len(cell) > width else [cell] for cell, width in zip(row, widths, strict=True)
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)))
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


def console(folded: bool = True) -> Console:
    """Return the console of the results; lines that are not `folded` go whole to another program."""
    from rich.console import Console

    return Console(file=stdout()) if folded or is_terminal(stdout()) else Console(file=stdout(), width=WIDE)


def table(first: str | None, *names: str, wrap: bool = False, left: Sequence[str] = (), **options: Any) -> Table:
    """Begin a table: a column of words that may be folded, then `names`, whose cells stand to the right.

    :param first: the name of the first column; None for none.
    :param wrap: whether cells of the others may be folded too.
    :param left: those of `names` whose cells stand to the left.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, **options)
    if first is not None:
        made.add_column(first, overflow="fold")
    for name in names:
        side = "left" if name in left else "right"
        made.add_column(Text(for_message(name, 72)), justify=side, overflow="fold", no_wrap=not wrap)  # type: ignore[arg-type]
    return made


def print_lines(lines: Iterable[str], on: Console, notes: Iterable[str] = ()) -> None:
    """Print lines below a table, whole: a terminal folds them itself."""
    from rich.text import Text

    for line in (*lines, *(f"note: {note}" for note in notes)):
        on.print(Text(for_message(line, 1000)), soft_wrap=True)


def ratio_text(ratio: Mapping[str, float], to: str = "-") -> str:
    """Write how many times as fast something was, with the smallest and the largest of all rounds."""
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f}{to}{ratio['max']:.2f})"


def machine_line(machine: Mapping[str, Any], count: str) -> str:
    """Name what was measured on, with `count` of its threads or processors, and the versions."""
    return (
        f"{machine['gpu'] or machine['processor']} ({machine['capability']}), {count}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, pipeline-kit {machine['pipeline_kit']}, {machine['date']}"
    )
