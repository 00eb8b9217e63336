"""How a pipeline calls its stages: bad rows are found, errors that may pass tried again, the call watched."""

from __future__ import annotations

import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TypeVar, final

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import StageError, Stopped, for_message
from pipeline_kit.runtime.config import RunnerConfig

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Failed:
    """An item on which the call raised even alone."""

    error: BaseException


class InStage(Exception):
    """Marks `cause` as raised by another stage than the one that was called."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        """Name the stage; keep the cause."""
        super().__init__(str(cause))
        self.stage = stage
        self.cause = cause


Call = Callable[[Sequence[T]], Sequence[R]]


def isolate(call: Call[T, R], items: Sequence[T], first: Call[T, R] | None = None) -> list[R | Failed]:
    """Call `call` on `items`; where it raises, on halves of them, down to single ones.

    Lack of memory is handled by the same halving. A panic in a tokenizer's native code is a BaseException, and a
    stage may raise SystemExit or GeneratorExit, so those are caught too, apart from an interruption.

    :param first: called in the place of `call` on all of `items`, such as one that tries several times.
    :returns: what `call` returned for each item, or :class:`Failed`.
    :raises StageError: at once, since then the stage is wrong and not an item.
    """
    if not items:
        return []
    try:
        return list((first or call)(items))
    except StageError:
        raise
    except BaseException as error:
        if is_interruption(error):
            raise
        if len(items) == 1:
            return [Failed(error)]
        if is_out_of_memory(error):
            _free_cached_memory()
    half = len(items) // 2
    return isolate(call, items[:half]) + isolate(call, items[half:])


def is_interruption(error: BaseException) -> bool:
    """Return whether `error` stops the process from outside: ctrl-c, or what a signal handler raised.

    A SystemExit of a stage's own is none, or a run could end with the exit code 0 and half of its rows.
    """
    if isinstance(error, KeyboardInterrupt | Stopped):
        return True
    if isinstance(error, Exception):
        return False
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


@contextmanager
def no_exit(what: str) -> Iterator[None]:
    """Let nothing in the body end the process, apart from an interruption.

    :raises StageError: in the place of a SystemExit or GeneratorExit, saying where it came from.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or is_interruption(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise StageError(
            f"{what}: {type(error).__name__}({for_message(str(error))}) was raised in {place.filename}, line "
            f"{place.lineno}; a stage must not end the process"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that memory ran out, on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _free_cached_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


LONGEST = 60.0

# By name, so that the ConnectionError of a library such as requests, which is not Python's own, counts too.
_TRANSIENT = frozenset({"TransientError", "ConnectionError", "TimeoutError"})


@final
class Retry:
    """Makes calls, some of them again.

    The waits are those of exponential backoff with full jitter: a random time up to ``delay * 2 ** n``, and 60
    seconds at the most, so that processes that failed together do not come back together.
    """

    def __init__(
        self,
        options: RunnerConfig,
        sleep: Callable[[float], object] = time.sleep,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        """Follow `options`; `fraction` returns a number from 0 to 1."""
        self._options, self._sleep, self._fraction = options, sleep, fraction

    def __call__(self, call: Callable[[], R], again: Callable[[BaseException], None]) -> R:
        """Return what `call` returns.

        :param again: called with each error after which the call is made again.
        """
        for tried in range(self._options.retries):
            try:
                return call()
            except Exception as error:
                if not self.may_pass(error):
                    raise
                again(error)
                self._sleep(self._fraction() * min(LONGEST, self._options.retry_delay * 2**tried))
        return call()

    @staticmethod
    def may_pass(error: BaseException) -> bool:
        """Return whether `error`, or a class it is derived from, has the name of an error that may pass."""
        if isinstance(error, InStage):
            error = error.cause
        return any(kind.__name__ in _TRANSIENT for kind in type(error).__mro__)


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
        """Call a stage; return what it returned for each item, or why there is nothing.

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
        """Return `call`, which is made for one row after another, with the watch called for each."""
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
