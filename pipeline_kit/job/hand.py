"""A worker process, as the job sees it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final

from pipeline_kit.errors import JobError
from pipeline_kit.job import worker
from pipeline_kit.job.shard import Work
from pipeline_kit.stats import RunStats

__all__ = ["Hand"]

SECONDS_TO_END = 2.0


@final
class Hand:
    """One worker.

    :ivar work: the shard that it makes or will make; None if it waits for one.
    :ivar started: whether it was told what to build.
    :ivar entered: by stage, since when it works on which rows, ``time.monotonic()``.
    :ivar proposed: what all shards could agree on, while it waits to hear what they do; None otherwise.
    """

    def __init__(self, number: int) -> None:
        """Start the process; it loads nothing before it is told what."""
        self.number = number
        self.work: Work | None = None
        self.started = False
        self.live = RunStats()
        self.entered: dict[str, tuple[float, Sequence[int]]] = {}
        self.proposed: Any = None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        name = f"pipeline-kit-worker-{number}"
        self.process = context.Process(target=worker.main, args=(theirs,), daemon=True, name=name)
        with _without_interrupts():
            self.process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        """Tell the worker.

        :raises JobError: if it is gone.
        """
        try:
            self.connection.send(message)
        except OSError as error:
            raise self.died() from error

    def died(self) -> JobError:
        """Say how the process ended."""
        self.process.join(SECONDS_TO_END)
        code = self.process.exitcode
        how = "closed its connection" if code is None else f"ended with exit code {code}"
        hint = "an extension module may have ended it"
        if code is not None and code < 0:
            with suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                hint = (
                    "the system does that when memory runs out: fewer runner.workers or a smaller batching.max_tokens"
                )
        work = "" if self.work is None else f" while it made shard {self.work.number}"
        return JobError(
            f"worker {self.number} (process {self.process.pid}) {how}{work}; {hint}.\n"
            "  What is done is kept; run the same command again to go on"
        )

    def end(self) -> None:
        """End the process at once, whatever it does; it writes no file, so nothing is torn."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.process.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start a process that ctrl-c does not reach before it can say so itself; this one gets it a moment later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
