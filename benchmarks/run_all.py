"""All comparisons, each in a process of its own; what is measured already is not measured again.

    python benchmarks/run_all.py [--only NAME ...] [--rounds 3] [--quick] [--force] [--output benchmarks/results]

Measure with nothing else running. Stop it at any time: a comparison that has ended is kept, the others are done by the
same command. Afterwards: python benchmarks/report.py benchmarks/results/*.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.script import SCHEMA, flags, tell

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Comparison:
    """A script with its arguments.

    :param minutes: about how long three rounds take on two cores, exports included.
    """

    script: str
    arguments: tuple[str, ...] = ()
    minutes: float = 1.0
    rounds: int | None = None


COMPARISONS = {
    "cold_start": Comparison("cold_start.py", minutes=0.8, rounds=5),
    "limit_share": Comparison("limit_share.py", minutes=1.5),
    "classifier_short": Comparison("against_pipeline.py", ("--texts", "short"), 3.0),
    "classifier_mixed": Comparison("against_pipeline.py", ("--texts", "mixed"), 5.0),
    "classifier_long": Comparison("against_pipeline.py", ("--texts", "long"), 5.0),
    "runtimes_short": Comparison("against_runtimes.py", ("--texts", "short"), 2.0),
    "runtimes_mixed": Comparison("against_runtimes.py", ("--texts", "mixed"), 2.0),
    "shipped_checkpoint": Comparison("shipped_checkpoint.py", minutes=2.0),
    "embeddings": Comparison("embeddings.py", minutes=1.0),
    "generation": Comparison("generation.py", minutes=12.0),
    "latency": Comparison("latency.py", minutes=1.2),
    "memory_growth": Comparison("memory_growth.py", minutes=1.7),
    "jobs": Comparison("jobs.py", minutes=40.0),
}


def is_done(path: Path, quick: bool) -> bool:
    """Return whether `path` holds a whole result that was made with, or without, `--quick`."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return bool(found["schema"] == SCHEMA and found["quick"] is quick and found["measurements"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run(name: str, args: argparse.Namespace) -> bool:
    """Run one comparison, its progress shown; return whether it ended well."""
    chosen = COMPARISONS[name]
    rounds = args.rounds if chosen.rounds is None else max(args.rounds, chosen.rounds)
    command = [sys.executable, str(HERE / chosen.script), *chosen.arguments]
    command += ["--rounds", str(1 if args.quick else rounds), "--work", str(args.work)]
    command += ["--output", str(args.output / f"{name}.json"), *(["--quick"] if args.quick else [])]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def main() -> None:
    """Run what is to be run; exit with 1 if something failed."""
    parser = flags(__doc__, folder=True)
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=list(COMPARISONS), help=", ".join(COMPARISONS))
    parser.add_argument("--force", action="store_true", help="measure again what is there")
    args = parser.parse_args()
    args.output = args.output or (args.work / "quick" if args.quick else HERE / "results")
    args.output.mkdir(parents=True, exist_ok=True)
    names = list(args.only or COMPARISONS)
    if args.quick and any(is_done(args.output / f"{name}.json", quick=False) for name in names):
        sys.exit(f"{args.output} holds figures, which --quick would overwrite; pass another --output")
    waiting = [name for name in names if args.force or not is_done(args.output / f"{name}.json", args.quick)]
    for name in names:
        if name not in waiting:
            tell(f"{name}: is there already (--force measures it again)")
    failed = []
    started = time.monotonic()
    for number, name in enumerate(waiting):
        minutes = sum(COMPARISONS[left].minutes for left in waiting[number:])
        estimate = "" if args.quick else f"; about {minutes * (1 + args.rounds) / 4:.0f} minutes to go"
        tell(f"\n== {name} ({number + 1} of {len(waiting)}){estimate}")
        try:
            if not run(name, args):
                failed.append(name)
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on with what is left")
    minutes = (time.monotonic() - started) / 60
    tell(f"\n{len(waiting) - len(failed)} measured in {minutes:.1f} minutes, {len(failed)} failed")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    tell(f"next: python {HERE.name}/report.py {args.output}/*.json")


if __name__ == "__main__":
    main()
