"""Show what happens inside a pipeline: a text, stage by stage, with every number on the way."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_kit.cli.commands import cfg
from pipeline_kit.cli.inputs import Inputs, add_input_flags
from pipeline_kit.cli.outputs import check_outputs
from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags, refuse_without_cfg
from pipeline_kit.cli.stdio import is_terminal, no_collection, prepare_stdout, print_out, say, stdout
from pipeline_kit.contract.types import Example, RowFailure
from pipeline_kit.errors import InputError, UsageError, did_you_mean, for_message, without_secrets
from pipeline_kit.files.atomic import AtomicFile, atomic_writer
from pipeline_kit.files.json_text import json_line

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.explain.trace import Trace
    from pipeline_kit.runtime.pipeline import Pipeline

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
        "--attribute",
        metavar="METHOD",
        action="append",
        default=[],
        help="which tokens moved the result, by this method; repeatable",
    )
    group.add_argument("--full", action="store_true", help="all tokens, rows and numbers of long ones too")
    group.add_argument("--no-times", action="store_true", help="leave times out, so that two runs print the same")
    group = parser.add_argument_group("output")
    group.add_argument("--html", metavar="FILE", help="write one page that needs nothing else, for a browser")
    group.add_argument(
        "--format", metavar="|".join(FORMATS), help="what is printed; default: text, nothing with --html"
    )
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Explain; 1 if any row failed."""
    selection = Selection.of(args)
    if args.cfg is not None:
        return cfg.print_configs(selection, args.package, args.resolve)
    refuse_without_cfg(args)
    _check_format(args.format)
    inputs = Inputs.of(args)
    chosen = sides(selection, args.vs)
    records = inputs.first(inputs.fields(chosen[0].config.task.takes), MOST_ROWS + 1)
    examples, unread = _examples(records)
    html = None if args.html is None else Path(args.html).expanduser()
    check_outputs([("--html", html)], inputs.files, selection, [side.config for side in chosen])
    with _page(html) as page:
        with no_collection():
            traces = [_trace(side, examples, args) for side in chosen]
        if page is not None:
            from pipeline_kit.explain.html import to_html

            page.write(to_html(*traces))
    if args.html is None or args.format is not None:
        _show(traces, chosen, args)
    failed = sum(row.failure is not None for trace in traces for row in trace.rows)
    return 1 if failed or unread else 0


def _check_format(name: str | None) -> None:
    if name is not None and name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise UsageError(f"--format {for_message(name, 40)}: the formats are {', '.join(FORMATS)}.{hint}")


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


@contextmanager
def _page(path: Path | None) -> Iterator[AtomicFile | None]:
    """Open the page's file, so that one that cannot be written is found out before a model is loaded."""
    if path is None:
        yield None
        return
    with atomic_writer(path) as file:
        yield file


def _trace(side: ExplainSide, examples: list[Example], args: argparse.Namespace) -> Trace:
    pipeline = side.build()
    if not args.attribute:
        trace: Trace = pipeline.explain(examples, attentions=args.attentions)
        return trace
    from pipeline_kit.explain.attribution import attribute, check_attribution

    check_attribution(pipeline, args.attribute)
    return attribute(pipeline, pipeline.explain(examples, attentions=args.attentions), args.attribute)


def _show(traces: list[Trace], chosen: list[ExplainSide], args: argparse.Namespace) -> None:
    if args.format == "json":
        _print_json(traces, args.full)
        return
    from pipeline_kit.explain.terminal import print_document, to_text

    options: dict[str, Any] = {"names": [side.name for side in chosen], "full": args.full, "times": not args.no_times}
    if is_terminal(stdout()):
        from rich.console import Console

        print_document(Console(file=stdout(), highlight=False), *traces, **options)
        return
    prepare_stdout()
    print_out(to_text(*traces, **options))


def _print_json(traces: list[Trace], full: bool) -> None:
    from pipeline_kit.explain.trace import to_json

    prepare_stdout()
    found = [to_json(trace, most=None if full else _MOST_NUMBERS) for trace in traces]
    print_out(json_line(found[0] if len(found) == 1 else {"first": found[0], "other": found[1]}))


@dataclass(frozen=True)
class ExplainSide:
    """One pipeline, under a name for the comparison."""

    name: str
    config: PipelineConfig

    def build(self) -> Pipeline:
        """Load its model."""
        from pipeline_kit.compose.build import build

        return build(self.config)


def sides(selection: Selection, other: str | None) -> list[ExplainSide]:
    """Compose the pipelines before any is built.

    :param other: the value of ``--vs``.
    :raises UsageError: if it is not a list of overrides, or the two take other fields.
    :raises ConfigError: if one cannot be composed.
    """
    if selection.multirun:
        raise UsageError("explain shows one pipeline, or two with --vs OVERRIDES; leave -m out")
    more = None if other is None else _words(other)
    registry = selection.registry()
    found = [ExplainSide("as given", config) for _, config in selection.compositions(registry)]
    if more is None:
        return found
    varied = replace(selection, overrides=(*selection.overrides, *more))
    found += [
        ExplainSide(" ".join(without_secrets(more)) or "the same again", config)
        for _, config in varied.compositions(registry)
    ]
    first, second = (side.config.task.takes for side in found)
    if first != second:
        raise UsageError(
            f"--vs: the second pipeline takes {', '.join(second)}, the first {', '.join(first)}: both have to take "
            "the same texts"
        )
    return found


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f'--vs "{for_message(text, 80)}": {error}; write overrides as behind a command') from error
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise UsageError(
                f"--vs {for_message(word, 80)}: write overrides (key=value), all of them in one quoted string"
            )
    return words
