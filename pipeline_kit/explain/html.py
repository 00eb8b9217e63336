"""A trace as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline_kit.explain import html_text
from pipeline_kit.explain.html_attention import Room
from pipeline_kit.explain.html_batches import CELLS, BatchView, batch_views
from pipeline_kit.explain.html_charts import Bars, bars
from pipeline_kit.explain.html_compare import Difference, Marks, compare_config, compare_rows, flat, token_marks
from pipeline_kit.explain.html_rows import RowView, fitting, row_view, shown_sequences
from pipeline_kit.explain.trace import RowTrace, Trace
from pipeline_kit.panels import Panel

__all__ = ["to_html"]

_TEMPLATES = Path(__file__).parent / "templates"
_TOKENS = 6_000


@dataclass(frozen=True, slots=True)
class Side:
    """One trace as the page shows it; `name` is A or B where there are two, else ''."""

    name: str
    trace: Trace
    config: tuple[tuple[str, str], ...]
    batches: tuple[BatchView, ...]
    rows: tuple[RowView | None, ...]


def to_html(trace: Trace, other: Trace | None = None) -> str:
    """Draw `trace` as a page: no network, no outside script, style or font; its policy refuses them.

    What is beyond 6,000 tokens (examples, or windows of a single long one), rows of batches beyond 12,000 places and
    small attention weights are left out, each with a note, so that a page stays under some megabytes.

    :param other: a trace of the same examples by another pipeline, shown beside it; what differs is marked.
    :returns: the page; it can be written as UTF-8 whatever the texts hold.
    """
    traces = [trace] if other is None else [trace, other]
    count = max(len(each.rows) for each in traces)
    most = _TOKENS // len(traces)
    fit = [fitting([_length(row) for row in each.rows], most) for each in traces]
    shown = min([count, *(number for number, each in zip(fit, traces, strict=True) if number < len(each.rows))])
    room = Room(sum(_asking(each, shown, most) for each in traces))
    differing, marks = _compared(trace, other, shown)
    sides = [
        Side(
            name="" if other is None else "AB"[number],
            trace=each,
            config=tuple(flat(each.config)),
            batches=batch_views(each, CELLS // len(traces)),
            rows=tuple(
                row_view(each, place, marks[number][place], room, most) if place < len(each.rows) else None
                for place in range(shown)
            ),
        )
        for number, each in enumerate(traces)
    ]
    page = (
        _environment()
        .get_template("page.html")
        .render(
            sides=sides,
            shown=shown,
            left_out=count - shown,
            differing=differing,
            config=() if other is None else compare_config(trace, other),
            **_assets(),
        )
    )
    return html_text.clean(page)


def _compared(
    trace: Trace, other: Trace | None, shown: int
) -> tuple[list[tuple[Difference, ...]], tuple[list[Marks], list[Marks]]]:
    """Hold the examples that both traces have against each other: what differs, and the marks of either's tokens."""
    differing: list[tuple[Difference, ...]] = []
    ours: list[Marks] = [{}] * shown
    theirs: list[Marks] = [{}] * shown
    if other is not None:
        for place in range(min(shown, len(trace.rows), len(other.rows))):
            differing.append(compare_rows(trace, other, place))
            ours[place], theirs[place] = token_marks(trace.rows[place], other.rows[place])
    return differing, (ours, theirs)


def _length(row: RowTrace) -> int:
    return sum(len(sequence.tokens) for sequence in row.sequences)


def _asking(trace: Trace, shown: int, most: int) -> int:
    """Count the sequences that are shown and have attention maps."""
    places = [place for row in trace.rows[:shown] for place in row.places[: shown_sequences(row, most)]]
    return sum(0 <= at < len(trace.batches) and bool(trace.batches[at].attentions) for at, _ in places)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": html_text.number, "seconds": html_text.seconds, "bars": _panel_bars}
    return environment


def _panel_bars(panel: Panel) -> Bars | None:
    """Give the bars of a panel's column of numbers, None if it names none that is there."""
    if panel.bar is None or panel.bar not in panel.columns:
        return None
    at = list(panel.columns).index(panel.bar)
    numbers = [row[at] for row in panel.rows]
    return bars([""] * len(numbers), [float(x) if isinstance(x, int | float) else float("nan") for x in numbers])


@cache
def _assets() -> Mapping[str, str]:
    """Give the page's style and script, and the hashes by which its policy allows them and nothing else."""
    style = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))  # noqa: S704 - a file of this package
    scripts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "attention.js")]
    script = Markup("".join(scripts))  # noqa: S704 - files of this package
    return {"style": style, "script": script, "style_hash": _hash(style), "script_hash": _hash(script)}


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
