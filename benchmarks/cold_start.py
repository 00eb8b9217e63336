"""A cold ``pipeline-kit run --text`` against a script that runs the same sentence through ``transformers.pipeline``.

    python benchmarks/cold_start.py [--rounds 5]

Each round starts both as fresh processes, in turn; the figures are wall times in seconds.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import time

from common.checkpoints import SHIPPED
from common.remember import difference
from common.script import Measurement, finish, flags, tell

from pipeline_kit.bench.machine import paired_ratio
from pipeline_kit.bench.rounds import turns
from pipeline_kit.errors import StageError

TEXT = "I love this."
SCRIPT = f"""
from transformers import pipeline
print(pipeline("text-classification", model={str(SHIPPED)!r})({TEXT!r}))
"""
COMMANDS = {
    "pipeline-kit run": [sys.executable, "-m", "pipeline_kit", "run", "--text", TEXT],
    "transformers.pipeline": [sys.executable, "-c", SCRIPT],
}
COLUMNS = ("command", "seconds, by round", "median", "ours as part of it")


def compare(args: argparse.Namespace) -> Measurement:
    """Time both, by turns, after one uncounted start of each that fills the file cache."""
    names = list(COMMANDS)
    printed = {} if args.quick else {name: _run(name)[1] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.rounds):
        for place in turns(len(names), number):
            name = names[place]
            time_taken, printed[name] = _run(name)
            seconds[name].append(round(time_taken, 3))
        tell(f"round {number + 1} of {args.rounds}: " + ", ".join(f"{name} {seconds[name][-1]} s" for name in names))
    ratio = paired_ratio(seconds[names[1]], seconds[names[0]])  # our time as a part of theirs
    parts = ["", f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"]
    rows = [
        [name, ", ".join(map(str, values)), sorted(values)[len(values) // 2], part]
        for (name, values), part in zip(seconds.items(), parts, strict=True)
    ]
    mine, theirs = json.loads(printed[names[0]]), ast.literal_eval(printed[names[1]])
    return {
        "name": "cold_start",
        "title": "A fresh process to the first result, the shipped checkpoint",
        "kind": "figures",
        "columns": COLUMNS,
        "rows": rows,
        "value": ratio,
        "results": difference([mine], theirs),
    }


def _run(name: str) -> tuple[float, str]:
    """Start a command; return its seconds and the last line that it printed."""
    start = time.perf_counter()
    done = subprocess.run(COMMANDS[name], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise StageError(f"{name} failed: {done.stderr.strip()[-400:]}")
    return seconds, done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Run the comparison."""
    args = flags(__doc__, rounds=5).parse_args()
    finish(args, "cold_start", lambda: [compare(args)])


if __name__ == "__main__":
    main()
