"""Run the rows of a job that failed once more."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_kit.cli.inputs import Inputs, add_file_flags
from pipeline_kit.cli.job import build_pipeline, source_of, until_stopped, with_flags
from pipeline_kit.cli.job_progress import Telling
from pipeline_kit.cli.selection import Selection, add_source_flags
from pipeline_kit.cli.streams import say
from pipeline_kit.errors import PipelineKitError, UsageError, shorten
from pipeline_kit.records import FORMATS

if TYPE_CHECKING:
    from pipeline_kit.job.again import Retried
    from pipeline_kit.job.command import Command

__all__ = ["EPILOG", "TAKES_WORDS", "configure", "execute"]

TAKES_WORDS = "folder or override"
EPILOG = """\
examples:
  pipeline-kit retry labels/
  pipeline-kit retry labels/ tokenizer.overflow=window
  pipeline-kit retry labels/ device=cpu batching.max_tokens=512

DIR is the folder of a job (run --output DIR). Its rows that failed are run again, with the options of then and those
given now; task, input and output stay as they are. Rows that have a result now are in part-NNNNN.retry-1.jsonl
beside the shard, and no longer in _dead. The exit code is 1 if rows failed again.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``retry``."""
    parser.usage = "pipeline-kit retry DIR [OVERRIDE ...]"
    group = parser.add_argument_group("input", "that of the job, unless its files are named otherwise now")
    add_file_flags(group, FORMATS)
    add_source_flags(parser.add_argument_group("config"))
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress bar and no summary")
    parser.add_argument("--log-json", action="store_true", help="tell the progress as lines of JSON on stderr")


def execute(args: argparse.Namespace) -> int:
    """Run them again; 1 if rows failed again."""
    from pipeline_kit.job.again import retry_job
    from pipeline_kit.job.command import Command
    from pipeline_kit.job.manifest import read_manifest
    from pipeline_kit.job.run import Job

    if not args.words or "=" in args.words[0]:
        raise UsageError("name the folder of the job first: pipeline-kit retry DIR [OVERRIDE ...]")
    if args.quiet and args.log_json:
        raise UsageError("--quiet and --log-json: give one of the two")
    path = Path(args.words[0]).expanduser()
    strange = next((word for word in args.words[1:] if "=" not in word and not word.startswith("~")), None)
    if strange is not None:
        raise UsageError(f"'{shorten(strange, 80)}' is no override (key=value), and one folder was named already")
    manifest = read_manifest(path / "_manifest.json")
    if manifest is None:
        raise UsageError(f"{path}: holds no job; give the folder that was given to: pipeline-kit run --output")
    command = Command.read(manifest.command, args.words[1:])
    command = replace(
        command, plugins=[*command.plugins, *args.plugin], config_dirs=[*args.config_dir, *command.config_dirs]
    )
    telling: Telling = "quiet" if args.quiet else "json" if args.log_json else "person"
    try:
        selection = Selection(
            tuple(command.overrides), tuple(command.config_dirs), command.config_name, tuple(command.plugins), False
        )
        [(_, config)] = selection.compositions(selection.registry())
        inputs = _inputs(args, command)
        config = with_flags(config, inputs, command.format)
        with source_of(config, inputs) as source:
            job = Job(config, source, path, build_pipeline, plugins=command.plugins)
            done = until_stopped(
                path, lambda: manifest.counts.get("dead"), telling, lambda watcher: retry_job(job, watcher)
            )
    except PipelineKitError as error:
        if (elsewhere := command.elsewhere()) is not None:
            say(f"note: {elsewhere}")
        raise error
    if telling != "quiet":
        _tell(done, path)
    return 1 if done.dead else 0


def _tell(done: Retried, path: Path) -> None:
    for line in done.changed:
        say(f"note: {line}")
    rows = f"{done.done:,} row{'s have' if done.done != 1 else ' has'} a result now"
    failed = f", {done.dead:,} failed again, see {path / '_dead'}" if done.dead else ""
    rest = "" if done.complete else "; the job is not complete, run it again to go on"
    say(f"{path}: {rows}{failed}{rest}")


def _inputs(args: argparse.Namespace, command: Command) -> Inputs:
    """Give the job's input: the files named now, else those of then."""
    args.text, args.json = [], []
    if not args.input:
        if not command.files or "-" in command.files:
            raise UsageError("the job's texts came from no file that could be read again; name one: --input FILE")
        args.input = list(command.files)
    args.input_format = args.input_format or command.input_format
    args.fields = args.fields or [f"{name}={column}" for name, column in command.fields.items()]
    return Inputs.of(args)
