"""Compare a pipeline's results with the labels of a file; accuracy, F1 and the like, by the task."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pipeline_kit.bench.machine import counted
from pipeline_kit.cli.inputs import Inputs, add_file_flags
from pipeline_kit.cli.outputs import check_outputs, sweep_names, swept
from pipeline_kit.cli.progress import MOST_SHOWN, Failures, ProgressBar
from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags
from pipeline_kit.cli.stdio import no_collection, prepare_stdout, print_out, say
from pipeline_kit.cli.tables import CELL, console, print_lines, table
from pipeline_kit.errors import InputError, RowFailure, UsageError, for_message, without_secrets
from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.read.formats import FORMATS, Format, format_of
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.storage.local import storage_of

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.contract.evaluator import Evaluator, Verdict
    from pipeline_kit.contract.registry import Registry
    from pipeline_kit.evaluate.run import Labelled

TAKES_WORDS = OVERRIDES
EPILOG = """\
examples:
  pipeline-kit evaluate --input labelled.jsonl
  pipeline-kit evaluate --input reviews.csv --fields text=body --label stars --labels-map 1=NEGATIVE,5=POSITIVE
  pipeline-kit evaluate --input labelled.jsonl --save wrong.jsonl --json checkpoint.path=./my-model
  pipeline-kit evaluate --input 'data/*.parquet' --save wrong.jsonl input.id=review_id input.limit=1000
  pipeline-kit evaluate -m padding=longest,max_length --input labelled.jsonl
  pipeline-kit evaluate task=ner checkpoint.path=./my-model --input spans.jsonl

All labels are checked before the model is loaded. A row that fails is counted and left out of the metrics, and the
exit code is 1. docs/evaluate.md says what a label is for each task, and how each metric is defined.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``evaluate``."""
    parser.usage = "pipeline-kit evaluate --input LABELLED [--label COLUMN] [OVERRIDE ...]"
    add_labelled_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one line of JSON instead of tables")
    group.add_argument("--save", metavar="FILE.jsonl", help="write the rows that were wrong here, all or nothing")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress bar and no notes on stderr")
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Evaluate; 1 if any row failed."""
    from pipeline_kit.evaluate.labels import parse_labels_map
    from pipeline_kit.evaluate.run import require_libraries

    selection = Selection.of(args)
    if not 0 <= args.threshold <= 1:
        raise UsageError(f"--threshold {args.threshold:g}: pass a score from 0 to 1")
    require_libraries()
    labels_map = parse_labels_map(args.labels_map)
    save = None if args.save is None else Path(args.save).expanduser()
    if save is not None and save.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError(f"--save {for_message(args.save)}: rows are written as JSON lines; name the file .jsonl")
    if not args.input:
        raise UsageError(f"nothing to evaluate on: pass a file with labels, such as\n  {_EXAMPLE}")
    inputs = Inputs.of(args)
    registry = selection.registry()
    composed = selection.compositions(registry)
    paths = [save and swept(save, name) for name in sweep_names([words for words, _ in composed])]
    check_outputs([("--save", p) for p in paths], inputs.files, selection, [config for _, config in composed])
    reports = []
    with closing(inputs):
        more = (registry, inputs, labels_map, args.threshold)
        jobs = [Evaluation.of(words, config, *more) for words, config in composed]
        for path, job in zip(paths, jobs, strict=True):
            report = _run(job, path, args.quiet)
            reports.append({"overrides": without_secrets(job.overrides), **report} if selection.multirun else report)
            if args.json:
                prepare_stdout()
                print_out(json_line(reports[-1]), flush=True)
            elif selection.multirun and not args.quiet:
                # A table comes at the end, and a sweep may not get there.
                figures = ", ".join(f"{name} {value}" for name, value in headline(reports[-1]).items())
                say(f"{' '.join(reports[-1]['overrides']) or 'no overrides'}: {figures}")
    if not args.json:
        prepare_stdout()
        print_sweep(reports) if selection.multirun else print_evaluation(reports[0])
    return 1 if any(report["failed"] for report in reports) else 0


