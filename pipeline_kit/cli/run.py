"""Run a pipeline over texts or a file; results are JSON lines, on a terminal a table."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_kit.cli import cfg
from pipeline_kit.cli.inputs import Inputs, add_input_flags
from pipeline_kit.cli.pieces import refuse_with_stream, run_stream
from pipeline_kit.cli.progress import Failures, ProgressBar, summary
from pipeline_kit.cli.rows import run_rows
from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags, refuse_without_cfg
from pipeline_kit.cli.sinks import Sink, file_sink, jsonl_sink, numbered, output_path, table_sink
from pipeline_kit.cli.startup import no_collection
from pipeline_kit.cli.streams import is_terminal, say
from pipeline_kit.records import Fields, Record
from pipeline_kit.stats import RunStats

if TYPE_CHECKING:
    from pipeline_kit.pipeline_config import PipelineConfig

__all__ = ["EPILOG", "TAKES_WORDS", "configure", "execute"]

TAKES_WORDS = OVERRIDES
EPILOG = """\
examples:
  pipeline-kit run --text "I love this." --text "I hate it."
  pipeline-kit run --input reviews.csv --fields text=review_body --output labels.jsonl
  cat lines.txt | pipeline-kit run task=sentence-embedding checkpoint.path=./my-model
  pipeline-kit run task=text-generation checkpoint.path=./my-model --stream --text "Once upon a time"
  pipeline-kit run -m padding=longest,max_length --text "I love this."

A row that fails keeps its place in the results as {"error": {"stage", "type", "message"}}; the other
rows are not affected, and the exit code is 1.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``run``."""
    parser.usage = "pipeline-kit run [--text T]... [--json OBJECT]... [--input FILE|-] [--output FILE] [OVERRIDE ...]"
    add_input_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--output", "-o", metavar="FILE", help="write JSON lines here, all or nothing")
    group.add_argument("--format", metavar="jsonl|table", help="default: table on a terminal, else jsonl")
    group.add_argument("--stream", action="store_true", help="print one text as it is written, for tasks that write")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress bar and no summary")
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Run; 1 if any row failed."""
    selection = Selection.of(args)
    if args.cfg is not None:
        return cfg.print_configs(selection, args.package, args.resolve)
    refuse_without_cfg(args)
    output = output_path(args.output, args.format)
    inputs = Inputs.of(args)
    if args.stream:
        refuse_with_stream(args, selection, inputs)
    registry = selection.registry()
    jobs = selection.compositions(registry)
    if args.stream:
        return run_stream(jobs[0][1], inputs, args.quiet)
    fields = [inputs.fields(config.task.takes) for _, config in jobs]
    failed = 0
    with inputs.kept(several=len(jobs) > 1):
        for number, (overrides, config) in enumerate(jobs):
            heading = overrides if selection.multirun else None
            path = numbered(output, number) if output is not None and selection.multirun else output
            printing = Printing(path, _format(path, args.format), heading, args.quiet)
            failed += _run(config, inputs, fields[number], printing)
    return 1 if failed else 0


@dataclass(frozen=True)
class Printing:
    """How one run of a pipeline is told.

    :param path: the file to write; None for stdout.
    :param heading: the overrides of this run of a sweep; None if there is just one run.
    :param quiet: whether the bar and the summary are left out.
    """

    path: Path | None
    format: str
    heading: list[str] | None
    quiet: bool

    def sink(self, bar: ProgressBar) -> AbstractContextManager[Sink]:
        """Open what takes the rows."""
        if self.path is not None:
            return file_sink(self.path, self.heading)
        return table_sink(self.heading, bar.paused) if self.format == "table" else jsonl_sink(self.heading)

    @property
    def bar_wanted(self) -> bool:
        """Whether a bar would not be in the way of lines on the same terminal."""
        return not self.quiet and (self.path is not None or self.format == "table" or not is_terminal(sys.stdout))


def _format(path: Path | None, asked: str | None) -> str:
    return asked or ("table" if path is None and is_terminal(sys.stdout) else "jsonl")


def _run(config: PipelineConfig, inputs: Inputs, fields: Fields, printing: Printing) -> int:
    """Run one pipeline over all rows; give the number of those that failed."""
    records: Iterator[Record] = inputs.records(fields)
    failures, stats = Failures(), RunStats()
    bar = ProgressBar(inputs.count, printing.bar_wanted)
    with printing.sink(bar) as sink:
        from pipeline_kit.build import build

        with no_collection():
            pipeline = build(config)
        if not printing.quiet:
            for note in pipeline.description["notes"]:
                say(f"note: {note}")
        start = time.perf_counter()
        with bar:
            for row in run_rows(pipeline, records, stats):
                sink(row)
                if row.failure is not None:
                    failures.add(row.failure)
                bar.advance()
    failures.close()
    if not printing.quiet and (stats.rows != 1 or printing.heading is not None):
        title = "" if printing.heading is None else f"{' '.join(printing.heading)}: "
        say(title + summary(stats, pipeline.device, time.perf_counter() - start))
    return failures.count
