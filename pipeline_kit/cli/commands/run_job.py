"""``run --output DIR``: a job that can be stopped, killed and resumed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from pipeline_kit.cli.inputs import Inputs
from pipeline_kit.cli.progress import JobProgress, Telling
from pipeline_kit.cli.signals import stop, stopping
from pipeline_kit.cli.stdio import no_collection, say
from pipeline_kit.errors import UsageError
from pipeline_kit.files.read.source import Source

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.job.run import JobSummary
    from pipeline_kit.job.watcher import JobWatcher
    from pipeline_kit.runtime.pipeline import Pipeline

R = TypeVar("R")


def folder_path(name: str | None) -> Path | None:
    """Return what ``--output`` names if that is a folder: it is one, ends with a slash, or is new and has no ending."""
    if name is None or name == "-":
        return None
    path = Path(name).expanduser()
    new = not path.suffix and not os.path.lexists(path)
    return path if new or name.endswith("/") or path.is_dir() else None


def run_folder(
    config: PipelineConfig,
    inputs: Inputs,
    path: Path,
    telling: Telling,
    *,
    plugins: Sequence[str],
    restart: bool,
    retry: bool,
) -> int:
    """Run one job to its end, or the rows of it that failed; 1 if rows failed, or some were never run.

    :param plugins: files and modules of plugins, for the processes that share the job.
    :raises PipelineKitError: as :func:`pipeline_kit.job.run.run_to_end`.
    """
    from pipeline_kit.job.run import run_to_end
    from pipeline_kit.job.runner import Job

    told = _told_again if retry else _told
    with open_source(config, inputs) as source:
        job = Job(config, source, path, build_pipeline, restart, retry, plugins)
        count = (lambda: None) if retry else source.count
        summary = until_stopped(path, count, telling, lambda watcher: run_to_end(job, watcher))
    if telling != "quiet":
        say(told(summary, path))
    return 1 if summary.dead or not summary.complete else 0


def open_source(config: PipelineConfig, inputs: Inputs) -> Source:
    """Open a job's input.

    :raises UsageError: if there are texts and files.
    """
    if inputs.examples and inputs.files:
        raise UsageError("a job takes --input, or --text and --json, not both; put the texts into a file")
    if inputs.examples:
        return Source.of(inputs.examples, config.input, config.task.takes)
    return Source.open(inputs.files, config.input, config.task.takes)


def build_pipeline(config: PipelineConfig) -> Pipeline:
    """Build, with Python's garbage collector held back."""
    from pipeline_kit.compose.build import build

    with no_collection():
        return build(config)


def until_stopped(path: Path, count: Callable[[], int | None], telling: Telling, run: Callable[[JobWatcher], R]) -> R:
    """Call `run` with a progress bar; say what a stop means."""
    try:
        with _second_signal_ends(), JobProgress(count, telling) as progress:
            return run(progress)
    except (KeyboardInterrupt, SystemExit):
        say(f"{path}: stopped; what is done is kept, run the same command again to continue")
        raise


@contextmanager
def _second_signal_ends() -> Iterator[None]:
    """Let the first signal end the job in order, and the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, lambda again, _: os._exit(128 + again))
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        stop(number, frame)

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell does for what runs in the background
    before = {number: signal.signal(number, first) for number in [*stopping(), *([] if ignored else [signal.SIGINT])]}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(summary: JobSummary, path: Path) -> str:
    stats, seconds = summary.stats, max(summary.seconds, 1e-9)
    parts: Sequence[str] = [f"{summary.rows:,} row{'s' * (summary.rows != 1)} in {summary.shards:,} shards"]
    parts = [*parts, *([f"{summary.reused:,} of them done before"] if summary.reused else [])]
    parts = [*parts, *([f"{stats.truncated_rows:,} truncated"] if stats.truncated_rows else [])]
    parts = [*parts, *([f"{stats.retries:,} calls tried again"] if stats.retries else [])]
    parts = [*parts, *([f"{summary.dead:,} failed, see {path / '_dead'}"] if summary.dead else [])]
    if not stats.rows:
        return f"{path}: complete, {', '.join(parts)}; nothing was left to do"
    speed = f"{stats.rows / seconds:,.0f} rows/s, {stats.tokens / seconds:,.0f} tokens/s"
    stages = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in stats.seconds.items())
    return (
        f"{path}: complete, {', '.join(parts)}\n"
        f"  {seconds:.1f} s ({speed}), padding {stats.padding_share:.1%}; time in stages: {stages}"
    )


def _told_again(summary: JobSummary, path: Path) -> str:
    done = summary.rows - summary.reused - summary.dead
    rows = f"{done:,} row{'s have' if done != 1 else ' has'} a result now"
    failed = f", {summary.dead:,} failed again, see {path / '_dead'}" if summary.dead else ""
    rest = "" if summary.complete else "; the job is not complete, run it without --retry to continue"
    return "\n".join([*(f"note: {line}" for line in summary.changes), f"{path}: {rows}{failed}{rest}"])
