"""Memory over the loaded model for some input, and for ten times as much.

    python benchmarks/memory_growth.py [--rounds 3] [--rows 4000]

Each run is a fresh process that streams short sentences through the shipped checkpoint, texts from a generator, results
let go. It reports how far the resident memory rose over what it was when the model was loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import deque
from itertools import cycle, islice
from pathlib import Path

from common.script import Measurement, finish, flags, tell
from common.texts import labelled

from pipeline_kit.errors import StageError

ROWS = 4000  # more than the sort window, so that the first run has filled it
COLUMNS = ("texts", "memory over the loaded model, MiB, by run", "median MiB")


def child(rows: int) -> None:
    """Stream `rows` texts and print the growth in bytes."""
    import pipeline_kit as pk
    from pipeline_kit.bench.rounds import watch

    pipe = pk.load("device=cpu", "batching.deduplicate=false")
    texts = [text for text, _ in labelled("short")]
    deque(pipe.stream(texts[:8]), maxlen=0)  # what torch takes once is no growth
    with watch(pipe.device) as peak:
        deque(pipe.stream(islice(cycle(texts), rows)), maxlen=0)
    print(json.dumps({"growth": peak.growth}))


def compare(args: argparse.Namespace) -> Measurement:
    """Run the children: the small one each round, the large one, which takes minutes, once."""
    small = 100 if args.quick else args.rows
    found: dict[int, list[int]] = {small: [], 10 * small: []}
    for rows in [10 * small, *[small] * args.rounds]:
        found[rows].append(_grown(rows))
        tell(f"memory of {rows:,} texts: {found[rows][-1] / 2**20:.1f} MiB over the model")
    medians = [sorted(values)[len(values) // 2] for values in found.values()]
    more = [found[10 * small][0] - value for value in found[small]]
    rows_of = [
        [f"{rows:,}", ", ".join(f"{value / 2**20:.1f}" for value in values), round(median / 2**20, 1)]
        for (rows, values), median in zip(found.items(), medians, strict=True)
    ]
    return {
        "name": "memory/shipped",
        "title": "Memory over the loaded model, the shipped checkpoint, short sentences",
        "kind": "figures",
        "columns": COLUMNS,
        "rows": rows_of,
        "value": {"median": sorted(more)[len(more) // 2] / 1e6, "min": min(more) / 1e6, "max": max(more) / 1e6},
    }


def _grown(rows: int) -> int:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise StageError(f"streaming {rows} texts failed: {done.stderr.strip()[-400:]}")
    return int(json.loads(done.stdout)["growth"])


def main() -> None:
    """Run the comparison, or one of its runs."""
    parser = flags(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"texts of the small run; default: {ROWS}")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child)
    else:
        finish(args, "memory_growth", lambda: [compare(args)])


if __name__ == "__main__":
    main()
