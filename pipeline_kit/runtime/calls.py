"""How a pipeline calls its stages: bad rows are found, transient errors retried, the call watched."""

from __future__ import annotations

import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import RowFailure, StageError, Stopped, for_message

T = TypeVar("T")
R = TypeVar("R")
Call = Callable[[Sequence[T]], Sequence[R]]

LONGEST_WAIT = 60.0

# By name, so that the ConnectionError of a library such as requests, which is not Python's own, counts too.
_TRANSIENT = frozenset({"TransientError", "ConnectionError", "TimeoutError"})

Watch = Callable[[str, Sequence[int]], None]


@dataclass(frozen=True)
class StageCalls:
    """How stages are called.

    The waits between tries are those of exponential backoff with full jitter: a random time up to
    ``retry_delay * 2 ** n``, and 60 seconds at the most, so that processes that failed together do not come back
    together.

    :param retries: how often to retry a call after a transient error.
    :param watch: called with a stage and the numbers of its rows before a call, and with no rows after it; from any
        thread.
    :param fraction: returns a number from 0 to 1.
    """

    retries: int = 0
    retry_delay: float = 0.5
    watch: Watch | None = None
    sleep: Callable[[float], object] = time.sleep
    fraction: Callable[[], float] = random.random

    def call(
        self,
        stage: str,
        call: Call[T, R],
        items: Sequence[T],
        rows: Sequence[int],
        stats: RunStats,
        blamed: Callable[[], str] | None = None,
    ) -> list[R | RowFailure]:
        """Call a stage on `items`; where it raises, on halves of them, down to single ones.

        Lack of memory is handled by the same halving. A panic in a tokenizer's native code is a BaseException, and a
        stage may raise SystemExit or GeneratorExit, so those are caught too, apart from an interruption. Only the
        first call, on all items, is retried: when it keeps failing, its halves are called once.

        :param rows: for each item the number of the row it belongs to.
        :param blamed: returns the stage that failed, where the call leads through another one too.
        :returns: what `call` returned for each item, or why there is nothing.
        :raises StageError: at once, since then the stage is wrong and not an item.
        """
        if not items:
            return []
        try:
            return list(self._tries(stage, call, items, rows, stats))
        except StageError:
            raise
        except BaseException as error:
            if is_interruption(error):
                raise
            if len(items) == 1:
                return [RowFailure.of(rows[0], blamed() if blamed else stage, error)]
            if is_out_of_memory(error):
                import torch

                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        half, once = len(items) // 2, replace(self, retries=0)
        first = once.call(stage, call, items[:half], rows[:half], stats, blamed)
        return first + once.call(stage, call, items[half:], rows[half:], stats, blamed)

    def _tries(
        self, stage: str, call: Call[T, R], items: Sequence[T], rows: Sequence[int], stats: RunStats
    ) -> Sequence[R]:
        tried = 0
        while True:
            if self.watch is not None:
                self.watch(stage, list(dict.fromkeys(rows)))
            try:
                return call(items)
            except Exception as error:
                if tried == self.retries or not any(kind.__name__ in _TRANSIENT for kind in type(error).__mro__):
                    raise
            finally:
                if self.watch is not None:
                    self.watch(stage, ())
            stats.retries += 1
            self.sleep(self.fraction() * min(LONGEST_WAIT, self.retry_delay * 2**tried))
            tried += 1


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
