"""Hold a pipeline's results against the labels of a file; accuracy, F1 and the like, by the task."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_kit.cli import cfg
from pipeline_kit.cli.evaluate_input import LabelledFiles, add_labelled_flags
from pipeline_kit.cli.outputs import check_outputs
from pipeline_kit.cli.progress import MOST_SHOWN, Failures, ProgressBar
from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags, refuse_without_cfg
from pipeline_kit.cli.sinks import numbered
from pipeline_kit.cli.startup import no_collection
from pipeline_kit.cli.streams import prepare_stdout, print_out, say
from pipeline_kit.errors import InputError, UsageError, shorten
from pipeline_kit.redaction import without_secrets
from pipeline_kit.sinks import json_line
from pipeline_kit.types import RowFailure

if TYPE_CHECKING:
    from pipeline_kit.evaluate.base import Evaluator, Verdict
    from pipeline_kit.evaluate.rows import Labelled
    from pipeline_kit.pipeline_config import PipelineConfig
    from pipeline_kit.records import Source

__all__ = ["EPILOG", "TAKES_WORDS", "configure", "execute"]

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
    from pipeline_kit.evaluate.library import require_libraries

    selection = Selection.of(args)
    if args.cfg is not None:
        return cfg.print_configs(selection, args.package, args.resolve)
    refuse_without_cfg(args)
    if not 0 <= args.threshold <= 1:
        raise UsageError(f"--threshold {args.threshold:g}: give a score from 0 to 1")
    require_libraries()
    labels_map = parse_labels_map(args.labels_map)
    save, files = _save_path(args.save), LabelledFiles.of(args)
    composed = selection.compositions(selection.registry())
    paths = [numbered(save, i) if save is not None and selection.multirun else save for i in range(len(composed))]
    check_outputs([("--save", p) for p in paths], files.inputs.files, selection, [config for _, config in composed])
    reports = []
    with closing(files):
        jobs = [Job.of(words, config, files, labels_map, args.threshold) for words, config in composed]
        for path, job in zip(paths, jobs, strict=True):
            report = _run(job, path, args.quiet)
            reports.append({"overrides": without_secrets(job.overrides), **report} if selection.multirun else report)
            if args.json:
                prepare_stdout()
                print_out(json_line(reports[-1]), flush=True)
            elif selection.multirun and not args.quiet:
                _tell(reports[-1])  # a table comes at the end, and a sweep may not get there
    if not args.json:
        from pipeline_kit.cli.evaluate_table import print_report, print_sweep

        prepare_stdout()
        print_sweep(reports) if selection.multirun else print_report(reports[0])
    return 1 if any(report["failed"] for report in reports) else 0


@dataclass(frozen=True)
class Job:
    """A pipeline that is evaluated, all its labels checked.

    :param rows: how many there are.
    """

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
        files: LabelledFiles,
        labels_map: dict[str, str],
        threshold: float,
    ) -> Job:
        """Read all labels.

        :raises UsageError: if the task cannot be evaluated.
        :raises InputError: if there is no row, or a label is none.
        """
        from pipeline_kit.checkpoint import resolve_checkpoint
        from pipeline_kit.evaluate.base import Setting
        from pipeline_kit.evaluate.rows import check_rows, labelled
        from pipeline_kit.evaluate.tasks import evaluator_for, fields_of

        source = files.source(fields_of(config.task.name, config.task.takes), config.input)
        checkpoint, options = resolve_checkpoint(config.checkpoint), config.postprocessor.options
        setting = Setting(config.task.name, checkpoint.labels, checkpoint.config, options, labels_map, threshold)
        evaluator = evaluator_for(setting, _first(labelled(source.rows())).gold)
        count = check_rows(labelled(source.rows()), evaluator)
        if evaluator.options:
            stage = replace(config.postprocessor, options=replace(options, **evaluator.options))
            config = replace(config, postprocessor=stage)
        return cls(overrides, config, evaluator, source, count)


def _first(rows: Iterator[Labelled | RowFailure]) -> Labelled:
    """Give the first row that can be read; raises InputError if there is none."""
    failure: RowFailure | None = None
    for row in rows:
        if not isinstance(row, RowFailure):
            return row
        failure = failure or row
    if failure is None:
        raise InputError("the input has no row to evaluate")
    raise InputError(f"no row of the input can be read, such as row {failure.index}: {shorten(failure.message, 400)}")


def _run(job: Job, save: Path | None, quiet: bool) -> dict[str, Any]:
    from pipeline_kit.build import build
    from pipeline_kit.evaluate.rows import labelled
    from pipeline_kit.evaluate.run import Watcher, report, run

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
            counts = run(pipeline, labelled(job.source.rows()), job.evaluator, Watcher(judged, failed))
    if failures.count > MOST_SHOWN:
        say(f"... and {failures.count - MOST_SHOWN:,} more rows failed; see why with: pipeline-kit run")
    name = pipeline.description["checkpoint"]["name"]
    return {"task": job.config.task.name, "checkpoint": name, **report(counts, job.evaluator)}


@contextmanager
def _saver(path: Path | None) -> Iterator[Callable[[Labelled, Verdict], None]]:
    """Give what writes rows that are not right; the file appears when all of them are in it."""
    from pipeline_kit.atomic import atomic_writer

    with nullcontext() if path is None else atomic_writer(path) as file:

        def write(row: Labelled, verdict: Verdict) -> None:
            if file is None or verdict.right:
                return
            saved = {"row": row.index, "id": row.id, "example": row.example, "gold": verdict.gold}
            file.write(json_line({**saved, "predicted": verdict.predicted, "score": verdict.score}) + "\n")

        yield write


def _save_path(name: str | None) -> Path | None:
    if name is not None and Path(name).suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError(f"--save {shorten(name)}: rows are written as JSON lines; name the file .jsonl")
    return None if name is None else Path(name).expanduser()


def _tell(report: dict[str, Any]) -> None:
    from pipeline_kit.cli.evaluate_table import headline

    figures = ", ".join(f"{name} {value}" for name, value in headline(report).items())
    say(f"{' '.join(report['overrides']) or 'no overrides'}: {figures}")
