"""Sides take turns: what happens to the machine meanwhile happens to all of them."""

from __future__ import annotations

import gc
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from pipeline_kit.bench.sides import BenchSide, TextBatch
from pipeline_kit.contract.types import Device, Example
from pipeline_kit.errors import RowError, RowFailure
from pipeline_kit.runtime.device import prepare_process

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The high-water mark of one turn, in bytes.

    :param peak: resident memory of the whole process, everything that is loaded included.
    :param growth: how far it rose over where the turn began.
    :param device_peak: the most that torch had allocated on a GPU; None on other devices.
    """

    peak: int = 0
    growth: int = 0
    device_peak: int | None = None


def peak_of(turns: list[Peak]) -> Peak:
    """Put several turns together: the largest of each figure."""
    on_device = [turn.device_peak for turn in turns if turn.device_peak is not None]
    peak, growth = max(turn.peak for turn in turns), max(turn.growth for turn in turns)
    return Peak(peak, growth, max(on_device) if on_device else None)


@contextmanager
def watch(device: Device) -> Iterator[Peak]:
    """Fill a :class:`Peak` with what the body needs.

    On Linux the mark is set back before each turn (proc(5), ``clear_refs``); elsewhere it is that of the process so
    far, ``ru_maxrss``, and `growth` is what a turn added to it.
    """
    found = Peak()
    if device.kind == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device.name)
    with suppress(OSError):
        _CLEAR.write_text("5")
    before = _memory("VmRSS")
    yield found
    found.peak = _memory("VmHWM")
    found.growth = max(0, found.peak - before)
    if device.kind == "cuda":
        import torch

        found.device_peak = int(torch.cuda.max_memory_allocated(device.name))


def read_status(text: str, key: str) -> int | None:
    """Find a line such as ``VmHWM:  1234 kB`` of /proc/self/status; return bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _memory(key: str) -> int:
    """Return what /proc says; where there is none, the mark of the process so far, so that growth is its rise."""
    with suppress(OSError):
        if (found := read_status(_STATUS.read_text(encoding="ascii", errors="replace"), key)) is not None:
            return found
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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

    work: TextBatch
    seconds: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)


def turns(count: int, number: int) -> list[int]:
    """Return the order of round `number`: each round another of the `count` sides comes first."""
    places = list(range(count))
    start = number % count
    return places[start:] + places[:start]


def warm_up(
    sides: Sequence[BenchSide], examples: Sequence[Example], step: Callable[[], None]
) -> tuple[list[Timing], list[Example]]:
    """Let each side run once, uncounted, with `step` after each turn, and keep the examples that all can answer.

    :returns: a timing for each side, with its results for those examples, and these examples.
    :raises RowError: the first failure, if no example is left.
    """
    timings: list[Timing]
    while True:
        failures: dict[int, RowFailure] = {}
        timings = []
        for side in sides:
            prepare_process(side.device)
            with watch(side.device) as peak:
                work = side.warm_up(examples)
            timings.append(Timing(work, peaks=[peak]))
            failures |= {i: item for i, item in enumerate(work.results) if isinstance(item, RowFailure)}
            step()
            if failures:
                break  # before another side meets them, which may not survive it
        if not failures:
            return timings, list(examples)
        if len(failures) == len(examples):
            raise RowError(failures[0])
        examples = [example for place, example in enumerate(examples) if place not in failures]


def alternate(
    sides: Sequence[BenchSide],
    timings: Sequence[Timing],
    examples: Sequence[Example],
    repeats: int,
    step: Callable[[], None],
    clock: Clock = time.perf_counter,
    enough: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """Run `repeats` rounds, in each of which every side runs on all examples once, or until they are `enough`.

    :param step: called after each turn.
    :returns: for each round the order of the sides.
    """
    orders: list[list[int]] = []
    while len(orders) < repeats and not (orders and enough()):
        orders.append(turns(len(sides), len(orders)))
        for place in orders[-1]:
            side = sides[place]
            prepare_process(side.device)
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
    """Time single texts, one at least, in a drawn order, up to `most` or `budget` seconds for each side."""
    order = list(range(len(examples)))
    Random(0).shuffle(order)  # noqa: S311 - so that short and long texts come by turns
    for side in sides:
        prepare_process(side.device)
        for place in order[:_SINGLE_WARM_UPS]:
            side.run_one(examples[place])
    gc.collect()
    end = clock() + budget * len(sides)
    for number in range(most):
        example = examples[order[number % len(order)]]
        for place in turns(len(sides), number):
            prepare_process(sides[place].device)
            start = clock()
            sides[place].run_one(example)
            timings[place].single.append(clock() - start)
        if clock() >= end:
            return
