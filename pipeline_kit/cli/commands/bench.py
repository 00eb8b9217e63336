"""Measure a pipeline, alone or against others, in one run in which all of them take turns."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from pipeline_kit.bench.machine import counted, counted_texts
from pipeline_kit.cli.inputs import add_input_flags
from pipeline_kit.cli.outputs import check_outputs, output_path
from pipeline_kit.cli.progress import ProgressBar
from pipeline_kit.cli.selection import (
    OVERRIDES,
    NamedConfig,
    Selection,
    add_selection_flags,
    as_table,
    compared,
    report_writer,
    versus_words,
)
from pipeline_kit.cli.stdio import no_collection, say
from pipeline_kit.cli.tables import console, machine_line, print_lines, ratio_text, table
from pipeline_kit.cli.texts import BenchTexts, add_text_flags
from pipeline_kit.errors import UsageError, did_you_mean, for_message

if TYPE_CHECKING:
    from pipeline_kit.bench.sides import BenchSide

TAKES_WORDS = OVERRIDES
MOST_REPEATS = 1000
LIBRARY = "transformers"
_LIBRARY = re.compile(r"transformers(:(\d{1,6}))?")
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
    group.add_argument(
        "--format", metavar="jsonl|table", choices=["jsonl", "table"], help="default: table on a terminal, else jsonl"
    )
    group.add_argument("--plot", metavar="FILE.png", help="draw tokens/s of all sides; needs pipeline-kit[plot]")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress bar, no notes and no summary")
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Measure and report; 1 if texts failed and were left out."""
    from pipeline_kit.bench.machine import load_per_cpu

    load = load_per_cpu()  # before this process adds to it
    selection = Selection.of(args)
    if not 1 <= args.repeats <= MOST_REPEATS:
        raise UsageError(f"--repeats {args.repeats}: pass 1 to {MOST_REPEATS} rounds")
    output = output_path(args.output, args.format)
    plot = None
    if args.plot is not None:
        from pipeline_kit.bench.plot import check_plot

        plot = check_plot(args.plot)
    texts = BenchTexts.of(args)
    sizes = dict.fromkeys(_batch_size(text) for text in args.vs if text.startswith(LIBRARY))
    chosen = compared(selection, _overrides(selection, args.vs))
    check_outputs([("--output", output), ("--plot", plot)], texts.files, selection, [side.config for side in chosen])
    texts.check(chosen[0].config)
    if sizes:
        chosen[0].config.refuse_steps(f"--vs {LIBRARY} is for")
    with report_writer(output, args.format, print_benchmark) as write:
        report = _measure(chosen, sizes, args, texts, load)
        write(report)
    if plot is not None:
        from pipeline_kit.bench.plot import write_plot

        write_plot(report, plot)
    if not args.quiet and (output is not None or not as_table(args.format)):
        _summarise(report)
    return 1 if report["texts"]["left_out"] else 0


def _overrides(selection: Selection, others: Sequence[str]) -> list[list[str]]:
    """Read the values of ``--vs`` that are overrides.

    :raises UsageError: if one is neither overrides nor a library, or -m brings several pipelines already.
    """
    found = []
    for text in others:
        if not text.startswith(LIBRARY):
            hint = did_you_mean(text, [LIBRARY])
            found.append(versus_words(text, f"{LIBRARY}, or {LIBRARY}:8 for batches of 8.{hint}"))
    if found and selection.multirun:
        raise UsageError("-m runs several pipelines already; leave --vs OVERRIDES out, or -m")
    return found


def _measure(
    chosen: list[NamedConfig], sizes: Iterable[int], args: argparse.Namespace, texts: BenchTexts, load: float | None
) -> dict[str, Any]:
    from pipeline_kit.bench.measure import MeasurementPlan, measure, steps_of
    from pipeline_kit.bench.sides import PipelineSide
    from pipeline_kit.compose.build import build

    with no_collection():
        ours = [PipelineSide(side.name, build(side.config), side.config) for side in chosen]
        sides: list[BenchSide] = [*ours]
        if sizes:
            from pipeline_kit.bench.transformers import TransformersSide

            sides += [TransformersSide(ours[0].pipeline, ours[0].config, size) for size in sizes]
    for side in ours if not args.quiet else ():
        for note in side.description["notes"]:
            say(f"note: {side.name}: {note}" if len(ours) > 1 else f"note: {note}")
    examples, notes = texts.examples(ours[0])
    plan = MeasurementPlan(texts.source, args.repeats, load, notes=tuple(notes))
    bar = ProgressBar(lambda: steps_of(len(sides), args.repeats), not args.quiet)
    with bar:
        return measure(sides, examples, plan, bar.advance)


def _summarise(report: dict[str, Any]) -> None:
    """Print one line for each side where the report went to a file or another program."""
    for side, ratio in zip(report["sides"], [None, *report["ratios"]], strict=True):
        line = f"{side['name']}: {side['tokens_per_second']['median']:,.0f} tokens/s"
        if ratio is not None:
            line += f"; the first is {ratio_text(ratio['first_is_faster_by'], ' to ')}"
        say(line)
    for note in report["notes"]:
        say(f"note: {note}")


def _batch_size(text: str) -> int:
    found = _LIBRARY.fullmatch(text)
    size = int(found[2] or 1) if found else 0
    if size < 1:
        raise UsageError(f"--vs {for_message(text, 80)}: write {LIBRARY}, or {LIBRARY}:8 for batches of 8")
    return size


def print_benchmark(report: Mapping[str, Any]) -> None:
    """Print how fast each side was, what it needed for that, and what to know about the figures."""
    screen = console()
    speed = table("side", "texts/s", "tokens/s", *(["the first is"] if report["ratios"] else []))
    rest = table("side", "p50 ms", "p95 ms", "p99 ms", "peak MiB", "padding")
    for side, ratio in zip(report["sides"], [None, *report["ratios"]], strict=True):
        name, tokens = Text(for_message(side["name"], 200)), side["tokens_per_second"]
        latency, padding = side["latency_ms"], side["padding_share"]
        speed.add_row(
            name,
            f"{side['texts_per_second']['median']:,.0f}",
            f"{tokens['median']:,.0f} ({tokens['q1']:,.0f}-{tokens['q3']:,.0f})",
            *([] if ratio is None else [ratio_text(ratio["first_is_faster_by"])]),
        )
        rest.add_row(
            name,
            *(f"{latency[key]:,.2f}" for key in ("p50", "p95", "p99")),
            f"{side['memory']['peak_bytes'] / 2**20:,.0f}",
            "?" if padding is None else f"{padding:.1%}",
        )
    screen.print(speed)
    screen.print(rest)
    print_lines(_lines(report), screen, report["notes"])


def _lines(report: Mapping[str, Any]) -> list[str]:
    texts, machine = report["texts"], report["machine"]
    single = ", ".join(str(side["latency_ms"]["texts"]) for side in report["sides"])
    lines = [
        f"{counted_texts(texts)}, {texts['characters']:,} characters; {counted(report['repeats'], 'round')}, "
        f"median (quartiles); ms for a text alone, over {single} of them",
        machine_line(machine, counted(machine["threads"], "thread")),
    ]
    for ratio in report["ratios"]:
        difference, same = ratio["results"]["largest_score_difference"], ratio["results"]["same_label"]
        if difference is not None:
            labels = "" if same is None else f", same label in {same:.1%}"
            lines.append(f"'{ratio['other']}' scores differ from the first's by {difference:.1e} at the most{labels}")
    return lines
