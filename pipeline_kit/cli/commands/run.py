"""Run a pipeline over texts or a file; results are JSON lines, on a terminal a table."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_kit.cli.commands.run_job import folder_path, folder_within, run_folder
from pipeline_kit.cli.inputs import Inputs, add_input_flags
from pipeline_kit.cli.outputs import (
    Sink,
    check_outputs,
    columns_sink,
    file_sink,
    jsonl_sink,
    output_path,
    run_rows,
    run_source,
    sweep_names,
    swept,
    table_sink,
)
from pipeline_kit.cli.progress import Failures, ProgressBar, Telling, summary
from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags
from pipeline_kit.cli.stdio import (
    flush_out,
    is_terminal,
    no_collection,
    prepare_stdout,
    print_out,
    say,
    stdout,
    write_out,
)
from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import RowFailure, UsageError, did_you_mean, for_message, without_secrets
from pipeline_kit.files.read.columns import Columns
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.storage.base import scheme_of
from pipeline_kit.files.write.base import FILE_FORMATS, OutputConfig, ending_of
from pipeline_kit.files.write.formats import stream_format
from pipeline_kit.files.write.layout import Layout

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.contract.registry import Registry

TAKES_WORDS = OVERRIDES
FORMATS = ("jsonl", "table", "csv", "parquet")
EPILOG = """\
examples:
  pipeline-kit run --text "I love this." --text "I hate it."
  pipeline-kit run --input reviews.csv --fields text=review_body --output labels.jsonl
  pipeline-kit run --input 'reviews/*.parquet' --output labels/ input.id=review_id input.carry=[stars]
  pipeline-kit run --input 'reviews/*.parquet' --output labels/ input.id=review_id input.carry=[stars] --retry
  cat lines.txt | pipeline-kit run task=sentence-embedding checkpoint.path=./my-model
  pipeline-kit run task=text-generation checkpoint.path=./my-model --stream --text "Once upon a time"
  pipeline-kit run -m padding=longest,max_length --text "I love this."

A row that fails keeps its place in the results as {"error": {"stage", "type", "message"}}; the other
rows are not affected, and the exit code is 1. Rows of a job that failed are kept in _dead; the same command with
--retry runs them again. Their results are in part-NNNNN.retry-1.jsonl beside the shard. Options may differ then, but
task, input and output stay as they are.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``run``."""
    parser.usage = (
        "pipeline-kit run [--text T]... [--json OBJECT]... [--input FILE|-] [--output FILE|DIR] [OVERRIDE ...]"
    )
    add_input_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        "-o",
        metavar="FILE|DIR",
        help="a file, all or nothing: .jsonl, .csv, .parquet; or a folder of shards, a job that can be resumed, also a "
        "URL such as s3://bucket/labels/",
    )
    group.add_argument(
        "--format",
        metavar="|".join(FORMATS),
        dest="output_format",
        help="or a plugin's; default: by the ending of --output; table on a terminal, else jsonl",
    )
    group.add_argument("--stream", action="store_true", help="print one text as it is written, for tasks that write")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress bar and no summary")
    group.add_argument("--log-json", action="store_true", help="of a job: tell its progress as lines of JSON on stderr")
    group.add_argument(
        "--restart", action="store_true", help="of a job: begin anew; the folder that is there is renamed, not deleted"
    )
    group.add_argument("--retry", action="store_true", help="of a job: run the rows again that failed")
    group.add_argument(
        "--verify", action="store_true", help="of a job in a store: hash what is done instead of comparing sizes"
    )
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Run; 1 if any row failed."""
    selection = Selection.of(args)
    folder = None if args.stream else folder_path(args.output)
    if folder is not None:
        return _run_folders(args, selection, folder)
    if args.restart or args.retry or args.verify or args.log_json:
        raise UsageError("--restart, --retry, --verify and --log-json are for jobs: pass --output DIR, a folder")
    registry = _registry(selection, args.output_format)
    output = output_path(args.output, args.output_format, FILE_FORMATS)
    inputs = Inputs.of(args)
    if args.stream:
        refuse_with_stream(args, selection, inputs)
    jobs = selection.compositions(registry)
    if any(config.runner.workers > 1 or config.runner.batch_timeout is not None for _, config in jobs):
        raise UsageError("runner.workers and runner.batch_timeout are for jobs: pass --output DIR, a folder")
    if args.stream:
        jobs[0][1].refuse_steps("--stream is for")
        return run_stream(jobs[0][1], inputs, args.quiet)
    for _, config in jobs:
        Columns.of(config.task.takes, config.input.fields, None, ())
    paths = [output and swept(output, name) for name in sweep_names([words for words, _ in jobs])]
    check_outputs([("--output", path) for path in paths], inputs.files, selection, [config for _, config in jobs])
    formats = [_format(output, args.output_format == "table", config.output) for _, config in jobs]
    # Without an option that chooses among rows, they come straight from the files and from stdin as it is written.
    all_rows = InputConfig(format=jobs[0][1].input.format)
    chosen = any(replace(config.input, fields={}) != all_rows for _, config in jobs)
    failed = 0
    with inputs.spooled_stdin(several=len(jobs) > 1 and not chosen), closing(inputs):
        sources = [inputs.source(config.input, config.task.takes) if chosen else None for _, config in jobs]
        for number, (overrides, config) in enumerate(jobs):
            heading = without_secrets(overrides) if selection.multirun else None
            printing = OutputPlan(paths[number], formats[number], heading, args.quiet)
            source = sources[number]
            if source is not None and config.input.carry:
                from pipeline_kit.compose.schema import carry_all

                config, source = carry_all(config, source, identified=config.input.id is not None)
            failed += _run(config, inputs, source, printing)
    return 1 if failed else 0


