"""Ids one by one out of a search that does not return before it is done: it runs in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import torch

from pipeline_kit.builtin.quiet import quiet

__all__ = ["write_in_thread"]


class _Closed(Exception):
    """Nobody wants more ids."""


class _Streamer:
    """What transformers' generate hands its ids to: first those it starts with, then each new one."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.closed = False
        self._started = False

    def put(self, value: torch.Tensor) -> None:
        """Take ids.

        :raises _Closed: out of the search, which ends it, if nobody wants more.
        """
        if self.closed:
            raise _Closed
        if self._started:
            self.queue.put(int(value.reshape(-1)[-1]))
        self._started = True

    def end(self) -> None:
        """Nothing is left to do; the thread tells when it is done."""


def write_in_thread(generate: Callable[[Any], object]) -> Iterator[int]:
    """Run `generate` with a streamer and give the ids that it hands over, in step with the reader or ahead of it.

    Closing the iterator ends the search after the token it is at, and waits for that.

    :raises Exception: whatever `generate` raises.
    """
    streamer = _Streamer()

    def work() -> None:
        outcome: BaseException | None = None
        try:
            with torch.inference_mode(), quiet():
                generate(streamer)
        except _Closed:
            pass
        except BaseException as error:  # handed to the reader, whatever it is
            outcome = error
        streamer.queue.put(outcome)

    thread = threading.Thread(target=work, name="pipeline-kit-writer", daemon=True)
    thread.start()
    try:
        while isinstance(item := streamer.queue.get(), int):
            yield item
        if item is not None:
            raise item
    finally:
        streamer.closed = True
        thread.join()
