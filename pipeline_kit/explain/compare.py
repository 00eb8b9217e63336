"""Where two pipelines part on the same texts: plain data, from which both views draw the comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.contract.stages import Cell, Panel
from pipeline_kit.explain.formats import aligned, shape_of
from pipeline_kit.explain.trace import RowTrace, SequenceTrace, Token, Trace

NOISE = 1e-5
"""What two ways to compute the same number in float32 may differ by."""

DIFFERS = "≠"
"""Stands in the first cell of a line whose two sides differ."""

_NUMBERS = 12
"""Numbers of a tensor's row that are set side by side."""

_MOST_EQUAL_PAIRS = 20_000
"""Pairs of tokens with the same text that are all looked at: four times those of a usual text of 512 tokens."""


TokenPair = tuple[Token | None, Token | None]
"""Two tokens that stand beside each other; None where one side has none."""


@dataclass(frozen=True, slots=True)
class RowComparison:
    """One example of both traces.

    :param panels: what is set side by side; the first cell of a line is `DIFFERS` or empty.
    :param marks: for either side, by sequence and token, how a token differs from the other side's.
    :param unlike: what differs: ``tokens``, ``padding``, ``result``, or the name of a tensor.
    """

    panels: tuple[Panel, ...]
    marks: tuple[Mapping[int, Mapping[int, str]], Mapping[int, Mapping[int, str]]]
    unlike: frozenset[str]


def token_pairs(first: SequenceTrace | None, second: SequenceTrace | None) -> list[TokenPair]:
    """Put the tokens of two sequences side by side, those with the same text beside each other."""
    left = () if first is None else first.tokens
    right = () if second is None else second.tokens
    texts, others = [token.text for token in left], [token.text for token in right]
    counts = Counter(others)
    # Looking at every place of a word that repeats hundreds of times takes cubic time.
    matcher = SequenceMatcher(None, texts, others, autojunk=sum(counts[text] for text in texts) > _MOST_EQUAL_PAIRS)
    found: list[TokenPair] = []
    for _, left_start, left_end, right_start, right_end in matcher.get_opcodes():
        for step in range(max(left_end - left_start, right_end - right_start)):
            here = left[left_start + step] if left_start + step < left_end else None
            there = right[right_start + step] if right_start + step < right_end else None
            found.append((here, there))
    return found


def _same(pair: TokenPair) -> bool:
    one, two = pair
    return one is not None and two is not None and (one.text, one.id) == (two.text, two.id)


