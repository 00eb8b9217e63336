"""The report of ``bench`` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline_kit.bench.numbers import counted
from pipeline_kit.cli.streams import stdout
from pipeline_kit.errors import shorten

__all__ = ["print_report"]


def print_report(report: Mapping[str, Any]) -> None:
    """Print how fast each side was, what it needed for that, and what to know about the figures."""
    console = Console(file=stdout())
    ratios = [None, *report["ratios"]]
    speed, rest = _table("texts/s", "tokens/s"), _table("p50 ms", "p95 ms", "p99 ms", "peak MiB", "padding", "of limit")
    if report["ratios"]:
        speed.add_column("the first is", justify="right", no_wrap=True)
    for side, ratio in zip(report["sides"], ratios, strict=True):
        name = Text(shorten(side["name"], 200))
        shown = [] if ratio is None else [_ratio(ratio["first_is_faster_by"])]
        speed.add_row(name, f"{side['texts_per_second']['median']:,.0f}", _speed(side["tokens_per_second"]), *shown)
        rest.add_row(name, *_needs(side))
    console.print(speed)
    console.print(rest)
    for line in _lines(report):
        console.print(Text(shorten(line, 1000)), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("side", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _needs(side: Mapping[str, Any]) -> list[str]:
    latency, padding, limit = side["latency_ms"], side["padding_share"], side["matrix_limit"]["share"]
    return [
        *(f"{latency[name]:,.2f}" for name in ("p50", "p95", "p99")),
        f"{side['memory']['peak_bytes'] / 2**20:,.0f}",
        "?" if padding is None else f"{padding:.1%}",
        "?" if limit is None else f"{limit:.0%}",
    ]


def _speed(speed: Mapping[str, float]) -> str:
    return f"{speed['median']:,.0f} ({speed['q1']:,.0f}-{speed['q3']:,.0f})"


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"


def _lines(report: Mapping[str, Any]) -> list[str]:
    texts, machine = report["texts"], report["machine"]
    source = "given texts" if texts["source"] == "given" else f"texts of the sample '{texts['source']}'"
    single = ", ".join(str(side["latency_ms"]["texts"]) for side in report["sides"])
    lines = [
        f"{texts['rows']:,} {source}, {texts['characters']:,} characters; {counted(report['repeats'], 'round')}, "
        f"median (quartiles); ms for a text alone, over {single} of them",
        f"{machine['gpu'] or machine['processor']} ({machine['capability']}), {counted(machine['threads'], 'thread')}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, pipeline-kit {machine['pipeline_kit']}, "
        f"{machine['date']}",
    ]
    for limit in report["matrix_limits"]:
        lines.append(
            f"matrix product of this machine: {limit['gflops']:,.0f} GFLOP/s "
            f"({limit['device']} {limit['dtype']}, {counted(limit['threads'], 'thread')}, {limit['kernel']})"
        )
    for ratio in report["ratios"]:
        difference, same = ratio["results"]["largest_score_difference"], ratio["results"]["same_label"]
        if difference is not None:
            labels = "" if same is None else f", same label in {same:.1%}"
            lines.append(f"'{ratio['other']}' scores differ from the first's by {difference:.1e} at the most{labels}")
    return [*lines, *(f"note: {note}" for note in report["notes"])]
