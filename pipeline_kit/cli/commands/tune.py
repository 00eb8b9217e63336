"""Find the fastest engine, token budget and thread count whose answers stay those of float32, by trying them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from pipeline_kit.bench.machine import counted, counted_texts
from pipeline_kit.cli.inputs import add_input_flags
from pipeline_kit.cli.outputs import check_outputs, output_path
from pipeline_kit.cli.selection import (
    OVERRIDES,
    Selection,
    add_selection_flags,
    as_table,
    report_writer,
)
from pipeline_kit.cli.stdio import no_collection, say
from pipeline_kit.cli.tables import console, machine_line, print_lines, table
from pipeline_kit.cli.texts import BenchTexts, add_text_flags
from pipeline_kit.errors import UsageError, for_message, without_secrets

if TYPE_CHECKING:
    from pipeline_kit.bench.sides import PipelineSide
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.contract.registry import Registry
    from pipeline_kit.tune.search import Search
    from pipeline_kit.tune.space import Candidate

TAKES_WORDS = OVERRIDES
MOST_MINUTES, MOST_REPEATS = 24 * 60, 100
EPILOG = """\
examples:
  pipeline-kit tune --input reviews.csv --fields text=review_body checkpoint.path=./my-model --save tuned.yaml
  pipeline-kit run --config tuned.yaml --input reviews.csv --output labels.jsonl
  pipeline-kit tune --sample mixed --minutes 3 --tolerance 0.01
  pipeline-kit tune task=sentence-embedding --input texts.txt --min-agreement 0.999

Tried are model=hf in float32, bfloat16 and int8, the models of every installed plugin, then other token budgets and
thread counts for the best of them. All answers are compared with those of model=hf in float32. Use 300 texts or more of
the kind you will run on, and measure with nothing else running. ctrl-c shows what is known by then.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``tune``."""
    parser.usage = "pipeline-kit tune [--input FILE | --text T ... | --sample NAME] [--save FILE.yaml] [OVERRIDE ...]"
    add_input_flags(parser, "rows are taken from --text, then --json, then --input; without them from --sample")
    group = parser.add_argument_group("search")
    add_text_flags(group)
    group.add_argument(
        "--minutes", metavar="N", type=float, default=10.0, help="begin nothing new after so long; default: 10"
    )
    group.add_argument("--repeats", metavar="N", type=int, default=3, help="rounds for each candidate; default: 3")
    group.add_argument("--compile", action="store_true", help="try model.compile too, which is slow to start")
    group = parser.add_argument_group("how close to float32")
    group.add_argument(
        "--min-agreement",
        metavar="SHARE",
        type=float,
        default=0.99,
        help="of texts with the same answer; default: 0.99",
    )
    group.add_argument(
        "--tolerance", metavar="D", type=float, help="the largest difference of a score or other number; default: any"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--save", metavar="FILE.yaml", help="write the best as a preset for: run --config FILE.yaml")
    group.add_argument("--force", action="store_true", help="let --save overwrite a file")
    group.add_argument("--output", "-o", metavar="FILE", help="write the report here, one line of JSON")
    group.add_argument(
        "--format", metavar="jsonl|table", choices=["jsonl", "table"], help="default: table on a terminal, else jsonl"
    )
    group.add_argument("--quiet", "-q", action="store_true", help="no progress and no notes")
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Search and report; 1 if texts failed and were left out, 130 after ctrl-c."""
    from pipeline_kit.bench.machine import load_per_cpu
    from pipeline_kit.tune.report import check_target, secrets_of

    load = load_per_cpu()  # before this process adds to it
    selection = Selection.of(args)
    _check(args)
    output = output_path(args.output, args.format)
    save = None if args.save is None else Path(args.save).expanduser()
    if save is not None:
        check_target(save, args.force, selection.plugins)
    texts = BenchTexts.of(args)
    registry = selection.registry()
    [(_, config)] = selection.compositions(registry)
    config.refuse_steps("tune works on")
    check_outputs([("--output", output), ("--save", save)], texts.files, selection, [config])
    texts.check(config)
    with report_writer(output, args.format, print_trials) as write:
        report, search = _search(config, registry, selection, args, texts, load)
        best = None if report["winner"] is None else search.trials[report["winner"]].candidate.config
        preset = None if best is None else _preset(report, best, selection, save)
        write({**report, "preset": preset})
    _keep(report, preset, save, args)
    if best is not None and (left_out := secrets_of(best)):
        say(f"secrets are not in the preset; pass them again behind it: {' '.join(without_secrets(left_out))}")
    if report["interrupted"]:
        return 130
    return 1 if report["texts"]["left_out"] else 0


