"""``run --stream``: the text of one example, printed as it is written."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline_kit.cli.inputs import Inputs
from pipeline_kit.cli.selection import Selection
from pipeline_kit.cli.startup import no_collection
from pipeline_kit.cli.streams import flush_out, is_terminal, prepare_stdout, print_out, say, stdout, write_out
from pipeline_kit.errors import UsageError
from pipeline_kit.stats import RunStats

if TYPE_CHECKING:
    from pipeline_kit.pipeline_config import PipelineConfig

__all__ = ["refuse_with_stream", "run_stream"]


def refuse_with_stream(args: argparse.Namespace, selection: Selection, inputs: Inputs) -> None:
    """Check that the flags ask for the text of one example and nothing else.

    :raises UsageError: saying which flag does not go with ``--stream``.
    """
    flags = {"--output": args.output, "--format": args.format, "--input": inputs.files, "-m": selection.multirun}
    for flag, given in flags.items():
        if given:
            raise UsageError(f"--stream prints the text of one --text or --json as it is written; leave {flag} out")
    if len(inputs.examples) != 1:
        raise UsageError(f"--stream takes one --text or --json, not {len(inputs.examples)}")


def run_stream(config: PipelineConfig, inputs: Inputs, quiet: bool) -> int:
    """Print the pieces as they come, then a line end.

    :raises RowError: if the example fails.
    """
    from pipeline_kit.build import build

    with no_collection():
        pipeline = build(config)
    stats = RunStats()
    pieces = pipeline.stream_text(inputs.examples[0], stats)
    if stats.truncated_rows:
        say("warning: the text was too long and was cut; the model sees a part of it")
    if not quiet:
        for note in pipeline.description["notes"]:
            say(f"note: {note}")
    prepare_stdout()
    for piece in _safe(pieces):
        write_out(piece)
        flush_out()
    print_out("\n", flush=True)
    return 0


def _safe(pieces: Iterator[str]) -> Iterator[str]:
    """Escape what could steer a terminal, if one is there."""
    if not is_terminal(stdout()):
        return pieces
    return ("".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in piece) for piece in pieces)