@dataclass(frozen=True)
class Evaluation:
    """A pipeline that is evaluated, all labels of its `rows` checked."""

    overrides: list[str]
    config: PipelineConfig
    evaluator: Evaluator
    source: Source
    rows: int

    @classmethod
    def of(
        cls,
        overrides: list[str],
        config: PipelineConfig,
        registry: Registry,
        inputs: Inputs,
        labels_map: dict[str, str],
        threshold: float,
    ) -> Evaluation:
        """Read all labels.

        :raises UsageError: if the task cannot be evaluated, ``input.fields`` names a field it does not have, a file has
            no columns, or columns are carried, which have no place here.
        :raises InputError: if a file is not there or lacks a column, if there are no rows, or if a label is unknown.
        """
        from pipeline_kit.compose.build import checkpoint_of
        from pipeline_kit.contract.evaluator import EvaluationContext
        from pipeline_kit.evaluate.run import GOLD, check_rows, labelled, maker_of

        *_, judged = config.parts
        taken = config.steps[judged].wiring.take if config.steps else {}
        if any(path.words != (field,) for field, path in taken.items()):
            shown = ", ".join(f"{field}: {path}" for field, path in taken.items())
            raise UsageError(f"evaluate judges the last step, by the row's own fields, and '{judged}' takes {shown}")
        make = maker_of(config.task.name, registry)
        if config.input.carry:
            raise UsageError("input.carry: evaluate carries no columns, --save keeps each row's id; leave it out")
        for name in inputs.files:
            _refuse_text(name, config.input.format)
        source = inputs.source(config.input, [*config.task.takes, *getattr(make, "fields", ()), GOLD])
        checkpoint, options = checkpoint_of(config), config.postprocessor.options
        known = (config.task.name, checkpoint.labels, checkpoint.config, options, labels_map, threshold)
        evaluator: Evaluator = make(EvaluationContext(*known, _first(labelled(source.rows())).gold))
        count = check_rows(labelled(source.rows()), evaluator)
        if evaluator.options:
            stage = replace(config.postprocessor, options=replace(options, **evaluator.options))
            config = config.mapped(lambda name, part: replace(part, postprocessor=stage) if name == judged else part)
        return cls(overrides, config, evaluator, source, count)


def _first(rows: Iterator[Labelled | RowFailure]) -> Labelled:
    """Return the first row that can be read; raises InputError if there is none."""
    failure: RowFailure | None = None
    for row in rows:
        if not isinstance(row, RowFailure):
            return row
        failure = failure or row
    if failure is None:
        raise InputError("the input has no row to evaluate")
    why = for_message(failure.message, 400)
    raise InputError(f"no row of the input can be read, such as row {failure.index}: {why}")


def _run(job: Evaluation, save: Path | None, quiet: bool) -> dict[str, Any]:
    from pipeline_kit.compose.build import build
    from pipeline_kit.evaluate.run import labelled, report, run

    failures = Failures()
    with _saver(save) as write:
        with no_collection():
            pipeline = build(job.config)
        if not quiet:
            for note in pipeline.description["notes"]:
                say(f"note: {note}")
        bar = ProgressBar(lambda: job.rows, not quiet)

        def judged(row: Labelled, verdict: Verdict) -> None:
            write(row, verdict)
            bar.advance()

        def failed(failure: RowFailure) -> None:
            failures.add(failure)
            bar.advance()

        with bar:
            counts = run(pipeline, labelled(job.source.rows()), job.evaluator, judged, failed)
    if failures.count > MOST_SHOWN:
        say(f"... and {failures.count - MOST_SHOWN:,} more rows failed; see why with: pipeline-kit run")
    name = pipeline.description["checkpoint"]["name"]
    return {"task": job.config.task.name, "checkpoint": name, **report(counts, job.evaluator)}


@contextmanager
def _saver(path: Path | None) -> Iterator[Callable[[Labelled, Verdict], None]]:
    """Return what writes rows that are not right; the file appears when all of them are in it."""
    from pipeline_kit.files.atomic import atomic_writer

    with nullcontext() if path is None else atomic_writer(path) as file:

        def write(row: Labelled, verdict: Verdict) -> None:
            if file is None or verdict.right:
                return
            saved = {"row": row.index, "id": row.id, "example": row.example, "gold": verdict.gold}
            file.write(json_line({**saved, "predicted": verdict.predicted, "score": verdict.score}) + "\n")

        yield write


_EXAMPLE = "pipeline-kit evaluate --input labelled.csv --fields text=review --label sentiment"
_FORMATS = [name for name in FORMATS if name != "text"]


