"""Narrow a failure on many items down to the items that cause it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline_kit.errors import StageError

__all__ = ["Failed", "InStage", "is_out_of_memory", "isolate"]

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

    Lack of memory is handled by the same halving. A panic in a tokenizer's native code is a
    BaseException, so those are caught too, apart from the ones that ask the process to stop.

    :param first: called in the place of `call` on all of `items`, such as one that tries several times.
    :returns: what `call` gave for each item, or :class:`Failed`.
    :raises StageError: at once, since then the stage is wrong and not an item.
    """
    if not items:
        return []
    try:
        return list((first or call)(items))
    except (KeyboardInterrupt, SystemExit, GeneratorExit, StageError):
        raise
    except BaseException as error:
        if len(items) == 1:
            return [Failed(error)]
        if is_out_of_memory(error):
            _free_cached_memory()
    half = len(items) // 2
    return isolate(call, items[:half]) + isolate(call, items[half:])


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
