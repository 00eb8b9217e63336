"""Measure a pipeline, alone or against others, in one run in which all of them take turns."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline_kit.bench.machine import counted
from pipeline_kit.cli.commands import cfg
from pipeline_kit.cli.inputs import add_input_flags
from pipeline_kit.cli.outputs import check_outputs, output_path
from pipeline_kit.cli.progress import ProgressBar
from pipeline_kit.cli.selection import (
    OVERRIDES,
    Selection,
    add_selection_flags,
    as_table,
    refuse_without_cfg,
    report_writer,
)
from pipeline_kit.cli.stdio import no_collection, say, stdout
from pipeline_kit.cli.texts import BenchTexts, add_text_flags
from pipeline_kit.errors import UsageError, did_you_mean, for_message, without_secrets

if TYPE_CHECKING:
    from pipeline_kit.bench.sides import BenchSide, PipelineSide
    from pipeline_kit.compose.schema import PipelineConfig

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
        raise UsageError(f"--repeats {args.repeats}: pass 1 to {MOST_REPEATS} rounds")
    output = output_path(args.output, args.format)
    plot = _plot(args.plot)
    texts = BenchTexts.of(args)
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


def _measure(
    chosen: list[SideChoice], args: argparse.Namespace, texts: BenchTexts, load: float | None
) -> dict[str, Any]:
    from pipeline_kit.bench.measure import MeasurementPlan, measure, steps_of

    with no_collection():
        ours = [choice.build() for choice in chosen]
        sides: list[BenchSide] = [*ours, *against_library(ours[0], args.vs)]
    if not args.quiet:
        _say_notes(ours)
    examples, notes = texts.examples(ours[0])
    plan = MeasurementPlan(texts.source, args.repeats, load, notes=tuple(notes))
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
    return print_benchmark


def _tell(report: dict[str, Any]) -> None:
    """Print one line for each side where the report went to a file or another program."""
    ratios = {ratio["other"]: ratio["first_is_faster_by"] for ratio in report["ratios"]}
    for side in report["sides"]:
        line = f"{side['name']}: {side['tokens_per_second']['median']:,.0f} tokens/s"
        ratio = ratios.get(side["name"])
        if ratio is not None:
            line += f"; the first is {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})"
        say(line)
    for note in report["notes"]:
        say(f"note: {note}")


LIBRARY = "transformers"
_LIBRARY = re.compile(r"transformers(:(\d{1,6}))?")


@dataclass(frozen=True)
class SideChoice:
    """A pipeline of ours that is measured, under a name for the report."""

    name: str
    config: PipelineConfig

    def build(self) -> PipelineSide:
        """Load its model."""
        from pipeline_kit.bench.sides import PipelineSide
        from pipeline_kit.compose.build import build

        return PipelineSide(self.name, build(self.config), self.config)


def choices(selection: Selection, others: Sequence[str]) -> list[SideChoice]:
    """Compose every pipeline before any is built, the first one as the flags say it.

    :param others: the values of ``--vs``.
    :raises UsageError: if a value is neither overrides nor a library, or the sides take other fields.
    :raises ConfigError: if one cannot be composed.
    """
    mine = [text for text in others if not text.startswith(LIBRARY)]
    words = [_words(text) for text in mine]
    for text in others:
        if text.startswith(LIBRARY):
            _batch_size(text)
    registry = selection.registry()
    if selection.multirun:
        if mine:
            raise UsageError("-m gives several pipelines already; leave --vs OVERRIDES out, or -m")
        found = [
            SideChoice(" ".join(without_secrets(job)) or "no overrides", config)
            for job, config in selection.compositions(registry)
        ]
    else:
        found = [SideChoice("as given", config) for _, config in selection.compositions(registry)]
    for more in words:
        varied = replace(selection, overrides=(*selection.overrides, *more))
        found += [
            SideChoice(" ".join(without_secrets(more)) or "the same again", config)
            for _, config in varied.compositions(registry)
        ]
    takes = found[0].config.task.takes
    for choice in found[1:]:
        if choice.config.task.takes != takes:
            raise UsageError(
                f"'{for_message(choice.name, 80)}' takes {', '.join(choice.config.task.takes)}, the first pipeline "
                f"{', '.join(takes)}: both have to take the same texts"
            )
    return _told_apart(found)


def against_library(first: PipelineSide, others: Sequence[str]) -> list[BenchSide]:
    """Load ``transformers.pipeline()`` for each ``--vs transformers``, on the checkpoint of the first pipeline.

    :raises UsageError: if it has no such task.
    """
    sizes = dict.fromkeys(_batch_size(text) for text in others if text.startswith(LIBRARY))
    if not sizes:
        return []
    from pipeline_kit.bench.transformers import TransformersSide

    return [TransformersSide(first.pipeline, first.config, size) for size in sizes]


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f'--vs "{for_message(text, 80)}": {error}; write overrides as behind a command') from error
    for word in words:
        if "=" not in word:
            raise UsageError(
                f"--vs {for_message(word, 80)}: write overrides (key=value), {LIBRARY}, or {LIBRARY}:8 "
                f"for batches of 8.{did_you_mean(word, [LIBRARY])}"
            )
    return words


def _batch_size(text: str) -> int:
    found = _LIBRARY.fullmatch(text)
    size = int(found[2] or 1) if found else 0
    if size < 1:
        raise UsageError(f"--vs {for_message(text, 80)}: write {LIBRARY}, or {LIBRARY}:8 for batches of 8")
    return size


def _told_apart(found: Sequence[SideChoice]) -> list[SideChoice]:
    """Put numbers behind the names that stand for several sides."""
    seen: dict[str, int] = {}
    named = []
    for choice in found:
        seen[choice.name] = seen.get(choice.name, 0) + 1
        number = seen[choice.name]
        named.append(choice if number == 1 else replace(choice, name=f"{choice.name} ({number})"))
    return named


def print_benchmark(report: Mapping[str, Any]) -> None:
    """Print how fast each side was, what it needed for that, and what to know about the figures."""
    console = Console(file=stdout())
    ratios = [None, *report["ratios"]]
    speed, rest = _table("texts/s", "tokens/s"), _table("p50 ms", "p95 ms", "p99 ms", "peak MiB", "padding")
    if report["ratios"]:
        speed.add_column("the first is", justify="right", no_wrap=True)
    for side, ratio in zip(report["sides"], ratios, strict=True):
        name = Text(for_message(side["name"], 200))
        shown = [] if ratio is None else [_ratio(ratio["first_is_faster_by"])]
        speed.add_row(name, f"{side['texts_per_second']['median']:,.0f}", _speed(side["tokens_per_second"]), *shown)
        rest.add_row(name, *_needs(side))
    console.print(speed)
    console.print(rest)
    for line in _lines(report):
        console.print(Text(for_message(line, 1000)), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("side", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _needs(side: Mapping[str, Any]) -> list[str]:
    latency, padding = side["latency_ms"], side["padding_share"]
    return [
        *(f"{latency[name]:,.2f}" for name in ("p50", "p95", "p99")),
        f"{side['memory']['peak_bytes'] / 2**20:,.0f}",
        "?" if padding is None else f"{padding:.1%}",
    ]


def _speed(speed: Mapping[str, float]) -> str:
    return f"{speed['median']:,.0f} ({speed['q1']:,.0f}-{speed['q3']:,.0f})"


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"


def _lines(report: Mapping[str, Any]) -> list[str]:
    texts, machine = report["texts"], report["machine"]
    source = "given texts" if texts["source"] == "given" else f"texts of the sample '{texts['source']}'"
    single = ", ".join(str(side["latency_ms"]["texts"]) for side in report["sides"])
    lines = [
        f"{texts['rows']:,} {source}, {texts['characters']:,} characters; {counted(report['repeats'], 'round')}, "
        f"median (quartiles); ms for a text alone, over {single} of them",
        f"{machine['gpu'] or machine['processor']} ({machine['capability']}), {counted(machine['threads'], 'thread')}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, pipeline-kit {machine['pipeline_kit']}, "
        f"{machine['date']}",
    ]
    for ratio in report["ratios"]:
        difference, same = ratio["results"]["largest_score_difference"], ratio["results"]["same_label"]
        if difference is not None:
            labels = "" if same is None else f", same label in {same:.1%}"
            lines.append(f"'{ratio['other']}' scores differ from the first's by {difference:.1e} at the most{labels}")
    return [*lines, *(f"note: {note}" for note in report["notes"])]
