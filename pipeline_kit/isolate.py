"""Narrow a failure on many items down to the items that cause it."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pipeline_kit.errors import StageError, Stopped, shorten

__all__ = ["Failed", "InStage", "is_interruption", "is_out_of_memory", "isolate", "no_exit"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Failed:
    """An item on which the call raised even alone."""

    error: BaseException


class InStage(Exception):
    """Says that `cause` came from another stage than the one whose call was tried."""

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
    :returns: what `call` gave for each item, or :class:`Failed`.
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
            f"{what}: {type(error).__name__}({shorten(str(error))}) was raised in {place.filename}, line "
            f"{place.lineno}; a stage must not end the process"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` means that memory ran out, on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _free_cached_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
