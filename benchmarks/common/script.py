"""A comparison as a program: its flags, its result, and where that goes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline_kit.errors import PipelineKitError
from pipeline_kit.files.atomic import atomic_writer

from .tables import Measurement, plain

__all__ = ["SCHEMA", "WORK", "Measurement", "finish", "flags", "tell", "work_folder"]

WORK = Path(__file__).parent.parent / ".work"
SCHEMA = 1
MOST_ROUNDS = 100


def flags(doc: str | None, rounds: int = 3, folder: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the flags that all comparisons have; the first line of `doc` is the help.

    :param folder: whether ``--output`` takes a folder for several results.
    """
    about = (doc or "").strip().partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", metavar="N", type=_rounds, default=rounds, help=f"timed rounds; default: {rounds}")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few texts: tries the script, no figures")
    place = "a folder for results; default: benchmarks/results" if folder else "write the JSON here; default: to stdout"
    parser.add_argument("--output", metavar="DIR" if folder else "FILE", type=Path, help=place)
    parser.add_argument("--work", metavar="DIR", type=Path, default=WORK, help="keeps made checkpoints and graphs")
    return parser


def finish(args: argparse.Namespace, comparison: str, measure: Callable[[], list[Measurement]]) -> None:
    """Measure, write the result, print what it says; an error of ours ends the program with its message."""
    from .environment import facts, versions
    from .neighbours import neighbours

    work_folder(args.work)
    started = time.monotonic()
    try:
        with neighbours() as others:
            measurements = measure()
        result = {
            "schema": SCHEMA,
            "comparison": comparison,
            "quick": args.quick,
            "rounds": args.rounds,
            "machine": facts(),
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 1),
            "others_share": None if others.share is None else round(others.share, 4),
            "notes": others.notes,
            "measurements": measurements,
        }
        line = json.dumps(result, ensure_ascii=False)
        if args.output is not None:
            with atomic_writer(args.output) as file:
                file.write(line + "\n")
    except PipelineKitError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    for text in plain(result):
        tell(text)
    if args.output is None:
        print(line)


def work_folder(folder: Path) -> None:
    """Make the folder for checkpoints and graphs, out of git's sight, and let the plugins keep theirs in it.

    :raises OSError: if it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="ascii")
    os.environ["XDG_CACHE_HOME"] = str(folder.resolve())


def tell(text: str) -> None:
    """Print a line to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_ROUNDS:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to {MOST_ROUNDS}")
    return int(text)
