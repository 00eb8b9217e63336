"""From sides and texts to a measurement: the rounds of ``pipeline-kit bench``, and whether results agree."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import final

from pipeline_kit.bench.limit import MatrixLimit, matrix_limit
from pipeline_kit.bench.measure import MeasurementPlan, measure
from pipeline_kit.bench.sides import BenchSide
from pipeline_kit.contract.types import Device

from .progress import Progress
from .remember import Remembering, difference
from .script import Measurement, tell

__all__ = ["EXACT", "measure_sides"]

EXACT = 1e-5
"""How far scores of float32 may be from ours; beyond that it is other work."""


def measure_sides(
    name: str,
    title: str,
    ours: Sequence[BenchSide],
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
    :returns: a measurement of the kind ``sides``; its report is that of ``pipeline-kit bench``.
    """
    first = Remembering(ours[0])
    sides = [first, *(Remembering(side) for side in ours[1:]), *(Remembering(side, first) for side in peers)]
    tell(f"{name}: {len(sides)} sides, {len(texts)} texts, {rounds} rounds")
    progress = Progress([side.name for side in sides], rounds)
    plan = MeasurementPlan("given", rounds, None, latency_seconds=0.0)
    gc.collect()
    gc.freeze()  # what is loaded stays; looking through it before each turn would take longer than some turns
    try:
        report = measure(sides, list(texts), plan, progress.step, limits=_Limits(len(sides)))
    finally:
        gc.unfreeze()
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


@final
class _Limits:
    """The matrix product's limit, once for each device before the rounds and once after them.

    It is asked for each side, and takes a second: many sides would warm the machine for nothing.
    """

    def __init__(self, sides: int) -> None:
        self._sides, self._asked = sides, 0
        self._known: dict[tuple[int, Device], MatrixLimit] = {}

    def __call__(self, device: Device) -> MatrixLimit:
        key = self._asked // self._sides, device
        self._asked += 1
        if key not in self._known:
            self._known[key] = matrix_limit(device)
        return self._known[key]
