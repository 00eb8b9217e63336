"""Measure a pipeline, alone or against others, in one run in which all of them take turns."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_kit.cli import cfg
from pipeline_kit.cli.bench_sides import Choice, against_library, choices
from pipeline_kit.cli.bench_texts import Texts, add_text_flags
from pipeline_kit.cli.inputs import add_input_flags
from pipeline_kit.cli.outputs import check_outputs
from pipeline_kit.cli.progress import ProgressBar
from pipeline_kit.cli.reports import as_table, report_writer
from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags, refuse_without_cfg
from pipeline_kit.cli.sinks import output_path
from pipeline_kit.cli.startup import no_collection
from pipeline_kit.cli.streams import say
from pipeline_kit.errors import UsageError

if TYPE_CHECKING:
    from pipeline_kit.bench.sides import BenchSide, PipelineSide

__all__ = ["EPILOG", "TAKES_WORDS", "configure", "execute"]

TAKES_WORDS = OVERRIDES
MOST_REPEATS = 1000
EPILOG = """\
examples:
  pipeline-kit bench
  pipeline-kit bench --sample mixed --vs transformers --vs transformers:8
  pipeline-kit bench --vs padding=max_length --vs "batching=fixed batching.max_rows=32"
  pipeline-kit bench --input reviews.csv --fields text=review_body checkpoint.path=./my-model --plot speed.png
  pipeline-kit bench -m device.threads=1,2,4
  pipeline-kit bench --vs ""      the same again: how much two equal sides differ on this machine

Measure with nothing else running. A ratio is how many times as fast as the other the first pipeline was,
taken within each round.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``bench``."""
    parser.usage = "pipeline-kit bench [--sample NAME | --text T ... | --input FILE] [--vs OTHER]... [OVERRIDE ...]"
    add_input_flags(parser, "rows are taken from --text, then --json, then --input; without them from --sample")
    group = parser.add_argument_group("measurement")
    add_text_flags(group)
    group.add_argument(
        "--vs",
        metavar="OTHER",
        action="append",
        default=[],
        help="a second pipeline: OVERRIDES put behind those of the first, transformers (its pipeline() as it comes), "
        "or transformers:N (with batches of N); repeatable",
    )
    group.add_argument("--repeats", metavar="N", type=int, default=5, help="rounds that are timed; default: 5")
    group = parser.add_argument_group("output")
    group.add_argument("--output", "-o", metavar="FILE", help="write the report here, one line of JSON")
    group.add_argument("--format", metavar="jsonl|table", help="default: table on a terminal, else jsonl")
    group.add_argument("--plot", metavar="FILE.png", help="draw tokens/s of all sides; needs pipeline-kit[plot]")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress bar, no notes and no summary")
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Measure and report; 1 if texts failed and were left out."""
    from pipeline_kit.bench.machine import load_per_cpu

    load = load_per_cpu()  # before this process adds to it
    selection = Selection.of(args)
    if args.cfg is not None:
        return cfg.print_configs(selection, args.package, args.resolve)
    refuse_without_cfg(args)
    if not 1 <= args.repeats <= MOST_REPEATS:
        raise UsageError(f"--repeats {args.repeats}: give 1 to {MOST_REPEATS} rounds")
    output = output_path(args.output, args.format)
    plot = _plot(args.plot)
    texts = Texts.of(args)
    chosen = choices(selection, args.vs)
    check_outputs([("--output", output), ("--plot", plot)], texts.files, selection, [side.config for side in chosen])
    texts.check(chosen[0].config)
    with report_writer(output, args.format, _tables) as write:
        report = _measure(chosen, args, texts, load)
        write(report)
    if plot is not None:
        from pipeline_kit.bench.plot import write_plot

        write_plot(report, plot)
    if not args.quiet and (output is not None or not as_table(args.format)):
        _tell(report)
    return 1 if report["texts"]["left_out"] else 0


def _measure(chosen: list[Choice], args: argparse.Namespace, texts: Texts, load: float | None) -> dict[str, Any]:
    from pipeline_kit.bench.measure import Plan, measure, steps_of

    with no_collection():
        ours = [choice.build() for choice in chosen]
        sides: list[BenchSide] = [*ours, *against_library(ours[0], args.vs)]
    if not args.quiet:
        _say_notes(ours)
    examples, notes = texts.examples(ours[0])
    plan = Plan(texts.source, args.repeats, load, notes=tuple(notes))
    bar = ProgressBar(lambda: steps_of(len(sides), args.repeats), not args.quiet)
    with bar:
        return measure(sides, examples, plan, bar.advance)


def _say_notes(ours: list[PipelineSide]) -> None:
    for side in ours:
        for note in side.description["notes"]:
            say(f"note: {side.name}: {note}" if len(ours) > 1 else f"note: {note}")


def _plot(name: str | None) -> Path | None:
    if name is None:
        return None
    from pipeline_kit.bench.plot import check_plot

    return check_plot(name)


def _tables() -> Callable[[dict[str, Any]], object]:
    from pipeline_kit.cli.bench_table import print_report

    return print_report


def _tell(report: dict[str, Any]) -> None:
    """Say the outcome in a line for each side, where the report went to a file or another program."""
    ratios = {ratio["other"]: ratio["first_is_faster_by"] for ratio in report["ratios"]}
    for side in report["sides"]:
        line = f"{side['name']}: {side['tokens_per_second']['median']:,.0f} tokens/s"
        ratio = ratios.get(side["name"])
        if ratio is not None:
            line += f"; the first is {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})"
        say(line)
    for note in report["notes"]:
        say(f"note: {note}")
