"""The report of ``tune`` as a table for a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline_kit.bench.numbers import counted
from pipeline_kit.cli.streams import stdout
from pipeline_kit.errors import shorten

__all__ = ["print_trials"]

_ENGINE_WIDTH = 21
_COLUMNS = ("budget", "thr", "texts/s", "tokens/s", "ratio", "same", "diff")


def print_trials(report: Mapping[str, Any]) -> None:
    """Print what was tried, the fastest first, then what may not be chosen, then what did not run."""
    console = Console(file=stdout())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("engine", overflow="fold", min_width=_ENGINE_WIDTH)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for trial in sorted(report["trials"], key=_order):
        style = "bold" if trial["chosen"] else "dim" if trial["problem"] or trial["excluded"] else None
        table.add_row(Text(_engine(trial)), *_cells(trial), style=style)
    console.print(table)
    for line in _lines(report):
        console.print(Text(shorten(line, 1000)), soft_wrap=True)


def _order(trial: Mapping[str, Any]) -> tuple[bool, bool, float]:
    ratio = 0.0 if trial["ratio"] is None else trial["ratio"]["median"]
    return trial["problem"] is not None, trial["excluded"] is not None, -ratio


def _cells(trial: Mapping[str, Any]) -> list[str]:
    rows = trial["max_rows"]
    budget = trial["max_tokens"] or (f"{rows} rows" if rows else None)
    speed = [trial[name] and f"{trial[name]['median']:,.0f}" for name in ("texts_per_second", "tokens_per_second")]
    ratio, same, difference = trial["ratio"], trial["agreement"], trial["largest_difference"]
    return [
        "" if budget is None else f"{budget:,}" if isinstance(budget, int) else budget,
        str(trial["threads"] or ""),
        *(text or "" for text in speed),
        "" if ratio is None else f"{ratio['median']:.2f}{'*' if trial['final'] else ''}",
        "" if same is None else f"{same:.1%}",
        "" if difference is None else f"{difference:.1e}",
    ]


def _engine(trial: Mapping[str, Any]) -> str:
    """Name the engine without the prefixes of its options, and say why it may not be chosen."""
    words = shorten(trial["engine"]).split(" ")
    name = " ".join(re.sub(r"^(model=|model\.|device\.)", "", word) for word in words)
    if trial["chosen"]:
        return f"{name}: take this"
    reason = trial["problem"] or trial["excluded"]
    return f"{name}: {shorten(reason)}" if reason else name


def _lines(report: Mapping[str, Any]) -> list[str]:
    texts, machine, floors = report["texts"], report["machine"], report["floors"]
    source = "given texts" if texts["source"] == "given" else f"texts of the sample '{texts['source']}'"
    limit = "" if floors["tolerance"] is None else f", a difference of {floors['tolerance']:g} at the most"
    return [
        "ratio: how many times as fast as your config; *: measured anew, side by side, and chosen among; "
        "same: texts with the same answer; diff: the largest difference of a number",
        f"{texts['rows']:,} {source}, {texts['different']:,} different; answers are held against "
        f"{report['reference']}: at least {floors['min_agreement']:.1%} the same{limit}",
        f"{machine['gpu'] or machine['processor']} ({machine['capability']}), "
        f"{counted(machine['processors'], 'processor')}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, pipeline-kit {machine['pipeline_kit']}, {machine['date']}",
        *(f"note: {note}" for note in report["notes"]),
    ]
