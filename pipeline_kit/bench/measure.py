"""The whole of a measurement: from sides and texts to a report of plain data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_kit.bench.machine import BUSY, machine_facts, paired_ratio, percentiles, quartiles, speeds, spread
from pipeline_kit.bench.rounds import Clock, Timing, alternate, latencies, peak_of, warm_up
from pipeline_kit.bench.sides import BenchSide
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.types import Example
from pipeline_kit.evaluate.likeness import compare_scores

LATENCY_SECONDS = 5.0
LATENCY_TEXTS = 200


@dataclass(frozen=True)
class MeasurementPlan:
    """What is measured.

    :param source: where the texts come from, for the report: a sample's name or ``given``.
    :param load: the load for each processor before anything was done, None if unknown.
    :param latency_seconds: how long single texts may be timed, for each side.
    :param notes: what is known beforehand and belongs into the report.
    """

    source: str
    repeats: int
    load: float | None
    latency_seconds: float = LATENCY_SECONDS
    notes: tuple[str, ...] = ()


def steps_of(sides: int, repeats: int) -> int:
    """Return how often `measure` calls its `step`: for each turn, and for the single texts."""
    return sides * (1 + repeats) + 1


def measure(
    sides: Sequence[BenchSide],
    examples: Sequence[Example],
    plan: MeasurementPlan,
    step: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Measure `sides` on `examples`, by turns; the first one is what the others are compared with.

    :param step: called after each part, for a progress bar.
    :returns: the report, JSON values only.
    :raises RowError: if no example can be answered.
    """
    with quiet():
        timings, kept = warm_up(sides, examples, step)
        orders = alternate(sides, timings, kept, plan.repeats, step, clock)
        latencies(sides, timings, kept, plan.latency_seconds, LATENCY_TEXTS, clock)
        step()
    reports = [_side(side, timing, len(kept)) for side, timing in zip(sides, timings, strict=True)]
    left_out = len(examples) - len(kept)
    report = {
        "machine": machine_facts(sides[0].device, plan.load),
        "texts": {
            "source": plan.source,
            "rows": len(kept),
            "left_out": left_out,
            "characters": sum(_characters(example) for example in kept),
        },
        "repeats": plan.repeats,
        "order": [[sides[place].name for place in order] for order in orders],
        "sides": reports,
        "ratios": [_ratio(sides, timings, place) for place in range(1, len(sides))],
        "notes": [*plan.notes, *notes_of(reports, plan.load, left_out)],
    }
    # Six digits of every number: no measurement here is better than that.
    rounded: dict[str, Any] = json.loads(json.dumps(report), parse_float=lambda text: float(f"{float(text):.6g}"))
    return rounded


def _side(side: BenchSide, timing: Timing, rows: int) -> dict[str, Any]:
    work = timing.work
    peak = peak_of(timing.peaks)
    return {
        "name": side.name,
        "seconds": {**quartiles(timing.seconds), "rounds": list(timing.seconds)},
        "texts_per_second": speeds(rows, timing.seconds),
        "tokens_per_second": speeds(work.tokens, timing.seconds),
        "latency_ms": {
            **{name: 1e3 * value for name, value in percentiles(timing.single).items()},
            "texts": len(timing.single),
        },
        "memory": {"peak_bytes": peak.peak, "growth_bytes": peak.growth, "device_peak_bytes": peak.device_peak},
        "tokens": work.tokens,
        "slots": work.slots,
        "padding_share": work.padding_share,
        "batches": work.batches,
        "pipeline": dict(side.description),
    }


def _ratio(sides: Sequence[BenchSide], timings: Sequence[Timing], place: int) -> dict[str, Any]:
    first, other = timings[0], timings[place]
    return {
        "first": sides[0].name,
        "other": sides[place].name,
        "first_is_faster_by": paired_ratio(first.seconds, other.seconds),
        "results": compare_scores(first.work.results, other.work.results),
    }


def _characters(example: Example) -> int:
    values = [example] if isinstance(example, str) else list(example.values())
    texts = [text for value in values for text in (value if isinstance(value, list | tuple) else [value])]
    return sum(len(text) for text in texts if isinstance(text, str))


_SHORT_SECONDS = 0.05
_UNSTEADY = 0.10
_FEW_ROUNDS = 3


def notes_of(sides: Sequence[dict[str, Any]], load: float | None, left_out: int) -> list[str]:
    """Name what makes figures doubtful: the `sides`' own, the `load` before the start, texts that were `left_out`."""
    notes = []
    if load is not None and load > BUSY:
        notes.append(f"the machine is busy (load {load:.2f} for each processor before the start): do not quote these")
    if left_out:
        notes.append(f"{left_out:,} texts failed and were left out; see why with: pipeline-kit run")
    if len(sides[0]["seconds"]["rounds"]) < _FEW_ROUNDS:
        notes.append("fewer than 3 rounds: the quartiles say little")
    else:
        wide = {side["name"]: spread(side["seconds"]["rounds"]) for side in sides}
        worst = max(wide, key=lambda name: wide[name])
        if wide[worst] > _UNSTEADY:
            notes.append(f"the rounds of '{worst}' differ by {wide[worst]:.0%} (quartiles): measure again, or longer")
    if min(side["seconds"]["median"] for side in sides) < _SHORT_SECONDS:
        notes.append("a round took less than 0.05 s, mostly overhead: pass more texts, or a larger --rows")
    if len({side["tokens"] for side in sides}) > 1:
        notes.append("the sides read different numbers of tokens: compare texts/s and the ratios, not tokens/s")
    models = [side["pipeline"].get("model", {}) for side in sides]
    packed = [None if model.get("int8_linears") else model.get("packed_linears") for model in models]
    if len({count for count in packed if count is not None}) > 1:
        counts = ", ".join("-" if count is None else str(count) for count in packed)
        notes.append(
            f"the sides packed different numbers of linear layers ({counts}), as measured when each was loaded; "
            "model.linear=packed or eager settles it"
        )
    if any(side["pipeline"].get("model", {}).get("name") == "generate" for side in sides):
        notes.append("tokens are those that were read, not those that were written")
    return notes
