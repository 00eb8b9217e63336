"""A trace as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline_kit.contract.stages import Panel
from pipeline_kit.explain import html_charts
from pipeline_kit.explain.html_attention import CELLS, BatchView, TokenBudget, batch_views, columns_of
from pipeline_kit.explain.html_charts import Bars, bars, html_number
from pipeline_kit.explain.html_rows import RowView, fitting, row_view, shown_sequences
from pipeline_kit.explain.trace import RowTrace, Trace

_TEMPLATES = Path(__file__).parent / "templates"
_TOKENS = 6_000


@dataclass(frozen=True, slots=True)
class PageSide:
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
    room = TokenBudget(sum(_asking(each, shown, most) for each in traces))
    differing, marks = _compared(trace, other, shown)
    sides = [
        PageSide(
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
    return html_charts.clean(page)


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
    environment.filters |= {"number": html_charts.html_number, "seconds": html_charts.seconds, "bars": _panel_bars}
    return environment


def _panel_bars(panel: Panel) -> Bars | None:
    """Return the bars of a panel's column of numbers, None if it names none that is there."""
    if panel.bar is None or panel.bar not in panel.columns:
        return None
    at = list(panel.columns).index(panel.bar)
    numbers = [row[at] for row in panel.rows]
    return bars([""] * len(numbers), [float(x) if isinstance(x, int | float) else float("nan") for x in numbers])


@cache
def _assets() -> Mapping[str, str]:
    """Return the page's style and script, and the hashes by which its policy allows them and nothing else."""
    style = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))  # noqa: S704 - a file of this package
    scripts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "attention.js")]
    script = Markup("".join(scripts))  # noqa: S704 - files of this package
    return {"style": style, "script": script, "style_hash": _hash(style), "script_hash": _hash(script)}


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


CLOSE = 1e-5
"""Numbers that are no further apart count as the same: as far as one text's float32 may go in another batch."""

