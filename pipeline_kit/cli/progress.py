"""What a run prints on stderr: a bar while it is long, failed rows, a summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, final

from pipeline_kit.cli.stdio import is_terminal, say
from pipeline_kit.contract.types import Device, RunStats
from pipeline_kit.errors import RowFailure, for_message
from pipeline_kit.job.ledger import JobWatcher

if TYPE_CHECKING:
    from rich.progress import Progress

    from pipeline_kit.job.receipt import Receipt

PATIENCE_SECONDS = 1.0
MOST_SHOWN = 20


class ProgressBar:
    """A bar on stderr that appears once a run has lasted a second, and only for a person."""

    def __init__(self, count: Callable[[], int | None], wanted: bool = True) -> None:
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
            self._bar = _begin(self._count(), self._rows)

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


def _begin(total: int | None, done: int, *, text: bool = False) -> Progress:
    """Show a bar on stderr; with `text` it has words of the job where the time that went by would be."""
    from rich import progress
    from rich.console import Console

    middle = progress.TextColumn("{task.fields[text]}") if text else progress.TimeElapsedColumn()
    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), middle, progress.TimeRemainingColumn())
    bar = progress.Progress(*columns, console=Console(file=sys.stderr), transient=True)
    bar.start()
    bar.add_task("rows", total=total, completed=done, text="")
    return bar


class Failures:
    """Prints failed rows, the first ones one by one."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, failure: RowFailure) -> None:
        """Print or count one more."""
        self.count += 1
        if self.count <= MOST_SHOWN:
            say(f"row {failure.index} failed: {failure.stage}: {failure.error}: {for_message(failure.message)}")

    def close(self) -> None:
        """Print how many were not printed."""
        if self.count > MOST_SHOWN:
            say(f"... and {self.count - MOST_SHOWN:,} more rows failed; the results say why")


def summary(stats: RunStats, device: Device, seconds: float) -> str:
    """Summarise a run in one line."""
    parts = [f"{stats.rows:,} row{'s' if stats.rows != 1 else ''}"]
    if stats.failed:
        parts.append(f"{stats.failed:,} failed")
    if stats.truncated_rows:
        parts.append(f"{stats.truncated_rows:,} truncated")
    if stats.windows:
        parts.append(f"{stats.windows:,} windows")
    if stats.repeats:
        parts.append(f"{stats.repeats:,} repeats")
    seconds = max(seconds, 1e-9)
    speed = f"{stats.rows / seconds:,.0f} rows/s, {stats.tokens / seconds:,.0f} tokens/s"
    threads = f", {device.threads} thread{'s' if device.threads != 1 else ''}" if device.kind == "cpu" else ""
    where = f"{device.name} {device.dtype}{threads}"
    return f"{', '.join(parts)} in {seconds:.2f} s ({speed}), padding {stats.padding_share:.1%}, {where}"


LINE_SECONDS = 30.0
BAR_SECONDS = 0.2

Telling = Literal["person", "quiet", "json"]


@final
class JobProgress(JobWatcher):
    """Prints the progress of a job."""

    def __init__(self, count: Callable[[], int | None], telling: Telling) -> None:
        self._count, self._telling = count, telling
        self._total: int | None = None
        self._before = 0
        self._start = self._told = monotonic()
        self._bar: Progress | None = None
        self._workers: Mapping[str, int] = {}

    def __enter__(self) -> JobProgress:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def resumed(self, rows: int) -> None:
        """Print what was done before."""
        self._before = rows
        if rows:
            self._say(f"{rows:,} rows were done before", {"event": "resumed", "rows": rows})

    def planned(self, rows: int) -> None:
        """Take the number of rows, which need not be counted then."""
        self._total = rows

    def loaded(self, notes: Sequence[str]) -> None:
        """Begin to count time once the model is there."""
        for note in notes:
            self._say(f"note: {note}", {"event": "note", "note": note})
        if self._total is None and self._telling != "quiet":
            self._total = self._count()
        self._start = self._told = monotonic()
        if self._telling == "person" and is_terminal(sys.stderr):
            self._bar = _begin(self._total, self._before, text=True)

    def advanced(self, stats: RunStats) -> None:
        """Show how far the job is, not more often than is worth reading."""
        now = monotonic()
        if now - self._told < (BAR_SECONDS if self._bar is not None else LINE_SECONDS):
            return
        self._told = now
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._before + stats.rows, text=self._text(stats))
        else:
            found = self._numbers(stats)
            of = "" if found["of"] is None else f" of {found['of']:,}"
            left = "" if found["seconds_left"] is None else f", {found['seconds_left']:,} s left"
            self._say(f"{found['rows']:,}{of} rows, {self._text(stats)}{left}", {"event": "progress", **found})

    def shard(self, receipt: Receipt) -> None:
        """Log a shard that is done."""
        if self._telling == "json":
            self._say("", {"event": "shard", "shard": receipt.shard, "rows": receipt.rows, "failed": receipt.dead})

    def workers(self, counts: Mapping[str, int]) -> None:
        """Show how many workers there are, and what became of others."""
        self._workers = counts

    def event(self, name: str, text: str, fields: Mapping[str, Any]) -> None:
        """Print what happened to a worker."""
        if self._bar is None:
            self._say(text, {"event": name, **fields})
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def _numbers(self, stats: RunStats) -> dict[str, Any]:
        seconds = max(monotonic() - self._start, 1e-9)
        left = None if self._total is None else max(0, self._total - self._before - stats.rows)
        return {
            "rows": self._before + stats.rows,
            "of": self._total,
            "rows_per_second": round(stats.rows / seconds, 1),
            "tokens_per_second": round(stats.tokens / seconds),
            "seconds_left": None if left is None or not stats.rows else round(left * seconds / stats.rows),
            "failed": stats.failed,
            "truncated": stats.truncated_rows,
            **self._workers,
        }

    def _text(self, stats: RunStats) -> str:
        found = self._numbers(stats)
        parts = [f"{found['rows_per_second']:,.0f} rows/s", f"{found['tokens_per_second']:,} tokens/s"]
        parts += [f"{found[name]:,} {name}" for name in ("failed", "truncated") if found[name]]
        parts += [f"{count:,} {name}" for name, count in self._workers.items() if count or name == "workers"]
        return ", ".join(parts)

    def _say(self, text: str, content: dict[str, Any]) -> None:
        if self._telling == "json":
            say(json.dumps(content))
        elif self._telling == "person":
            say(text)