def add_labelled_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where rows and labels are."""
    group = parser.add_argument_group("input", f"rows with the task's fields and a label: {', '.join(_FORMATS)}")
    add_file_flags(group, _FORMATS)
    group.add_argument("--label", metavar="COLUMN", help="the column or key with the label; default: label")
    group.add_argument(
        "--labels-map",
        metavar="LABEL=NAME,...",
        action="append",
        default=[],
        help="what labels of the file are called by the checkpoint, such as neg=NEGATIVE,pos=POSITIVE; repeatable",
    )
    group.add_argument(
        "--threshold",
        metavar="SCORE",
        type=float,
        default=0.5,
        help="where a text may have several labels: those from this score on are predicted; default: 0.5",
    )


def _refuse_text(name: str, format: Format | None) -> None:
    plain = name == "-" or (storage_of(name).kind(name) == "file" and format_of(name) == "text")
    if format == "text" or (format is None and plain):
        what = "stdin: say" if name == "-" else f"--input {for_message(name)}: a line of text has no label; say"
        raise UsageError(f"{what} --input-format {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")


MOST_LABELS = 12  # of a matrix for people; of more labels the commonest mistakes say more
MOST_PAIRS = 10
_COUNTS = ("rows", "failed", "truncated", "rows_per_second")


def print_evaluation(report: Mapping[str, Any]) -> None:
    """Print the counts, the metrics, those of each label, what was taken for what, and the notes."""
    screen, metrics = console(folded=False), report["metrics"]
    print_lines([f"{report['task']}, {report['checkpoint']}"], screen)
    figures = table("metric", "value", "95 % interval", wrap=True)
    for name, value in _figures(metrics).items():
        figures.add_row(Text(_spaced(name)), _number(value), _interval(metrics.get(f"{name}_interval")))
    parts = (figures if metrics else None, _labels(metrics.get("per_label")), _confusion(metrics.get("confusion")))
    for part in parts:
        if part is not None:
            screen.print(part)
    counts = [counted(report["rows"], "row")]
    counts += [f"{report[name]:,} {name}" for name in ("failed", "truncated") if report[name]]
    took = f"in {report['seconds']:.2f} s ({report['rows_per_second']:,.0f} rows/s)"
    print_lines([f"{', '.join(counts)} {took}"], screen, report["notes"])


def print_sweep(reports: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each combination, and each note once."""
    screen = console(folded=False)
    rows = [headline(report) for report in reports]
    there = dict.fromkeys(name for row in rows for name in row)
    names = [*(name for name in there if name not in _COUNTS), *(name for name in _COUNTS if name in there)]
    shown = table("overrides", *map(_spaced, names))
    for report, row in zip(reports, rows, strict=True):
        overrides = Text(for_message(" ".join(report["overrides"]) or "no overrides", 200))
        shown.add_row(overrides, *(row.get(name, "") for name in names))
    screen.print(shown)
    print_lines([], screen, dict.fromkeys(note for report in reports for note in report["notes"]))


def headline(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what fits into one line, written out: of precision, recall and F1 the last, of counts those over 0."""
    metrics = report["metrics"]
    found = {}
    for name, value in _figures(metrics).items():
        if name.endswith(("precision", "recall")):
            continue
        interval = _interval(metrics.get(f"{name}_interval"))
        found[name] = _number(value) + (f" ({interval})" if interval else "")
    counts = {name: f"{report[name]:,}" for name in ("rows", "failed", "truncated") if report[name]}
    return found | counts | {"rows_per_second": f"{report['rows_per_second']:,.0f}"}


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if value is None or isinstance(value, int | float)}


def _labels(rows: Mapping[str, Mapping[str, Any]] | None) -> Table | None:
    if not rows:
        return None
    shown = table("label", "precision", "recall", "f1", "support", wrap=True)
    for name, row in rows.items():
        numbers = (_number(row[key]) for key in ("precision", "recall", "f1"))
        shown.add_row(Text(for_message(name, CELL)), *numbers, f"{row['support']:,}")
    return shown


def _confusion(found: Mapping[str, Any] | None) -> Table | None:
    if found is None:
        return None
    if found["counts"] and len(found["labels"]) <= MOST_LABELS:
        shown = table("label \\ predicted", *(_name(name) for name in found["predicted"]), wrap=True)
        for name, counts in zip(found["labels"], found["counts"], strict=True):
            shown.add_row(Text(_name(name)), *(f"{count:,}" for count in counts))
        return shown
    shown = table("label", "predicted", "rows", wrap=True, left=["predicted"])
    for pair in found["pairs"][:MOST_PAIRS]:
        shown.add_row(Text(_name(pair["gold"])), Text(_name(pair["predicted"])), f"{pair['count']:,}")
    return shown if found["pairs"] else None


def _name(name: str | None) -> str:
    return "(none)" if name is None else for_message(name, CELL)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _interval(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:.4f}-{found[1]:.4f}"


def _spaced(name: str) -> str:
    return name.replace("_", " ").replace("rows per second", "rows/s").replace("ndcg at ", "ndcg@")