def _run_folders(args: argparse.Namespace, selection: Selection, folder: str) -> int:
    """Run a job, or one for each combination of a sweep, each in a folder of its own in the one that was named."""
    if args.quiet and args.log_json:
        raise UsageError("--quiet and --log-json: pass one of the two")
    if args.restart and args.retry:
        raise UsageError("--restart begins anew, --retry runs rows again that failed; pass one of the two")
    if args.output_format == "table":
        raise UsageError("--format table: a folder holds jsonl, csv or parquet")
    inputs = Inputs.of(args)
    jobs = selection.compositions(_registry(selection, args.output_format))
    telling: Telling = "quiet" if args.quiet else "json" if args.log_json else "person"
    failed = 0
    paths = [folder_within(folder, name) for name in sweep_names([words for words, _ in jobs])]
    check_outputs([("--output", path) for path in paths], inputs.files, selection, [config for _, config in jobs])
    if len(jobs) > 1 and scheme_of(folder) is None:
        with suppress(OSError):  # a job says why a folder cannot be made
            Path(folder).mkdir()
    for path, (overrides, config) in zip(paths, jobs, strict=True):
        if selection.multirun and not args.quiet:
            say(f"{path}: {' '.join(without_secrets(overrides)) or 'no overrides'}")
        failed += run_folder(
            config,
            inputs,
            path,
            telling,
            plugins=selection.plugins,
            restart=args.restart,
            retry=args.retry,
            verify=args.verify,
        )
    return 1 if failed else 0


def _registry(selection: Selection, format: str | None) -> Registry:
    """Load what is registered; refuse a ``--format`` that is neither built in nor a plugin's."""
    registry = selection.registry()
    if format not in (None, *FORMATS):
        from pipeline_kit.compose.plugins import load_needed

        found = load_needed(registry, {"output": {"format": format}}).specs("output_format")
        known = list(dict.fromkeys([*FORMATS, *(spec.name for spec in found)]))
        if format not in known:
            near = did_you_mean(format, known)
            raise UsageError(f"--format {for_message(format, 40)}: the choices are {', '.join(known)}.{near}")
    return registry


@dataclass(frozen=True)
class OutputPlan:
    """How one run of a pipeline is told.

    :param path: the file to write; None for stdout.
    :param heading: the overrides of this run of a sweep; None if there is just one run.
    :param quiet: whether the bar and the summary are left out.
    """

    path: Path | None
    format: str
    heading: list[str] | None
    quiet: bool

    def sink(
        self, bar: ProgressBar, config: PipelineConfig, failed: Callable[[RowFailure], None]
    ) -> AbstractContextManager[Sink]:
        """Open what takes the rows; `failed` is called for those with a result that cannot be written."""
        if self.path is not None and self.format not in ("jsonl", "table"):
            format = stream_format(self.format, _layout(config), config.output.compression)
            return columns_sink(self.path, self.heading, format, failed, config.input.carry)
        if self.path is not None:
            return file_sink(self.path, self.heading)
        return table_sink(self.heading, bar.paused) if self.format == "table" else jsonl_sink(self.heading)

    @property
    def bar_wanted(self) -> bool:
        """Whether a bar would not be in the way of lines on the same terminal."""
        return not self.quiet and (self.path is not None or self.format == "table" or not is_terminal(stdout()))


