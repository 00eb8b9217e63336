"""From sides and texts to a measurement: the rounds of ``pipeline-kit bench``, and whether results agree."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline_kit.bench.measure import MeasurementPlan, measure
from pipeline_kit.bench.sides import BenchSide, PipelineSide
from pipeline_kit.contract.types import Device

from .limit import Cost, MatrixLimit, cost_of, matrix_limit, share_of
from .progress import Progress
from .remember import Remembering, difference
from .script import Measurement, tell

__all__ = ["EXACT", "measure_sides"]

EXACT = 1e-5
"""How far scores of float32 may be from ours; beyond that it is other work."""


def measure_sides(
    name: str,
    title: str,
    ours: Sequence[PipelineSide],
    peers: Sequence[BenchSide],
    texts: Sequence[str],
    rounds: int,
    exact: Sequence[str] = (),
    left_out: dict[str, str] | None = None,
) -> Measurement:
    """Let all sides take turns on `texts`.

    :param name: what goals and tables find the measurement by, ``classifier/short``.
    :param ours: the first of them is what all others are compared with.
    :param peers: sides that read the same tokens as the first, which are not counted again.
    :param exact: names of the sides that compute what the first does, in float32.
    :param left_out: by name why a side is not there.
    :returns: a measurement of the kind ``sides``; its report is that of ``pipeline-kit bench`` with the share of the
        machine's limit that each side reached.
    """
    first = Remembering(ours[0])
    sides = [first, *(Remembering(side) for side in ours[1:]), *(Remembering(side, first) for side in peers)]
    tell(f"{name}: {len(sides)} sides, {len(texts)} texts, {rounds} rounds")
    progress = Progress([side.name for side in sides], rounds)
    plan = MeasurementPlan("given", rounds, None, latency_seconds=0.0)
    costs = [cost_of(side.config) for side in ours]
    costs += [costs[0]] * len(peers)
    limits = {side.device: matrix_limit(side.device) for side in sides}
    gc.collect()
    gc.freeze()  # what is loaded stays; looking through it before each turn would take longer than some turns
    try:
        report = measure(sides, list(texts), plan, progress.step)
    finally:
        gc.unfreeze()
    # Once more at the end: a machine that is warm or busy may have been slower at the beginning.
    limits = {
        device: max(limit, matrix_limit(device), key=lambda found: found.gflops) for device, limit in limits.items()
    }
    _add_shares(report, sides, costs, limits)
    differing = []
    for ratio, side in zip(report["ratios"], sides[1:], strict=True):
        ratio["results"] = found = difference(first.results, side.results)
        largest = found["largest_score_difference"]
        if side.name in exact and (largest is None or largest > EXACT):
            differing.append(f"the results of '{side.name}' differ from ours by {largest}: do not quote its speed")
    report["notes"] += differing
    for side in report["sides"]:
        del side["latency_ms"]  # of one text: latency.py measures it
    return {
        "name": name,
        "title": title,
        "kind": "sides",
        "ours": [side.name for side in ours],
        "left_out": left_out or {},
        "report": report,
    }


def _add_shares(
    report: dict[str, Any],
    sides: Sequence[Remembering],
    costs: Sequence[Cost | str],
    limits: Mapping[Device, MatrixLimit],
) -> None:
    """Write the limit of each device, and which part of it each side reached, into `report`."""
    report["matrix_limits"] = [asdict(limit) for limit in limits.values()]
    for found, side, cost in zip(report["sides"], sides, costs, strict=True):
        found["matrix_limit"] = share_of(cost, side.work, found["seconds"]["median"], limits[side.device])
    unknown = dict.fromkeys(cost for cost in costs if isinstance(cost, str))
    report["notes"] += [f"no share of the matrix product's limit: {reason}" for reason in unknown]