def apart(first: Any, second: Any) -> bool:
    """Return whether two values differ, numbers by more than `NOISE`, absolutely or as a part of the larger."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is not second
    if isinstance(first, float | int) and isinstance(second, float | int):
        return not math.isclose(first, second, rel_tol=NOISE, abs_tol=NOISE) and not (
            first != first and second != second
        )
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() != second.keys() or any(apart(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) != len(second) or any(map(apart, first, second))
    return bool(first != second)


def flat_config(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a config's values with their full keys."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat_config(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)


def compare_config(first: Trace, second: Trace) -> Panel:
    """Set all values of the configs side by side."""
    one, two = dict(flat_config(first.config)), dict(flat_config(second.config))
    pairs = {key: (one.get(key, "not there"), two.get(key, "not there")) for key in dict.fromkeys([*one, *two])}
    rows = [(DIFFERS if left != right else "", key, left, right) for key, (left, right) in pairs.items()]
    title = f"config: {sum(row[0] != '' for row in rows)} of {len(rows)} values differ"
    return Panel(title, ("", "key", "A", "B"), rows)


def compare_rows(first: Trace, second: Trace, place: int) -> RowComparison:
    """Set one example of both traces side by side."""
    left, right = first.rows[place], second.rows[place]
    unlike: set[str] = set()
    panels: list[Panel] = []
    marks: tuple[dict[int, dict[int, str]], dict[int, dict[int, str]]] = ({}, {})

    def line(what: str, name: str, one: Cell, two: Cell, *more: Cell, wide: bool = False) -> Sequence[Cell]:
        """Return one line, and note in `unlike` where it differs."""
        differs = apart(one, two)
        if differs:
            unlike.add(what)
        return (DIFFERS if differs else "", name, *((aligned(one), aligned(two)) if wide else (one, two)), *more)

    facts = [line("text", "text", str(left.example), str(right.example))] if left.example != right.example else []
    counts = len(left.sequences), len(right.sequences)
    if max(counts) != 1 or min(counts) != 1:
        facts.append(line("tokens", "sequences", *counts))
    panels.append(Panel("", ("", "", "A", "B"), facts))
    for index in range(max(counts)):
        one, two = (row.sequences[index] if index < len(row.sequences) else None for row in (left, right))
        pairs = token_pairs(one, two)
        panels.append(_tokens(index, one, two, pairs))
        for side, found in zip(marks, _marks(pairs), strict=True):
            side[index] = found
        if not all(map(_same, pairs)):
            unlike.add("tokens")
        facts = [line("padding", "batch", padding_of(first, place, index), padding_of(second, place, index))]
        cut = [None if side is None else side.truncated for side in (one, two)]
        if any(cut):
            facts.append(line("cut", "tokens cut off", *cut))
        panels.append(Panel("", ("", "", "A", "B"), facts))
        given, gave = outputs_of(first, place, index), outputs_of(second, place, index)
        for name in dict.fromkeys([*given, *gave]):
            here, there = given.get(name), gave.get(name)
            if here is None or there is None or here.shape != there.shape:
                shapes = ["not there" if side is None else shape_of(side.shape) for side in (here, there)]
                unlike.add(name)
                panels.append(Panel("", ("", name, "A", "B"), [(DIFFERS, "shape", *shapes)]))
                continue
            rows = _numbers(first, second, here, there)
            if any(row[0] for row in rows):
                unlike.add(name)
            panels.append(Panel("", ("", name, "A", "B", "B - A"), rows))
    ours, theirs = _result(left), _result(right)
    results = [
        line("result", key, ours.get(key), theirs.get(key), wide=True) for key in dict.fromkeys([*ours, *theirs])
    ]
    panels.append(Panel("result", ("", "key", "A", "B"), results))
    return RowComparison(tuple(panels), marks, frozenset(unlike))


def _tokens(index: int, one: SequenceTrace | None, two: SequenceTrace | None, pairs: Sequence[TokenPair]) -> Panel:
    different = len(pairs) - sum(map(_same, pairs))
    counts = " and ".join(str(len(side.tokens)) if side is not None else "no" for side in (one, two))
    title = f"sequence {index}: {counts} tokens, " + (f"{different} lines differ" if different else "all the same")
    cells = [[(None, "") if t is None else (t.id, t.text) for t in pair] for pair in pairs]
    rows = [("" if _same(pair) else DIFFERS, *left, *right) for pair, (left, right) in zip(pairs, cells, strict=True)]
    return Panel(title, ("", "id A", "token A", "id B", "token B"), rows if different else ())


def _marks(pairs: Sequence[TokenPair]) -> tuple[dict[int, str], dict[int, str]]:
    """Mark each token whose text or id differs on the other side."""
    found: tuple[dict[int, str], dict[int, str]] = ({}, {})
    places = [-1, -1]
    for pair in pairs:
        for side, (own, other) in enumerate((pair, pair[::-1])):
            if own is None:
                continue
            places[side] += 1
            there = "BA"[side]
            if not _same(pair):
                known = other is not None and other.text == own.text
                found[side][places[side]] = f"id {other.id} in {there}" if known and other else f"not so in {there}"
    return found


def padding_of(trace: Trace, row: int, sequence: int) -> str:
    """Describe the batch in which a sequence ran, and its padding there."""
    number, place = place_of(trace, row, sequence)
    if number < 0:
        return "in no batch"
    batch = trace.batches[number]
    padding = int((batch.attention_mask[place] == 0).sum())
    told = f"{padding} on the {batch.side}" if padding else "none"
    return f"batch {number}, {len(batch.rows)} x {batch.input_ids.shape[1]}, padding: {told}"


def place_of(trace: Trace, row: int, sequence: int) -> tuple[int, int]:
    """Return the batch that held a sequence and its row there, ``(-1, -1)`` if none did."""
    places = trace.rows[row].places
    found = places[sequence] if sequence < len(places) else (-1, -1)
    return found if 0 <= found[0] < len(trace.batches) else (-1, -1)


def outputs_of(trace: Trace, row: int, sequence: int, *, reduced: bool = False) -> dict[str, NDArray[Any]]:
    """Return the tensors that the model returned for one sequence, or what was left of them; padding is taken off."""
    number, place = place_of(trace, row, sequence)
    if number < 0:
        return {}
    batch = trace.batches[number]
    kept, width = np.flatnonzero(batch.attention_mask[place]), batch.input_ids.shape[1]
    found = {}
    for name, values in (batch.reduced if reduced else batch.outputs).items():
        per_token = name in batch.per_token and values.ndim > 1 and values.shape[1] == width
        found[name] = values[place][kept] if per_token else values[place]
    return found


def _numbers(first: Trace, second: Trace, here: NDArray[Any], there: NDArray[Any]) -> list[Sequence[Cell]]:
    labels = first.labels if here.shape == (len(first.labels),) else ()
    others = second.labels if labels and len(second.labels) == len(labels) else labels
    flat, beside = here.reshape(-1).astype(np.float64), there.reshape(-1).astype(np.float64)
    if flat.size > _NUMBERS:
        with np.errstate(invalid="ignore"):  # infinity less infinity
            gaps = np.where((flat == beside) | (np.isnan(flat) & np.isnan(beside)), 0.0, np.abs(flat - beside))
        most = math.inf if np.isnan(gaps).any() else float(gaps.max())
        differs = DIFFERS if apart(most, 0.0) else ""
        return [(differs, f"{flat.size:,} numbers", None, None, f"at most {aligned(most)}")]
    rows: list[Sequence[Cell]] = []
    for place, (one, other) in enumerate(zip(here.reshape(-1).tolist(), there.reshape(-1).tolist(), strict=True)):
        name = str(place)
        if labels:
            name = labels[place] if labels[place] == others[place] else f"{labels[place]} | {others[place]}"
        rows.append((DIFFERS if apart(one, other) else "", name, one, other, other - one))
    return rows


def _result(row: RowTrace) -> dict[str, Any]:
    if row.failure is not None:
        return {"error": f"{row.failure.stage}: {row.failure.error}: {row.failure.message}"}
    return dict(row.result or {})
