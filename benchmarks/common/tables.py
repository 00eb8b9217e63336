"""Results as lines of text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline_kit.bench.machine import paired_ratio

__all__ = ["Measurement", "markdown", "plain", "rows_of"]

Measurement = dict[str, Any]
"""One table: ``name``, ``title``, ``kind`` and what `kind` says, see README.md. JSON values only."""

COLUMNS = ("side", "tokens/s", "texts/s", "the first is", "of limit", "padding", "largest difference", "same label")


def rows_of(measurement: Measurement) -> tuple[Sequence[str], list[list[str]]]:
    """Return a measurement's columns and its cells."""
    if measurement["kind"] != "sides":
        return measurement["columns"], [[_cell(value) for value in row] for row in measurement["rows"]]
    report = measurement["report"]
    first = report["sides"][0]
    results = {ratio["other"]: ratio["results"] for ratio in report["ratios"]}
    return COLUMNS, [_side(first, side, results.get(side["name"])) for side in report["sides"]]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Write a table; the first column is aligned left, the others right."""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "|".join(["---", *["---:"] * (len(columns) - 1)]) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def plain(result: Mapping[str, Any]) -> Iterator[str]:
    """Write a result for a terminal."""
    for measurement in result["measurements"]:
        columns, rows = rows_of(measurement)
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        yield ""
        yield measurement["title"]
        for row in (columns, *rows):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            yield "  " + "  ".join(cells).rstrip()
        for name, why in measurement.get("left_out", {}).items():
            yield f"  {name}: {why}"
        for note in measurement.get("report", measurement).get("notes", ()):
            yield f"  note: {note}"
    for note in result["notes"]:
        yield f"note: {note}"


def _side(first: Mapping[str, Any], side: Mapping[str, Any], results: Mapping[str, Any] | None) -> list[str]:
    speed = side["tokens_per_second"]
    share = side["matrix_limit"]["share"]
    exact = side["pipeline"].get("device", {}).get("dtype") == "float32" and "int8" not in side["name"]
    ratio = paired_ratio(first["seconds"]["rounds"], side["seconds"]["rounds"])
    return [
        side["name"],
        f"{speed['median']:,.0f} ({speed['q1']:,.0f} to {speed['q3']:,.0f})",
        f"{side['texts_per_second']['median']:,.1f}",
        "" if results is None else f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})",
        _percent(share) if exact or "bfloat16" in side["name"] else "",
        _percent(side["padding_share"]),
        "" if results is None else _difference(results["largest_score_difference"]),
        "" if results is None else _percent(results.get("same_label")),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _difference(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else "" if value is None else str(value)