def _check(args: argparse.Namespace) -> None:
    if args.multirun:
        raise UsageError("-m gives several configs; tune takes one and tries its own variants of it")
    if not 0 < args.minutes <= MOST_MINUTES:
        raise UsageError(f"--minutes {args.minutes:g}: pass more than 0, at most {MOST_MINUTES:,}")
    if not 1 <= args.repeats <= MOST_REPEATS:
        raise UsageError(f"--repeats {args.repeats}: pass 1 to {MOST_REPEATS} rounds")
    if not 0 <= args.min_agreement <= 1:
        raise UsageError(f"--min-agreement {args.min_agreement:g}: pass a share, 0 to 1, such as 0.99")
    if args.tolerance is not None and not 0 <= args.tolerance < float("inf"):
        raise UsageError(f"--tolerance {args.tolerance:g}: pass 0 or more, such as 0.01")
    if args.force and args.save is None:
        raise UsageError("--force lets --save FILE overwrite a file; there is no --save")


def _search(
    config: PipelineConfig,
    registry: Registry,
    selection: Selection,
    args: argparse.Namespace,
    texts: BenchTexts,
    load: float | None,
) -> tuple[dict[str, Any], Search]:
    from pipeline_kit.bench.machine import machine_facts
    from pipeline_kit.bench.sides import PipelineSide
    from pipeline_kit.builtin.quiet import quiet
    from pipeline_kit.compose.build import build
    from pipeline_kit.compose.plugins import load_all_plugins
    from pipeline_kit.tune.report import report_of
    from pipeline_kit.tune.search import Effort, Search
    from pipeline_kit.tune.space import SearchSpace
    from pipeline_kit.tune.trial import AccuracyLimits

    load_all_plugins(registry)
    with no_collection():
        side = PipelineSide("your config", build(config), config)
    examples, notes = texts.examples(side)
    notes += [f"the plugin {who} failed to load: {for_message(str(why))}" for who, why in registry.failed.items()]
    space = SearchSpace(config, side.device, registry, selection.config_dirs, compiled=args.compile)
    plan = Effort(60 * args.minutes, args.repeats, AccuracyLimits(args.tolerance, args.min_agreement))

    def open_side(candidate: Candidate) -> PipelineSide:
        assert candidate.config is not None
        return PipelineSide(candidate.engine, build(candidate.config), candidate.config)

    search = Search(space, side, plan, open_side, tell=(lambda line: None) if args.quiet else say)
    with quiet():
        search.run(examples)
    return report_of(search, machine_facts(side.device, load), texts.source, len(examples), notes), search


def _preset(report: dict[str, Any], best: PipelineConfig, selection: Selection, save: Path | None) -> str:
    """Return the winner's config as YAML."""
    from pipeline_kit.tune.report import preset_comment, preset_text

    words = [word for plugin in selection.plugins for word in ("--plugin", plugin)]
    text = ' --text "I love this."' if best.task.takes[0].rstrip("?") == "text" else " --input FILE"
    run = " ".join(["pipeline-kit run", *words, "--config", save.name if save else f"tuned-{best.task.name}.yaml"])
    return preset_text(best, preset_comment(report, best, run + text), selection.plugins)


