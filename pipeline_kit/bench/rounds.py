"""Sides take turns: what happens to the machine meanwhile happens to all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from pipeline_kit.bench.memory import Peak, watch
from pipeline_kit.bench.sides import BenchSide, Work, use_threads
from pipeline_kit.errors import RowError
from pipeline_kit.types import Example, RowFailure

__all__ = ["Clock", "Timing", "alternate", "latencies", "turns", "warm_up"]

Clock = Callable[[], float]

_SINGLE_WARM_UPS = 3


@dataclass
class Timing:
    """What was measured of one side.

    :param work: what its warm-up did, with the results.
    :param seconds: for each round the time that all texts took.
    :param single: for single texts, one at a time, the seconds each took.
    :param peaks: the memory of the warm-up and of each round.
    """

    work: Work
    seconds: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)


def turns(count: int, number: int) -> list[int]:
    """Give the order of round `number`: each round another of the `count` sides comes first."""
    places = list(range(count))
    start = number % count
    return places[start:] + places[:start]


def warm_up(
    sides: Sequence[BenchSide], examples: Sequence[Example], step: Callable[[], None]
) -> tuple[list[Timing], list[Example]]:
    """Let each side run once, uncounted, and keep the examples that every one of them can answer.

    :param step: called after each turn.
    :returns: a timing for each side, with its results for those examples, and these examples.
    :raises RowError: the first failure, if no example is left.
    """
    timings: list[Timing]
    while True:
        failures: dict[int, RowFailure] = {}
        timings = []
        for side in sides:
            timings.append(_study(side, examples))
            found = timings[-1].work.results
            failures |= {i: item for i, item in enumerate(found) if isinstance(item, RowFailure)}
            step()
            if failures:
                break  # before another side meets them, which may not survive it
        if not failures:
            return timings, list(examples)
        if len(failures) == len(examples):
            first = failures[0]
            raise RowError(first.index, first.stage, first.error, first.message)
        examples = [example for place, example in enumerate(examples) if place not in failures]


def alternate(
    sides: Sequence[BenchSide],
    timings: Sequence[Timing],
    examples: Sequence[Example],
    repeats: int,
    step: Callable[[], None],
    clock: Clock = time.perf_counter,
) -> list[list[int]]:
    """Run `repeats` rounds, in each of which every side runs on all examples once.

    :returns: for each round the order of the sides.
    """
    orders = [turns(len(sides), number) for number in range(repeats)]
    for order in orders:
        for place in order:
            side = sides[place]
            use_threads(side.device)
            gc.collect()  # no side pays for the rubbish of the one before
            with watch(side.device) as peak:
                start = clock()
                side.run(examples)
                timings[place].seconds.append(clock() - start)
            timings[place].peaks.append(peak)
            step()
    return orders


def latencies(
    sides: Sequence[BenchSide],
    timings: Sequence[Timing],
    examples: Sequence[Example],
    budget: float,
    most: int,
    clock: Clock = time.perf_counter,
) -> None:
    """Time single texts, in an order that is drawn, until each side had `most` or `budget` seconds each are over.

    At least one text is timed; when all were, they begin again.
    """
    order = list(range(len(examples)))
    Random(0).shuffle(order)  # noqa: S311 - so that short and long texts come by turns
    for side in sides:
        use_threads(side.device)
        for place in order[:_SINGLE_WARM_UPS]:
            side.one(examples[place])
    gc.collect()
    end = clock() + budget * len(sides)
    for number in range(most):
        example = examples[order[number % len(order)]]
        for place in turns(len(sides), number):
            use_threads(sides[place].device)
            start = clock()
            sides[place].one(example)
            timings[place].single.append(clock() - start)
        if clock() >= end:
            return


def _study(side: BenchSide, examples: Sequence[Example]) -> Timing:
    use_threads(side.device)
    with watch(side.device) as peak:
        work = side.study(examples)
    return Timing(work, peaks=[peak])
