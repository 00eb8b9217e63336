"""What the tables of the command line are made of: rich for figures and results, plain columns for lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline_kit.cli.stdio import is_terminal, stdout
from pipeline_kit.errors import for_message

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CELL = 60
WIDE = 10_000


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Lay `rows` out in columns, two spaces apart; the last one is not padded."""
    shown = [[for_message(cell) for cell in row] for row in rows]
    if not shown:
        return ""
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in shown]
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
    :param options: of rich's ``Table``.
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