def _keep(report: dict[str, Any], preset: str | None, save: Path | None, args: argparse.Namespace) -> None:
    """Write the preset, or say what would."""
    from pipeline_kit.tune.report import write_preset

    if preset is None:
        margin = report["floors"]["margin"]
        found = f"keep what you have: nothing that was tried and is close enough to float32 is {margin:.0%} faster"
        say(f"{found}{'' if save is None else f'; {save} was not written'}")
    else:
        winner = report["trials"][report["winner"]]
        say(f"{' '.join(winner['overrides'])}: {winner['ratio']['median']:.2f}x of your config")
        if save is None or report["interrupted"]:
            say("not saved; --save FILE.yaml writes this preset after a whole search:")
            say(preset.rstrip())
        else:
            write_preset(save, preset, args.force)
            say(f"saved; use it with: pipeline-kit run --config {save}")
    if not args.quiet and not as_table(args.format):
        for note in report["notes"]:
            say(f"note: {note}")


_ENGINE_WIDTH = 21
_COLUMNS = ("budget", "thr", "texts/s", "tokens/s", "ratio", "same", "diff")


def print_trials(report: Mapping[str, Any]) -> None:
    """Print what was tried, the fastest first, then what may not be chosen, then what did not run."""
    screen = console()
    shown = table("engine", *_COLUMNS, pad_edge=False, collapse_padding=True)
    shown.columns[0].min_width = _ENGINE_WIDTH
    for trial in sorted(report["trials"], key=_order):
        style = "bold" if trial["chosen"] else "dim" if trial["problem"] or trial["excluded"] else None
        shown.add_row(Text(_engine(trial)), *_cells(trial), style=style)
    screen.print(shown)
    texts, machine, floors = report["texts"], report["machine"], report["floors"]
    limit = "" if floors["tolerance"] is None else f", a difference of {floors['tolerance']:g} at the most"
    lines = (
        "ratio: how many times as fast as your config; *: measured anew, side by side, and chosen among; "
        "same: texts with the same answer; diff: the largest difference of a number",
        f"{counted_texts(texts)}, {texts['different']:,} different; answers are compared with "
        f"{report['reference']}: at least {floors['min_agreement']:.1%} the same{limit}",
        machine_line(machine, counted(machine["processors"], "processor")),
    )
    print_lines(lines, screen, report["notes"])


def _order(trial: Mapping[str, Any]) -> tuple[bool, bool, float]:
    ratio = 0.0 if trial["ratio"] is None else trial["ratio"]["median"]
    return trial["problem"] is not None, trial["excluded"] is not None, -ratio


def _cells(trial: Mapping[str, Any]) -> list[str]:
    rows = trial["max_rows"]
    budget = trial["max_tokens"] or (f"{rows} rows" if rows else None)
    speed = [trial[name] and f"{trial[name]['median']:,.0f}" for name in ("texts_per_second", "tokens_per_second")]
    ratio, same, difference = trial["ratio"], trial["agreement"], trial["largest_difference"]
    return [
        "" if budget is None else f"{budget:,}" if isinstance(budget, int) else budget,
        str(trial["threads"] or ""),
        *(text or "" for text in speed),
        "" if ratio is None else f"{ratio['median']:.2f}{'*' if trial['final'] else ''}",
        "" if same is None else f"{same:.1%}",
        "" if difference is None else f"{difference:.1e}",
    ]


def _engine(trial: Mapping[str, Any]) -> str:
    """Name the engine without the prefixes of its options, and say why it may not be chosen."""
    words = for_message(trial["engine"]).split(" ")
    name = " ".join(re.sub(r"^(model=|model\.|device\.)", "", word) for word in words)
    if trial["chosen"]:
        return f"{name}: take this"
    reason = trial["problem"] or trial["excluded"]
    return f"{name}: {for_message(reason)}" if reason else name
