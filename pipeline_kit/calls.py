"""How a pipeline calls its stages: bad rows are found, errors that may pass tried again, the call watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from pipeline_kit.isolate import Call, Failed, isolate
from pipeline_kit.retry import Retry
from pipeline_kit.stats import RunStats

__all__ = ["StageCalls", "Watch"]

T = TypeVar("T")
R = TypeVar("R")

Watch = Callable[[str, Sequence[int]], None]
"""Told of a stage and its rows before a call, and of the stage with no rows after it; from any thread."""


@dataclass(frozen=True)
class StageCalls:
    """The way of a call.

    :param retry: None: a call is made once.
    :param watch: None: nobody is told.
    """

    retry: Retry | None = None
    watch: Watch | None = None

    def isolated(
        self, stage: str, call: Call[T, R], items: Sequence[T], rows: Sequence[int], stats: RunStats
    ) -> list[R | Failed]:
        """Call a stage; give what it gave for each item, or why there is nothing.

        Only the first call, on all items, is made again: when it keeps failing, its halves are called once.

        :param rows: the numbers of the rows that `items` belong to, as the watch is told them.
        """
        watched = call if self.watch is None else self._watched(self.watch, stage, call, rows)
        if self.retry is None:
            return isolate(watched, items)
        retry = self.retry

        def again(error: BaseException) -> None:
            stats.retries += 1

        return isolate(watched, items, lambda all_items: retry(lambda: watched(all_items), again))

    def each(self, stage: str, call: Callable[[T], R]) -> Callable[[T], R]:
        """Return `call`, which is made for one row after another, with the watch told of each."""
        if self.watch is None:
            return call
        watch, rows = self.watch, count()

        def watched(item: T) -> R:
            watch(stage, [next(rows)])
            try:
                return call(item)
            finally:
                watch(stage, ())

        return watched

    @staticmethod
    def _watched(watch: Watch, stage: str, call: Call[T, R], rows: Sequence[int]) -> Call[T, R]:
        def watched(items: Sequence[T]) -> Sequence[R]:
            watch(stage, rows)
            try:
                return call(items)
            finally:
                watch(stage, ())

        return watched
