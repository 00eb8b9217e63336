"""What a run tells on stderr: a bar while it is long, failed rows, a summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline_kit.cli.streams import is_terminal, say
from pipeline_kit.errors import shorten
from pipeline_kit.stats import RunStats
from pipeline_kit.types import Device, RowFailure

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Failures", "ProgressBar", "summary"]

PATIENCE_SECONDS = 1.0
MOST_SHOWN = 20


class ProgressBar:
    """A bar on stderr that appears once a run has lasted a second, and only for a person."""

    def __init__(self, count: Callable[[], int | None], wanted: bool = True) -> None:
        """Ask `count` for the number of rows if the bar appears."""
        self._count = count
        self._wanted = wanted and is_terminal(sys.stderr)
        self._start = 0.0
        self._bar: Progress | None = None
        self._rows = 0

    def __enter__(self) -> ProgressBar:
        """Begin to wait."""
        self._start = monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self) -> None:
        """Count one more row."""
        self._rows += 1
        if not self._wanted:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._rows)
        elif monotonic() - self._start > PATIENCE_SECONDS:
            self._bar = self._begin()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar away while the body prints."""
        if self._bar is None:
            yield
            return
        bar = self._bar
        bar.stop()
        try:
            yield
        finally:
            bar.start()

    def _begin(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        bar.start()
        bar.add_task("rows", total=self._count(), completed=self._rows)
        return bar


class Failures:
    """Tells of failed rows, the first ones one by one."""

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0

    def add(self, failure: RowFailure) -> None:
        """Tell of one more."""
        self.count += 1
        if self.count <= MOST_SHOWN:
            say(f"row {failure.index} failed: {failure.stage}: {failure.error}: {shorten(failure.message)}")

    def close(self) -> None:
        """Tell how many were not told of."""
        if self.count > MOST_SHOWN:
            say(f"... and {self.count - MOST_SHOWN:,} more rows failed; the results say why")


def summary(stats: RunStats, device: Device, seconds: float) -> str:
    """Say in one line what a run did."""
    parts = [f"{stats.rows:,} row{'s' if stats.rows != 1 else ''}"]
    if stats.failed:
        parts.append(f"{stats.failed:,} failed")
    if stats.truncated_rows:
        parts.append(f"{stats.truncated_rows:,} truncated")
    if stats.windows:
        parts.append(f"{stats.windows:,} windows")
    seconds = max(seconds, 1e-9)
    speed = f"{stats.rows / seconds:,.0f} rows/s, {stats.tokens / seconds:,.0f} tokens/s"
    threads = f", {device.threads} thread{'s' if device.threads != 1 else ''}" if device.kind == "cpu" else ""
    where = f"{device.name} {device.dtype}{threads}"
    return f"{', '.join(parts)} in {seconds:.2f} s ({speed}), padding {stats.padding_share:.1%}, {where}"
