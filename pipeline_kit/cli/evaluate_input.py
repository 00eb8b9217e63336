"""The labelled rows of ``evaluate``, read once to check every label and once for each pipeline."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline_kit.cli.input_options import ChosenInput
from pipeline_kit.cli.inputs import Inputs, add_file_flags
from pipeline_kit.errors import UsageError, shorten
from pipeline_kit.records import FORMATS, Format, InputConfig, Source, format_of

__all__ = ["LabelledFiles", "add_labelled_flags"]

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


@dataclass(frozen=True)
class LabelledFiles:
    """The files, which can be gone through more than once; stdin and pipes are copied for that.

    :param inputs: what the flags say.
    """

    inputs: Inputs
    chosen: ChosenInput

    @classmethod
    def of(cls, args: argparse.Namespace) -> LabelledFiles:
        """Read parsed flags, and stdin if it is named.

        :raises UsageError: if there is no file.
        """
        if not args.input:
            raise UsageError(f"nothing to evaluate on: give a file with labels, such as\n  {_EXAMPLE}")
        inputs = Inputs.of(argparse.Namespace(**{**vars(args), "text": [], "json": []}))
        if args.label is not None:
            other = inputs.columns.get("label", args.label)
            if other != args.label:
                raise UsageError(f"--label {shorten(args.label, 40)} and --fields label={shorten(other, 40)}: give one")
            inputs = replace(inputs, columns={**inputs.columns, "label": args.label})
        return cls(inputs, ChosenInput(inputs))

    def source(self, takes: Sequence[str], options: InputConfig) -> Source:
        """Give the rows that `options` choose, with the fields `takes`.

        :raises UsageError: if ``--fields`` or ``input.fields`` names another one, if a file has no columns, or for
            columns to be carried, which have no place here.
        :raises InputError: if a file is not there, or lacks a column.
        """
        if options.carry:
            raise UsageError("input.carry: evaluate carries no columns, --save keeps each row's id; leave it out")
        format = self.chosen.format(options)
        for name in self.inputs.files:
            _refuse_text(name, format)
        return self.chosen.source(options, takes)

    def close(self) -> None:
        """Remove the copies."""
        self.chosen.close()


def _refuse_text(name: str, format: Format | None) -> None:
    plain = name == "-" or (Path(name).is_file() and format_of(name) == "text")
    if format == "text" or (format is None and plain):
        what = "stdin: say" if name == "-" else f"--input {shorten(name)}: a line of text has no label; say"
        raise UsageError(f"{what} --input-format {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")
