"""``run --output DIR``: a job that can be stopped, killed and taken up again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from pipeline_kit.cli.inputs import Inputs
from pipeline_kit.cli.job_progress import JobProgress, Telling
from pipeline_kit.cli.startup import no_collection
from pipeline_kit.cli.streams import say
from pipeline_kit.errors import Stopped, UsageError, shorten
from pipeline_kit.records import Source

if TYPE_CHECKING:
    from pipeline_kit.job.command import Command
    from pipeline_kit.job.run import JobSummary
    from pipeline_kit.job.watcher import Watcher
    from pipeline_kit.pipeline import Pipeline
    from pipeline_kit.pipeline_config import PipelineConfig

__all__ = ["build_pipeline", "folder_path", "run_folder", "source_of", "until_stopped", "with_flags"]

R = TypeVar("R")


def folder_path(name: str | None) -> Path | None:
    """Give what ``--output`` names if that is a folder: it is one, ends with a slash, or is new and has no ending."""
    if name is None or name == "-":
        return None
    path = Path(name).expanduser()
    new = not path.suffix and not os.path.lexists(path)
    return path if new or name.endswith("/") or path.is_dir() else None


def run_folder(
    config: PipelineConfig, inputs: Inputs, path: Path, command: Command, *, restart: bool, telling: Telling
) -> int:
    """Run one job to its end; 1 if rows failed.

    :param command: how it was asked for; its ``format`` is that of the shards, None: what the config says.
    :raises PipelineKitError: as :func:`pipeline_kit.job.run.carry_out`.
    """
    from pipeline_kit.job.run import Job, carry_out

    config = with_flags(config, inputs, command.format)
    with source_of(config, inputs) as source:
        job = Job(config, source, path, build_pipeline, restart, command.plugins, command.kept())
        summary = until_stopped(path, source.count, telling, lambda watcher: carry_out(job, watcher))
    if telling != "quiet":
        say(_told(summary, path))
    return 1 if summary.dead else 0


def with_flags(config: PipelineConfig, inputs: Inputs, format: str | None) -> PipelineConfig:
    """Put ``--fields``, ``--input-format`` and ``--format`` into the config, where the job remembers them.

    :raises UsageError: for a format that is not one of shards.
    """
    if format not in (None, "jsonl", "csv", "parquet"):
        raise UsageError(f"--format {shorten(format, 40)}: a folder holds jsonl, csv or parquet")
    fields = {**config.input.fields, **inputs.columns}
    reading = replace(config.input, fields=fields, format=inputs.format or config.input.format)
    writing = config.output if format is None else replace(config.output, format=format)  # type: ignore[arg-type]
    data = {**config.data, "input": asdict(reading), "output": asdict(writing)}
    return replace(config, input=reading, output=writing, data=data)


def source_of(config: PipelineConfig, inputs: Inputs) -> Source:
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
    from pipeline_kit.build import build

    with no_collection():
        return build(config)


def until_stopped(path: Path, count: Callable[[], int | None], telling: Telling, run: Callable[[Watcher], R]) -> R:
    """Call `run` with a progress bar; say what a stop means."""
    try:
        with _second_signal_ends(), JobProgress(count, telling) as progress:
            return run(progress)
    except (KeyboardInterrupt, SystemExit):
        say(f"{path}: stopped; what is done is kept, run the same command again to go on")
        raise


@contextmanager
def _second_signal_ends() -> Iterator[None]:
    """Let the first signal end the job in order, and the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda again, _: os._exit(128 + again))
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(128 + number)

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
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
