"""What a run counts: the numbers of the summary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from time import perf_counter

__all__ = ["RunStats"]


@dataclass
class RunStats:
    """Counts of one run, filled while it streams.

    :param rows: examples that went in; `failed` of them gave no result.
    :param truncated_rows: examples of which something was cut off.
    :param tokens: tokens the model saw, padding not counted; `slots` counts padding too.
    :param retries: calls that were made again, see ``runner.retries``.
    :param seconds: time spent in each stage; tokenizing overlaps with the model.
    """

    rows: int = 0
    failed: int = 0
    truncated_rows: int = 0
    windows: int = 0
    batches: int = 0
    tokens: int = 0
    slots: int = 0
    retries: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def padding_share(self) -> float:
        """The share of the model's token slots that was padding, 0 to 1."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    @classmethod
    def total(cls, several: Iterable[RunStats]) -> RunStats:
        """Add up the counts of runs, and the times of their stages."""
        found = cls()
        for stats in several:
            for item in fields(cls):
                if item.name != "seconds":
                    setattr(found, item.name, getattr(found, item.name) + getattr(stats, item.name))
            for stage, seconds in stats.seconds.items():
                found.seconds[stage] += seconds
        return found

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the body to `stage`."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += perf_counter() - start