Marks = Mapping[int, Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of the comparison: what was looked at, what each side has."""

    what: str
    same: bool
    first: str
    second: str


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a config's values with their full keys."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)


def compare_config(first: Trace, second: Trace) -> tuple[Difference, ...]:
    """Hold all values of the configs against each other, and the stages' time."""
    one, two = dict(flat(first.config)), dict(flat(second.config))
    keys = list(dict.fromkeys([*one, *two]))
    return tuple(
        Difference(key, one.get(key) == two.get(key), one.get(key, "not there"), two.get(key, "not there"))
        for key in keys
    )


def token_marks(first: RowTrace, second: RowTrace) -> tuple[Marks, Marks]:
    """Mark each token whose text or id differs on the other side; a sequence is compared with its counterpart."""
    ours: dict[int, dict[int, str]] = {}
    theirs: dict[int, dict[int, str]] = {}
    for place, (one, two) in enumerate(zip(first.sequences, second.sequences, strict=False)):
        mine, other = ours.setdefault(place, {}), theirs.setdefault(place, {})
        left, right = [token.text for token in one.tokens], [token.text for token in two.tokens]
        for what, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
            if what == "equal":
                for at, to in zip(range(i, j), range(k, m), strict=True):
                    if one.tokens[at].id != two.tokens[to].id:
                        mine[at], other[to] = f"id {two.tokens[to].id} in B", f"id {one.tokens[at].id} in A"
                continue
            mine |= dict.fromkeys(range(i, j), "not so in B")
            other |= dict.fromkeys(range(k, m), "not so in A")
    return ours, theirs


def compare_rows(first: Trace, second: Trace, place: int) -> tuple[Difference, ...]:
    """Hold one example of both traces against each other."""
    one, two = first.rows[place], second.rows[place]
    ours, theirs = token_marks(one, two)
    counts = [sum(len(sequence.tokens) for sequence in row.sequences) for row in (one, two)]
    marked = [sum(len(marks) for marks in side.values()) for side in (ours, theirs)]
    only_ids = [
        sum(mark.startswith("id ") for marks in side.values() for mark in marks.values()) for side in (ours, theirs)
    ]
    spelled = [
        f"{count}, {all_ - ids} of them not so in {name}"
        for count, all_, ids, name in zip(counts, marked, only_ids, "BA", strict=True)
    ]
    ids = [[[token.id for token in sequence.tokens] for sequence in row.sequences] for row in (one, two)]
    return (
        Difference(
            "text",
            one.example == two.example,
            *(["as given"] * 2 if one.example == two.example else ["another text"] * 2),
        ),
        Difference(
            "sequences", len(one.sequences) == len(two.sequences), str(len(one.sequences)), str(len(two.sequences))
        ),
        Difference("tokens", marked == only_ids and len(one.sequences) == len(two.sequences), *spelled),
        Difference("ids", ids[0] == ids[1], *(_ids(side) for side in ids)),
        Difference("cut", _cut(one) == _cut(two), f"{_cut(one)} tokens", f"{_cut(two)} tokens"),
        Difference(
            "padding", _padding(first, one) == _padding(second, two), _padding(first, one), _padding(second, two)
        ),
        *_tensors(first, second, place),
        _results(one, two),
    )


def _ids(sequences: Sequence[Sequence[int]]) -> str:
    every = [str(id_) for ids in sequences for id_ in ids]
    return " ".join(every[:12]) + (f" … {len(every) - 12} more" if len(every) > 12 else "")


def _cut(row: RowTrace) -> int:
    return max((sequence.truncated for sequence in row.sequences), default=0)


def _padding(trace: Trace, row: RowTrace) -> str:
    found = []
    for at, line in row.places:
        if 0 <= at < len(trace.batches):
            batch = trace.batches[at]
            width = batch.input_ids.shape[1]
            empty = width - len(columns_of(batch, line))
            found.append(f"{empty} of {width}" + (f" on the {batch.side}" if empty else ""))
    return ", ".join(found[:6]) + (" …" if len(found) > 6 else "") if found else "no batch"


def _tensors(first: Trace, second: Trace, place: int) -> Iterator[Difference]:
    one, two = _outputs(first, place), _outputs(second, place)
    for name in dict.fromkeys([*one, *two]):
        left, right = one.get(name), two.get(name)
        if left is None or right is None or [x.shape for x in left] != [x.shape for x in right]:
            yield Difference(name, False, _shapes(left), _shapes(right))
            continue
        gap = max((_gap(x, y) for x, y in zip(left, right, strict=True)), default=0.0)
        text = f"largest difference {html_number(gap)}" + (f", within {CLOSE:g}" if gap <= CLOSE else "")
        yield Difference(name, gap <= CLOSE, text, text)


def _outputs(trace: Trace, place: int) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Return what the model returned for the sequences of one example, by name, without padding."""
    found: dict[str, list[np.ndarray[Any, Any]]] = {}
    for at, line in trace.rows[place].places:
        if not 0 <= at < len(trace.batches):
            continue
        batch = trace.batches[at]
        for name, values in batch.outputs.items():
            per_token = name in batch.per_token and values.ndim > 1 and values.shape[1] == batch.input_ids.shape[1]
            found.setdefault(name, []).append(values[line][columns_of(batch, line)] if per_token else values[line])
    return found


def _gap(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    gaps = np.abs(left.astype(np.float64) - right.astype(np.float64))
    both = np.isnan(left.astype(np.float64)) & np.isnan(right.astype(np.float64))
    gaps = np.where(both | (left == right), 0.0, gaps)
    return math.inf if np.isnan(gaps).any() else float(gaps.max(initial=0.0))


def _shapes(values: list[np.ndarray[Any, Any]] | None) -> str:
    if values is None:
        return "not there"
    return ", ".join(str(list(value.shape)) for value in values[:6]) + (" …" if len(values) > 6 else "")


def _results(one: RowTrace, two: RowTrace) -> Difference:
    if one.result is None or two.result is None:
        return Difference("result", one.failure == two.failure and one.result == two.result, _said(one), _said(two))
    return Difference("result", _alike(one.result, two.result), _said(one), _said(two))


def _said(row: RowTrace) -> str:
    if row.result is None:
        return f"failed: {row.failure.error}" if row.failure else "none"
    single = [
        f"{key} {html_number(value, 6)}" for key, value in row.result.items() if not isinstance(value, list | Mapping)
    ]
    text = ", ".join(single) or ", ".join(f"{key} ({len(value)})" for key, value in row.result.items())
    return text if len(text) <= 200 else text[:199] + "…"


def _alike(one: Any, two: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_alike(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_alike, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return one == two or abs(one - two) <= CLOSE or (math.isnan(one) and math.isnan(two))
    return bool(one == two)
