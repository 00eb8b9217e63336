"""The whole of a measurement: from sides and texts to a report of plain data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline_kit.bench.compare import compare
from pipeline_kit.bench.flops import Cost
from pipeline_kit.bench.limit import MatrixLimit, matrix_limit
from pipeline_kit.bench.machine import machine_facts
from pipeline_kit.bench.memory import peak_of
from pipeline_kit.bench.notes import notes_of
from pipeline_kit.bench.numbers import paired_ratio, percentiles, quartiles, speeds
from pipeline_kit.bench.rounds import Clock, Timing, alternate, latencies, warm_up
from pipeline_kit.bench.sides import BenchSide
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.types import Device, Example

__all__ = ["LATENCY_SECONDS", "Plan", "measure", "steps_of"]

LATENCY_SECONDS = 5.0
LATENCY_TEXTS = 200

Limits = Callable[[Device], MatrixLimit]


@dataclass(frozen=True)
class Plan:
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
    """Say how often `measure` calls its `step`: for each turn, for the limit and for the single texts."""
    return sides * (1 + repeats) + 2


def measure(
    sides: Sequence[BenchSide],
    examples: Sequence[Example],
    plan: Plan,
    step: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
    limits: Limits = matrix_limit,
) -> dict[str, Any]:
    """Measure `sides` on `examples`; the first one is what the others are held against.

    All take turns: one uncounted pass each, then rounds whose order rotates, then single texts.

    :param step: called after each part, for a progress bar.
    :param limits: measures the matrix product on a device.
    :returns: the report, JSON values only.
    :raises RowError: if no example can be answered.
    """
    with quiet():
        timings, kept = warm_up(sides, examples, step)
        found = _limits(sides, limits)
        step()
        orders = alternate(sides, timings, kept, plan.repeats, step, clock)
        latencies(sides, timings, kept, plan.latency_seconds, LATENCY_TEXTS, clock)
        step()
        # Once more at the end: a machine that is warm or busy may have been slower at the beginning.
        again = _limits(sides, limits)
    best = {key: max(limit, again[key], key=lambda item: item.gflops) for key, limit in found.items()}
    reports = [
        _side(side, timing, best[_key(side.device)], len(kept)) for side, timing in zip(sides, timings, strict=True)
    ]
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
        "matrix_limits": [asdict(limit) for limit in best.values()],
        "sides": reports,
        "ratios": [_ratio(sides, timings, place) for place in range(1, len(sides))],
        "notes": [*plan.notes, *notes_of(reports, plan.load, left_out)],
    }
    rounded: dict[str, Any] = _rounded(report)
    return rounded


def _side(side: BenchSide, timing: Timing, limit: MatrixLimit, rows: int) -> dict[str, Any]:
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
        "matrix_limit": _share(side.cost, timing, limit),
        "pipeline": dict(side.description),
    }


def _share(cost: Cost | str, timing: Timing, limit: MatrixLimit) -> dict[str, Any]:
    """Say which part of the machine's limit the side reached, with what it was computed from."""
    if isinstance(cost, str):
        return {"share": None, "unknown": cost, "gflops": None, "flops_per_token": None}
    work = timing.work
    total = cost.total(work.tokens, work.sequences, work.pairs)
    gflops = 1e-9 * total / max(quartiles(timing.seconds)["median"], 1e-9)
    per_token = total / work.tokens if work.tokens else 0.0
    return {"share": gflops / limit.gflops, "unknown": None, "gflops": gflops, "flops_per_token": per_token}


def _ratio(sides: Sequence[BenchSide], timings: Sequence[Timing], place: int) -> dict[str, Any]:
    first, other = timings[0], timings[place]
    return {
        "first": sides[0].name,
        "other": sides[place].name,
        "first_is_faster_by": paired_ratio(first.seconds, other.seconds),
        "results": compare(first.work.results, other.work.results),
    }


def _limits(sides: Sequence[BenchSide], limits: Limits) -> dict[tuple[str, str, int], MatrixLimit]:
    return {_key(side.device): limits(side.device) for side in sides}


def _key(device: Device) -> tuple[str, str, int]:
    return device.name, device.dtype, device.threads


def _rounded(value: Any) -> Any:
    """Keep six digits of every number: no measurement here is better than that."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _characters(example: Example) -> int:
    values = [example] if isinstance(example, str) else list(example.values())
    texts = [text for value in values for text in (value if isinstance(value, list | tuple) else [value])]
    return sum(len(text) for text in texts if isinstance(text, str))
