"""The texts that ``bench`` measures on: the user's, or a sample."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_kit.bench.samples import SAMPLES, SampleName, sample_examples, sample_rows
from pipeline_kit.cli.inputs import Inputs
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import RowFailure, UsageError, for_message

if TYPE_CHECKING:
    from pipeline_kit.bench.sides import PipelineSide
    from pipeline_kit.compose.schema import PipelineConfig

GIVEN_ROWS = 512
MOST_ROWS = 1_000_000


def add_text_flags(group: argparse._ActionsContainer) -> None:
    """Add ``--sample`` and ``--rows``."""
    group.add_argument(
        "--sample", metavar="|".join(SAMPLES), choices=SAMPLES, help="texts that are built in; default: short"
    )
    group.add_argument(
        "--rows",
        metavar="N",
        type=int,
        help=f"how many texts; default: the sample's own, of a file the first {GIVEN_ROWS}",
    )


@dataclass(frozen=True)
class BenchTexts:
    """What to measure on.

    :param given: the user's rows; None for a sample.
    """

    given: Inputs | None
    sample: SampleName
    rows: int | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> BenchTexts:
        """Read parsed flags.

        :raises UsageError: for an unknown sample, or flags that contradict each other.
        """
        if args.rows is not None and not 1 <= args.rows <= MOST_ROWS:
            raise UsageError(f"--rows {args.rows}: pass 1 to {MOST_ROWS:,} texts")
        given = bool(args.text or args.json_rows or args.input)
        if given and args.sample is not None:
            raise UsageError("--sample is for want of texts; leave it out, or --text, --json and --input")
        if not given and (args.fields or args.input_format):
            raise UsageError("--fields and --input-format say how to read --input FILE, which is not there")
        return cls(Inputs.of(args) if given else None, args.sample or "short", args.rows)

    @property
    def files(self) -> list[str]:
        """The files that are read."""
        return [] if self.given is None else self.given.files

    @property
    def source(self) -> str:
        """The sample's name, or ``given``."""
        return self.sample if self.given is None else "given"

    def check(self, config: PipelineConfig) -> None:
        """Check what can be checked before a model is loaded.

        :raises UsageError: if there is no sample for the task, or a ``--fields`` it has not.
        :raises InputError: if a file cannot be read.
        """
        if self.given is None:
            sample_examples(self.sample, 1, config.task.takes)
        else:
            self.given.records(config.input, config.task.takes)

    def examples(self, first: PipelineSide) -> tuple[list[Example], list[str]]:
        """Return the examples for the task of `first`, and what to note about them.

        :raises UsageError: if there is none.
        """
        takes = first.config.task.takes
        if self.given is None:
            mask = _mask(first) if first.config.task.head == "masked-lm" else None
            own_labels = getattr(first.config.postprocessor.options, "labels", None)
            labels = first.config.task.name == "zero-shot-classification" and not own_labels
            return sample_examples(self.sample, self.rows or sample_rows(self.sample), takes, mask, labels), []
        limit = self.rows or GIVEN_ROWS
        records = self.given.first(first.config.input, takes, limit + 1)
        notes = []
        if len(records) > limit and self.rows is None:
            notes.append(f"the first {limit} rows of the input were taken; --rows N takes others")
        broken = [record for record in records[:limit] if isinstance(record, RowFailure)]
        found: list[Example] = [record for record in records[:limit] if not isinstance(record, RowFailure)]
        if broken:
            notes.append(f"{len(broken)} rows could not be read, such as row {broken[0].index}: {broken[0].message}")
        if not found:
            raise UsageError(f"the input has no row to measure on{': ' + broken[0].message if broken else ''}")
        return found, notes


def _mask(first: PipelineSide) -> str:
    """Return how a mask is written for the checkpoint."""
    from pipeline_kit.checkpoint.resolve import resolve_checkpoint

    named: Any = getattr(first.config.postprocessor.options, "mask_token", None)
    named = named or resolve_checkpoint(first.config.checkpoint).tokenizer_config.get("mask_token")
    text = named.get("content") if isinstance(named, dict) else named
    if not isinstance(text, str):
        name = Path(str(first.description["checkpoint"]["name"])).name
        raise UsageError(
            f"'{for_message(name, 80)}' names no mask_token, which a sample would need; pass texts with --text"
        )
    return text
