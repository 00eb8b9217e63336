"""Find the fastest engine, token budget and thread count whose answers stay those of float32, by trying them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_kit.cli import cfg
from pipeline_kit.cli.bench_texts import Texts, add_text_flags
from pipeline_kit.cli.inputs import add_input_flags
from pipeline_kit.cli.outputs import check_outputs
from pipeline_kit.cli.reports import as_table, report_writer
from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags, refuse_without_cfg
from pipeline_kit.cli.sinks import output_path
from pipeline_kit.cli.startup import no_collection
from pipeline_kit.cli.streams import say
from pipeline_kit.errors import UsageError, shorten
from pipeline_kit.redaction import without_secrets

if TYPE_CHECKING:
    from pipeline_kit.bench.sides import PipelineSide
    from pipeline_kit.pipeline_config import PipelineConfig
    from pipeline_kit.registry import Registry
    from pipeline_kit.tune.candidates import Candidate
    from pipeline_kit.tune.search import Search

__all__ = ["EPILOG", "TAKES_WORDS", "configure", "execute"]

TAKES_WORDS = OVERRIDES
MOST_MINUTES, MOST_REPEATS = 24 * 60, 100
EPILOG = """\
examples:
  pipeline-kit tune --input reviews.csv --fields text=review_body checkpoint.path=./my-model --save tuned.yaml
  pipeline-kit run --config tuned.yaml --input reviews.csv --output labels.jsonl
  pipeline-kit tune --sample mixed --minutes 3 --tolerance 0.01
  pipeline-kit tune task=sentence-embedding --input texts.txt --min-agreement 0.999

Tried are model=hf in float32, bfloat16 and int8, the models of every installed plugin, then other token budgets and
thread counts for the best of them. All answers are held against those of model=hf in float32. Give 300 texts or more of
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
    group.add_argument("--format", metavar="jsonl|table", help="default: table on a terminal, else jsonl")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress and no notes")
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Search and report; 1 if texts failed and were left out, 130 after ctrl-c."""
    from pipeline_kit.bench.machine import load_per_cpu

    load = load_per_cpu()  # before this process adds to it
    selection = Selection.of(args)
    if args.cfg is not None:
        return cfg.print_configs(selection, args.package, args.resolve)
    refuse_without_cfg(args)
    _check(args)
    output = output_path(args.output, args.format)
    save = _save_path(args, selection)
    texts = Texts.of(args)
    registry = selection.registry()
    [(_, config)] = selection.compositions(registry)
    check_outputs([("--output", output), ("--save", save)], texts.files, selection, [config])
    texts.check(config)
    with report_writer(output, args.format, _tables) as write:
        report, search = _search(config, registry, selection, args, texts, load)
        preset = _preset(report, search, selection, save)
        write({**report, "preset": preset})
    _keep(report, preset, save, args)
    left_out = [] if preset is None else _secrets(report, search)
    if left_out:
        say(f"secrets are not in the preset; give them again behind it: {' '.join(without_secrets(left_out))}")
    if report["interrupted"]:
        return 130
    return 1 if report["texts"]["left_out"] else 0


def _check(args: argparse.Namespace) -> None:
    if args.multirun:
        raise UsageError("-m gives several configs; tune takes one and tries its own variants of it")
    if not 0 < args.minutes <= MOST_MINUTES:
        raise UsageError(f"--minutes {args.minutes:g}: give more than 0, at most {MOST_MINUTES:,}")
    if not 1 <= args.repeats <= MOST_REPEATS:
        raise UsageError(f"--repeats {args.repeats}: give 1 to {MOST_REPEATS} rounds")
    if not 0 <= args.min_agreement <= 1:
        raise UsageError(f"--min-agreement {args.min_agreement:g}: give a share, 0 to 1, such as 0.99")
    if args.tolerance is not None and not 0 <= args.tolerance < float("inf"):
        raise UsageError(f"--tolerance {args.tolerance:g}: give 0 or more, such as 0.01")
    if args.force and args.save is None:
        raise UsageError("--force lets --save FILE overwrite a file; there is no --save")


def _save_path(args: argparse.Namespace, selection: Selection) -> Path | None:
    if args.save is None:
        return None
    from pipeline_kit.tune.preset import check_target

    path = Path(args.save).expanduser()
    check_target(path, args.force, selection.plugins)
    return path


def _search(
    config: PipelineConfig,
    registry: Registry,
    selection: Selection,
    args: argparse.Namespace,
    texts: Texts,
    load: float | None,
) -> tuple[dict[str, Any], Search]:
    from pipeline_kit.bench.machine import machine_facts
    from pipeline_kit.builtin.quiet import quiet
    from pipeline_kit.discovery import load_everything
    from pipeline_kit.tune.report import report_of
    from pipeline_kit.tune.search import Plan, Search
    from pipeline_kit.tune.space import Space
    from pipeline_kit.tune.trial import Floors

    load_everything(registry)
    with no_collection():
        side = _side("your config", config)
    examples, notes = texts.examples(side)
    notes += [f"the plugin {who} failed to load: {shorten(str(why))}" for who, why in registry.failed.items()]
    space = Space(config, side.device, registry, selection.config_dirs, compiled=args.compile)
    plan = Plan(60 * args.minutes, args.repeats, Floors(args.tolerance, args.min_agreement))
    search = Search(space, side, plan, _open, tell=(lambda line: None) if args.quiet else say)
    with quiet():
        search.run(examples)
    return report_of(search, machine_facts(side.device, load), texts.source, len(examples), notes), search


def _open(candidate: Candidate) -> PipelineSide:
    assert candidate.config is not None
    return _side(candidate.engine, candidate.config)


def _side(name: str, config: PipelineConfig) -> PipelineSide:
    from pipeline_kit.bench.sides import PipelineSide
    from pipeline_kit.build import build

    return PipelineSide(name, build(config), config)


def _preset(report: dict[str, Any], search: Search, selection: Selection, save: Path | None) -> str | None:
    """Give the winner as YAML; None if there is none."""
    from pipeline_kit.tune.preset import preset_text
    from pipeline_kit.tune.report import preset_comment

    if report["winner"] is None:
        return None
    config = search.trials[report["winner"]].candidate.config
    assert config is not None
    words = [word for plugin in selection.plugins for word in ("--plugin", plugin)]
    text = ' --text "I love this."' if config.task.takes[0].rstrip("?") == "text" else " --input FILE"
    run = " ".join(["pipeline-kit run", *words, "--config", _name(config) if save is None else save.name])
    return preset_text(config, preset_comment(report, config, run + text), selection.plugins)


def _secrets(report: dict[str, Any], search: Search) -> list[str]:
    from pipeline_kit.tune.preset import secrets_of

    config = search.trials[report["winner"]].candidate.config
    assert config is not None
    return secrets_of(config)


def _name(config: PipelineConfig) -> str:
    return f"tuned-{config.task.name}.yaml"


def _keep(report: dict[str, Any], preset: str | None, save: Path | None, args: argparse.Namespace) -> None:
    """Write the preset, or say what would."""
    from pipeline_kit.tune.preset import write_preset

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


def _tables() -> Callable[[dict[str, Any]], object]:
    from pipeline_kit.cli.tune_table import print_trials

    return print_trials
