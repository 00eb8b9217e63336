"""Where a report goes: a line of JSON on stdout or in a file, or tables on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline_kit.atomic import atomic_writer
from pipeline_kit.cli.streams import is_terminal, prepare_stdout, print_out, stdout
from pipeline_kit.sinks import json_line

__all__ = ["as_table", "report_writer"]

Show = Callable[[dict[str, Any]], object]


def as_table(format: str | None) -> bool:
    """Tell whether ``--format`` asks for tables; by default a terminal does."""
    return format == "table" or (format is None and is_terminal(stdout()))


@contextmanager
def report_writer(output: Path | None, format: str | None, tables: Callable[[], Show]) -> Iterator[Show]:
    """Give what takes the report; a file that cannot be written is found out before anything is measured.

    :param tables: gives what prints the tables, when they are wanted.
    """
    if output is not None:
        with atomic_writer(output) as file:
            yield lambda report: file.write(json_line(report) + "\n")
    elif as_table(format):
        yield tables()
    else:
        prepare_stdout()
        yield lambda report: print_out(json_line(report))
