"""Fit the temperature on labelled rows: ``python -m pk_calibrated.fit labelled.jsonl [OVERRIDE ...]``.

Each row has a ``text`` (and a ``text_pair``, for tasks on pairs) and a ``label``: its name, or its number in
the checkpoint. stdout gets the overrides to use, stderr what they change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_kit import PipelineKitError, RowFailure, load
from pipeline_kit.kit import Columns, InputError, UsageError, did_you_mean, for_message, read_records

from .measures import HIGHEST, LOWEST, calibration_error, fit_temperature, loss

FEW = 100
_FIELDS = Columns.of(("text", "text_pair?", "label"), option="--fields ")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    :returns: 0, or the exit code of the error.
    """
    parser = argparse.ArgumentParser(prog="python -m pk_calibrated.fit", description=__doc__, allow_abbrev=False)
    parser.add_argument("labelled", metavar="FILE", help="rows with text and label: .jsonl, .csv or .tsv")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="as for pipeline-kit run")
    parser.add_argument("--plugin", action="append", default=[], help="a plugin that is not installed; repeatable")
    args = parser.parse_args(argv)
    try:
        sys.stdout.write(fit(args.labelled, args.overrides, args.plugin) + "\n")
    except PipelineKitError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def fit(file: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> str:
    """Fit on the rows of `file`; report to stderr.

    :returns: the overrides that use the fitted temperature.
    :raises UsageError: if an override chooses a postprocessor.
    :raises InputError: if a row is not usable, or there are fewer than two.
    """
    for override in overrides:
        if override.startswith("postprocessor"):
            raise UsageError(
                f"'{for_message(override, 80)}': leave the postprocessor out; logits are what is fitted on"
            )
    pipe = load(*overrides, "postprocessor=logits", plugins=plugins)
    examples, names = _read(file)
    rows = list(pipe.stream(examples))
    labels: list[str] = rows[0]["labels"]
    truth = np.array([_index(name, labels, place) for place, name in enumerate(names)], dtype=np.int64)
    logits = np.array([row["logits"] for row in rows], dtype=np.float64)
    temperature = round(fit_temperature(logits, truth), 4)
    _report(logits, truth, temperature)
    return f"postprocessor=calibrated postprocessor.temperature={temperature}"


def _read(file: str | Path) -> tuple[list[dict[str, Any]], list[Any]]:
    examples: list[dict[str, Any]] = []
    labels: list[Any] = []
    for record in read_records(file, columns=_FIELDS):
        if isinstance(record, RowFailure):
            raise InputError(record.message)
        if isinstance(record, str):
            raise InputError(f"{file}: row {len(labels)} is a text without a label; pass .jsonl, .csv or .tsv")
        labels.append(record.pop("label"))
        examples.append(record)
    if len(labels) < 2:
        raise InputError(f"{file}: has {len(labels)} rows; a temperature needs at least 2, better {FEW} or more")
    return examples, labels


def _index(name: object, labels: Sequence[str], row: int) -> int:
    if str(name) in labels:
        return labels.index(str(name))
    digits = "" if isinstance(name, bool) else str(name)
    if digits.isdecimal() and len(digits) <= 7 and int(digits) < len(labels):
        return int(digits)
    known, hint = for_message(", ".join(labels), 400), did_you_mean(name, labels)
    raise InputError(f"row {row}: '{for_message(name, 80)}' is not a label of the checkpoint: {known}.{hint}")


def _report(logits: NDArray[Any], truth: NDArray[Any], temperature: float) -> None:
    accuracy = float((logits.argmax(axis=1) == truth).mean())
    lines = [f"{len(truth)} rows, accuracy {accuracy:.4f}, temperature {temperature}"]
    for name, measure in (("negative log likelihood", loss), ("expected calibration error", calibration_error)):
        lines.append(
            f"{name}: {measure(logits, truth, 1.0):.4f} before, {measure(logits, truth, temperature):.4f} after"
        )
    if len(truth) < FEW:
        lines.append(f"warning: {len(truth)} rows are few; the temperature will differ much on others")
    if not LOWEST * 1.01 < temperature < HIGHEST / 1.01:
        lines.append("warning: no temperature in between is best; are the labels right?")
    sys.stderr.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
