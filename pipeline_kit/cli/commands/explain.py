"""Show what happens inside a pipeline: a text, stage by stage, with every number on the way."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline_kit.cli.inputs import Inputs, add_input_flags
from pipeline_kit.cli.outputs import check_outputs
from pipeline_kit.cli.selection import OVERRIDES, NamedConfig, Selection, add_selection_flags, compared, versus_words
from pipeline_kit.cli.stdio import is_terminal, no_collection, prepare_stdout, print_out, say, stdout
from pipeline_kit.contract.options import parse_options
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import ConfigError, Fault, InputError, RowFailure, UsageError, for_message
from pipeline_kit.files.atomic import atomic_writer
from pipeline_kit.files.json_text import json_line

if TYPE_CHECKING:
    from pipeline_kit.contract.registry import Registry
    from pipeline_kit.explain.trace import Trace
    from pipeline_kit.explain.view import View

TAKES_WORDS = OVERRIDES
FORMATS = ("text", "json")
MOST_ROWS = 64
"""Texts that are explained at the most: all of what their batches held is kept."""

_MOST_NUMBERS = 20_000

EPILOG = """\
examples:
  pipeline-kit explain --text "I hate this so much!"
  pipeline-kit explain --text "Short." --text "A longer one, so that padding shows." padding.side=left
  pipeline-kit explain --text "I love this." --html page.html --attentions
  pipeline-kit explain --text "I love this." --vs "tokenizer=tokenizers_json padding=max_length"
  pipeline-kit explain --text "I love this." --format json | jq .batches
  pipeline-kit explain --text "I love this." --view attribution --view 'attribution.methods=[occlusion]'

The result that is shown is the one that run gives: the same code runs, watched. Times are those of a watched
run; to measure a pipeline use bench.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``explain``."""
    parser.usage = "pipeline-kit explain [--text T]... [--json OBJECT]... [--html FILE] [--vs OVERRIDES] [OVERRIDE ...]"
    add_input_flags(parser)
    group = parser.add_argument_group("what is shown")
    group.add_argument("--vs", metavar="OVERRIDES", help="a second pipeline on the same texts, and where they part")
    group.add_argument("--attentions", action="store_true", help="run the model once more for its attention weights")
    group.add_argument(
        "--view",
        metavar="NAME[.OPTION=VALUE]",
        action="append",
        default=[],
        help="what a plugin shows besides, such as attribution, and its options; repeatable",
    )
    group.add_argument("--full", action="store_true", help="all tokens, rows and numbers of long ones too")
    group.add_argument("--no-times", action="store_true", help="leave times out, so that two runs print the same")
    group = parser.add_argument_group("output")
    group.add_argument("--html", metavar="FILE", help="write one page that needs nothing else, for a browser")
    group.add_argument(
        "--format",
        metavar="|".join(FORMATS),
        choices=FORMATS,
        help="what is printed; default: text, nothing with --html",
    )
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Explain; 1 if any row failed."""
    selection = Selection.of(args)
    inputs = Inputs.of(args)
    if selection.multirun:
        raise UsageError("explain shows one pipeline, or two with --vs OVERRIDES; leave -m out")
    otherwise = "all of them in one quoted string"
    views = _views(args.view, selection.registry())
    chosen = compared(selection, [] if args.vs is None else [versus_words(args.vs, otherwise)])
    if args.vs is not None:
        for side in chosen:
            side.config.refuse_steps("--vs compares")
    records = inputs.first(chosen[0].config.input, chosen[0].config.task.takes, MOST_ROWS + 1)
    examples, unread = _examples(records)
    html = None if args.html is None else Path(args.html).expanduser()
    check_outputs([("--html", html)], inputs.files, selection, [side.config for side in chosen])
    from pipeline_kit.compose.build import build

    # A page that cannot be written is found out before a model is loaded.
    with nullcontext() if html is None else atomic_writer(html) as page:
        with no_collection():
            traces: list[Any] = [
                build(side.config).explain(examples, attentions=args.attentions, views=views) for side in chosen
            ]
        if page is not None:
            from pipeline_kit.explain.html import to_html

            steps = '<!doctype html><meta charset="utf-8"><title>steps</title>'
            page.write(steps + traces[0]._repr_html_() if chosen[0].config.steps else to_html(*traces))
    if args.html is None or args.format is not None:
        if not chosen[0].config.steps or args.format == "json":
            _show(traces, chosen, args)
        for name, trace in traces[0].steps.items() if chosen[0].config.steps and args.format != "json" else ():
            print_out(f"step {name}\n")
            _show([trace], [replace(chosen[0], name=name)], args)
    failed = sum(trace.failed for trace in traces)
    return 1 if failed or unread else 0


def _examples(records: list[Any]) -> tuple[list[Example], int]:
    """Return the examples that could be read, and say which could not."""
    if len(records) > MOST_ROWS:
        say(f"note: the first {MOST_ROWS} rows of the input are explained")
        del records[MOST_ROWS:]
    broken = [record for record in records if isinstance(record, RowFailure)]
    for failure in broken:
        say(f"row {failure.index} could not be read: {failure.message}")
    examples = [record for record in records if not isinstance(record, RowFailure)]
    if not examples:
        raise InputError("the input has no row to explain")
    return examples, len(broken)


def _views(words: list[str], registry: Registry) -> dict[str, View]:
    """Build the views that ``--view`` names.

    :raises UsageError: if one is not installed.
    :raises ConfigError: for options that it does not take.
    """
    from pipeline_kit.compose.plugins import load_all_plugins, load_plugins_named

    options: dict[str, dict[str, Any]] = {}
    for word in words:
        name, dot, option = word.partition(".")
        key, equals, value = option.partition("=")
        try:
            given = {key: yaml.safe_load(value)} if equals and key else {}
        except yaml.YAMLError as error:
            raise UsageError(f"--view {for_message(word, 80)}: its value cannot be read as YAML") from error
        if dot and not given:
            raise UsageError(f"--view {for_message(word, 80)}: write NAME, or NAME.OPTION=VALUE")
        options.setdefault(name, {}).update(given)
    faults: list[Fault] = []
    views: dict[str, View] = {}
    load_plugins_named(registry, options)
    for name, given in options.items():
        if not any(spec.name == name for spec in registry.specs("view")):
            load_all_plugins(registry)
        if not registry.failed and not list(registry.specs("view")):
            hint = "for which tokens moved a result: pip install pipeline-kit-attribution"
            raise UsageError(f"--view {for_message(name, 80)}: no plugin here has a view; {hint}")
        spec = registry.get("view", name)
        config = parse_options(spec.config, given, name, faults, hint=f"see: pipeline-kit show view/{name}")
        if config is not None:
            views[name] = spec.load()(config)
    if faults:
        raise ConfigError(faults)
    return views


def _show(traces: list[Trace], chosen: list[NamedConfig], args: argparse.Namespace) -> None:
    if args.format == "json":
        prepare_stdout()
        found = [trace.to_dict(most=None if args.full else _MOST_NUMBERS) for trace in traces]
        print_out(json_line(found[0] if len(found) == 1 else {"first": found[0], "other": found[1]}))
        return
    from pipeline_kit.explain.terminal import print_document, to_text

    options: dict[str, Any] = {"names": [side.name for side in chosen], "full": args.full, "times": not args.no_times}
    if is_terminal(stdout()):
        from rich.console import Console

        print_document(Console(file=stdout(), highlight=False), *traces, **options)
        return
    prepare_stdout()
    print_out(to_text(*traces, **options))