def _format(path: Path | None, table: bool, options: OutputConfig) -> str:
    """Settle the format from the flag, the group ``output`` and the file's ending, in this order.

    :param table: whether the flag asks for a table.
    :raises UsageError: if they contradict each other, or ask for what one file cannot have.
    """
    if options.vectors != "inline":
        raise UsageError(f"output.vectors={options.vectors} is for folders of shards; one file has vectors in its rows")
    if path is not None:
        output_path(str(path), options.format, FILE_FORMATS)
        return options.format or ending_of(path) or "jsonl"
    if options.format not in (None, "jsonl") and not table:
        raise UsageError(f"output.format={options.format} is for files: pass --output FILE.{options.format}")
    return "table" if table else options.format or ("table" if is_terminal(stdout()) else "jsonl")


def _layout(config: PipelineConfig) -> Layout:
    """Return the columns of one file: an id where one is read, carried columns, the result's, ``error``."""
    return Layout.of(
        config.gives,
        carry=config.input.carry,
        identified=config.input.id is not None,
        errors=True,
        kinds=dict(config.output.types),
    )


def _run(config: PipelineConfig, inputs: Inputs, source: Source | None, printing: OutputPlan) -> int:
    """Run one pipeline over all rows; return the number of those that failed.

    :param source: the rows that options chose; None: all there are.
    """
    records = inputs.records(config.input, config.task.takes) if source is None else ()
    layout = None if source is None else _layout(config)
    failures, stats = Failures(), RunStats()
    bar = ProgressBar(
        lambda: inputs.count(config.input.format) if source is None else source.count(), printing.bar_wanted
    )

    def failed(failure: RowFailure) -> None:
        failures.add(failure)
        stats.failed += 1

    with printing.sink(bar, config, failed) as sink:
        from pipeline_kit.compose.build import build

        with no_collection():
            pipeline = build(config)
        if not printing.quiet:
            for note in pipeline.description["notes"]:
                say(f"note: {note}")
        start = time.perf_counter()
        rows = run_rows(pipeline, records, stats)
        if source is not None and layout is not None:
            rows = run_source(pipeline, source.rows(), stats, layout)
        with bar:
            for row in rows:
                if printing.format == "table" and row.failure is None and row.example is not None:
                    row = replace(row, value=dict(pipeline.postprocessor.cells(row.example, row.value)))
                sink(row)
                if row.failure is not None:
                    failures.add(row.failure)
                bar.advance()
    failures.close()
    if not printing.quiet and (stats.rows != 1 or printing.heading is not None):
        title = "" if printing.heading is None else f"{' '.join(printing.heading)}: "
        say(title + summary(stats, pipeline.device, time.perf_counter() - start))
    return failures.count


def refuse_with_stream(args: argparse.Namespace, selection: Selection, inputs: Inputs) -> None:
    """Check that the flags ask for the text of one example and nothing else.

    :raises UsageError: saying which flag does not go with ``--stream``.
    """
    flags = {"--output": args.output, "--format": args.output_format, "--input": inputs.files, "-m": selection.multirun}
    for flag, given in flags.items():
        if given:
            raise UsageError(f"--stream prints the text of one --text or --json as it is written; leave {flag} out")
    if len(inputs.examples) != 1:
        raise UsageError(f"--stream takes one --text or --json, not {len(inputs.examples)}")


def run_stream(config: PipelineConfig, inputs: Inputs, quiet: bool) -> int:
    """Print the pieces as they come, then a line end.

    :raises RowError: if the example fails.
    """
    from pipeline_kit.compose.build import build

    with no_collection():
        pipeline = build(config)
    stats = RunStats()
    pieces = pipeline.stream_text(inputs.examples[0], stats)
    if stats.truncated_rows:
        say("warning: the text was too long and was cut; the model sees a part of it")
    if not quiet:
        for note in pipeline.description["notes"]:
            say(f"note: {note}")
    prepare_stdout()
    for piece in _safe(pieces):
        write_out(piece)
        flush_out()
    print_out("\n", flush=True)
    return 0


def _safe(pieces: Iterator[str]) -> Iterator[str]:
    """Escape what could steer a terminal, if one is there."""
    if not is_terminal(stdout()):
        return pieces
    return ("".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in piece) for piece in pieces)
