"""The report of ``evaluate`` as tables, plain where nobody sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline_kit.cli.streams import is_terminal, stdout
from pipeline_kit.errors import shorten

__all__ = ["headline", "print_report", "print_sweep"]

NAME = 60
WIDE = 10_000
MOST_LABELS = 12  # of a matrix for people; of more labels the commonest mistakes say more
MOST_PAIRS = 10
_COUNTS = ("rows", "failed", "truncated", "rows_per_second")


def print_report(report: Mapping[str, Any]) -> None:
    """Print the counts, the metrics, those of each label, what was taken for what, and the notes."""
    console, metrics = _console(), report["metrics"]
    console.print(Text(f"{report['task']}, {shorten(report['checkpoint'], 200)}"), soft_wrap=True)
    table = _table("metric", "value", "95 % interval")
    for name, value in _figures(metrics).items():
        table.add_row(Text(_spaced(name)), _number(value), _interval(metrics.get(f"{name}_interval")))
    if metrics:
        console.print(table)
    for part in (_labels(metrics.get("per_label")), _confusion(metrics.get("confusion"))):
        if part is not None:
            console.print(part)
    counts = [f"{report['rows']:,} row{'s' * (report['rows'] != 1)}"]
    counts += [f"{report[name]:,} {name}" for name in ("failed", "truncated") if report[name]]
    console.print(Text(f"{', '.join(counts)} in {report['seconds']:.2f} s ({report['rows_per_second']:,.0f} rows/s)"))
    for note in report["notes"]:
        console.print(Text(f"note: {shorten(note, 1000)}"), soft_wrap=True)


def print_sweep(reports: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each combination, and each note once."""
    console = _console()
    rows = [headline(report) for report in reports]
    there = dict.fromkeys(name for row in rows for name in row)
    names = [*(name for name in there if name not in _COUNTS), *(name for name in _COUNTS if name in there)]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("overrides", overflow="fold")
    for name in names:
        table.add_column(_spaced(name), justify="right", no_wrap=True)
    for report, row in zip(reports, rows, strict=True):
        overrides = Text(shorten(" ".join(report["overrides"]) or "no overrides", 200))
        table.add_row(overrides, *(row.get(name, "") for name in names))
    console.print(table)
    for note in dict.fromkeys(note for report in reports for note in report["notes"]):
        console.print(Text(f"note: {shorten(note, 1000)}"), soft_wrap=True)


def headline(report: Mapping[str, Any]) -> dict[str, str]:
    """Give what fits into one line, written out: of precision, recall and F1 the last, of counts those over 0."""
    metrics = report["metrics"]
    found = {}
    for name, value in _figures(metrics).items():
        if name.endswith(("precision", "recall")):
            continue
        interval = _interval(metrics.get(f"{name}_interval"))
        found[name] = _number(value) + (f" ({interval})" if interval else "")
    counts = {name: f"{report[name]:,}" for name in ("rows", "failed", "truncated") if report[name]}
    return found | counts | {"rows_per_second": f"{report['rows_per_second']:,.0f}"}


def _console() -> Console:
    # Lines for another program are never folded.
    return Console(file=stdout()) if is_terminal(stdout()) else Console(file=stdout(), width=WIDE)


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if value is None or isinstance(value, int | float)}


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(Text(shorten(name, NAME)), justify="right", overflow="fold")
    return table


def _labels(rows: Mapping[str, Mapping[str, Any]] | None) -> Table | None:
    if not rows:
        return None
    table = _table("label", "precision", "recall", "f1", "support")
    for name, row in rows.items():
        numbers = (_number(row[key]) for key in ("precision", "recall", "f1"))
        table.add_row(Text(shorten(name, NAME)), *numbers, f"{row['support']:,}")
    return table


def _confusion(found: Mapping[str, Any] | None) -> Table | None:
    if found is None or (found["counts"] and len(found["labels"]) <= MOST_LABELS):
        return None if found is None else _matrix(found)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("label", "predicted", "rows"):
        table.add_column(name, overflow="fold", justify="right" if name == "rows" else "left")
    for pair in found["pairs"][:MOST_PAIRS]:
        table.add_row(Text(_name(pair["gold"])), Text(_name(pair["predicted"])), f"{pair['count']:,}")
    return table if found["pairs"] else None


def _matrix(found: Mapping[str, Any]) -> Table:
    table = _table("label \\ predicted", *(_name(name) for name in found["predicted"]))
    for name, counts in zip(found["labels"], found["counts"], strict=True):
        table.add_row(Text(_name(name)), *(f"{count:,}" for count in counts))
    return table


def _name(name: str | None) -> str:
    return "(none)" if name is None else shorten(name, NAME)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _interval(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:.4f}-{found[1]:.4f}"


def _spaced(name: str) -> str:
    return name.replace("_", " ").replace("rows per second", "rows/s").replace("ndcg at ", "ndcg@")
