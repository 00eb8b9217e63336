"""What asks the command line to end from outside: SIGTERM, and SIGHUP when a terminal is closed."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline_kit.errors import Stopped

SECONDS_TO_HEAR = 0.5

received: list[int] = []
"""The signals that asked this run to end. Code that swallows every exception cannot hide them."""


def stopping() -> list[signal.Signals]:
    """List the signals that ask to end; one that is ignored, as under nohup, stays ignored."""
    known = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
    return [number for number in known if number is not None and signal.getsignal(number) is not signal.SIG_IGN]


def stop(number: int, frame: FrameType | None = None) -> None:
    """End the run as an exception does, so that open files are cleaned up.

    :raises Stopped: unless the run is ending already.
    """
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Stopped):
            return
        error = error.__context__
    received.append(number)
    raise Stopped(128 + number)


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals while the body runs."""
    received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    sending, ended = _thread.allocate_lock(), False

    def first(number: int, frame: FrameType | None) -> None:
        if ended:
            return
        if not received:
            _thread.start_new_thread(repeat, (number,))
        stop(number, frame)

    def repeat(number: int) -> None:
        """Ask again: an exception that is raised while a library is imported or collected may be lost there."""
        while True:
            time.sleep(SECONDS_TO_HEAR)
            with sending:
                if ended or signal.getsignal(number) is not first:
                    return
                os.kill(os.getpid(), number)

    before = {number: signal.signal(number, first) for number in stopping()}
    try:
        yield
    finally:
        with sending:
            ended = True
        for number, handler in before.items():
            signal.signal(number, handler)
