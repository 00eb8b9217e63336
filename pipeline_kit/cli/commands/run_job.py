"""``run --output DIR``: a job that can be stopped, killed and resumed."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from pipeline_kit.cli.inputs import Inputs
from pipeline_kit.cli.outputs import OTHER_ENDINGS
from pipeline_kit.cli.progress import JobProgress, Telling
from pipeline_kit.cli.signals import stop, stopping
from pipeline_kit.cli.stdio import no_collection, say
from pipeline_kit.errors import UsageError, for_message
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.storage.base import join_key, scheme_of
from pipeline_kit.files.write.base import FILE_FORMATS

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.job.ledger import JobWatcher
    from pipeline_kit.job.run import JobSummary
    from pipeline_kit.runtime.pipeline import Pipeline

R = TypeVar("R")


_FILE_ENDINGS = {*(f".{known}" for known in FILE_FORMATS), ".ndjson", ".gz", *OTHER_ENDINGS}


def folder_path(name: str | None) -> str | None:
    """Return what ``--output`` names if that is a folder: it is one, ends with a slash, or is new and has no ending.

    :raises UsageError: for the URL of a file: into a store only jobs write.
    """
    if name is None or name == "-":
        return None
    if scheme_of(name) is not None:
        if not name.endswith("/") and PurePosixPath(name).suffix.lower() in _FILE_ENDINGS:
            shown, instead = for_message(name), re.sub(r"\.\w+(\.gz)?$", "/", for_message(name))
            raise UsageError(f"--output {shown}: one file is written on this machine only; name a folder: {instead}")
        if scheme_of(folder := name.rstrip("/")) is None:
            raise UsageError(f"--output {for_message(name)}: names no bucket; write it as s3://bucket/labels/")
        return folder
    path = Path(name).expanduser()
    new = not path.suffix and not os.path.lexists(path)
    return str(path) if new or name.endswith("/") or path.is_dir() else None


def folder_within(folder: str, name: str) -> str:
    """Return the folder of one run of a sweep in that of all; `name` is empty if there is just one run."""
    return join_key(folder, name) if name else folder


def run_folder(
    config: PipelineConfig,
    inputs: Inputs,
    path: str,
    telling: Telling,
    *,
    plugins: Sequence[str],
    restart: bool,
    retry: bool,
    verify: bool,
) -> int:
    """Run one job to its end, or the rows of it that failed; 1 if rows failed, or some were never run.

    :param plugins: files and modules of plugins, for the processes that share the job.
    :raises PipelineKitError: as :func:`pipeline_kit.job.run.run_to_end`.
    """
    from pipeline_kit.compose.schema import carry_all
    from pipeline_kit.job.run import run_to_end
    from pipeline_kit.job.runner import Job

    told = _told_again if retry else _told
    with open_source(config, inputs) as opened:
        config, source = carry_all(config, opened, identified=True)
        job = Job(config, source, path, build_pipeline, restart, retry, plugins, verify)
        count = (lambda: None) if retry else source.count
        summary = until_stopped(path, count, telling, lambda watcher: run_to_end(job, watcher))
    if telling != "quiet":
        say(told(summary, summary.folder))
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


def until_stopped(path: str, count: Callable[[], int | None], telling: Telling, run: Callable[[JobWatcher], R]) -> R:
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


def _told(summary: JobSummary, path: str) -> str:
    stats, seconds = summary.stats, max(summary.seconds, 1e-9)
    parts: Sequence[str] = [f"{summary.rows:,} row{'s' * (summary.rows != 1)} in {summary.shards:,} shards"]
    parts = [*parts, *([f"{summary.reused:,} of them done before"] if summary.reused else [])]
    parts = [*parts, *([f"{stats.truncated_rows:,} truncated"] if stats.truncated_rows else [])]
    parts = [*parts, *([f"{stats.retries:,} calls tried again"] if stats.retries else [])]
    parts = [*parts, *([f"{summary.dead:,} failed, see {path}/_dead"] if summary.dead else [])]
    if not stats.rows:
        return f"{path}: complete, {', '.join(parts)}; nothing was left to do"
    speed = f"{stats.rows / seconds:,.0f} rows/s, {stats.tokens / seconds:,.0f} tokens/s"
    stages = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in stats.seconds.items())
    return (
        f"{path}: complete, {', '.join(parts)}\n"
        f"  {seconds:.1f} s ({speed}), padding {stats.padding_share:.1%}; time in stages: {stages}"
    )


def _told_again(summary: JobSummary, path: str) -> str:
    done = summary.rows - summary.reused - summary.dead
    rows = f"{done:,} row{'s have' if done != 1 else ' has'} a result now"
    failed = f", {summary.dead:,} failed again, see {path}/_dead" if summary.dead else ""
    rest = "" if summary.complete else "; the job is not complete, run it without --retry to continue"
    return "\n".join([*(f"note: {line}" for line in summary.changes), f"{path}: {rows}{failed}{rest}"])
