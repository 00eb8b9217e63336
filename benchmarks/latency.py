"""One text at a time: the median time of a call, against ``transformers.pipeline``.

    python benchmarks/latency.py [--rounds 3] [--seconds 5]

Short sentences through a classifier of DistilBERT-base shape (random weights) and through the shipped checkpoint. The
two take turns text by text.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

from common.checkpoints import SHIPPED, classifier, override
from common.engines import engine
from common.remember import difference
from common.script import Measurement, finish, flags, tell
from common.texts import read

from pipeline_kit.bench.machine import paired_ratio, percentiles
from pipeline_kit.bench.rounds import Timing, latencies
from pipeline_kit.bench.sides import TextBatch
from pipeline_kit.bench.transformers import TransformersSide
from pipeline_kit.builtin.quiet import quiet

MOST = 200
COLUMNS = ("side", "p50 ms, by round", "p95 ms", "its p50 as part of pipeline()'s", "largest difference")


def compare(name: str, title: str, folder: Path, args: argparse.Namespace) -> Measurement:
    """Time both sides on one checkpoint, `MOST` calls each in a round unless the time is over before."""
    texts = read("short", MOST, args.quick)
    with quiet():
        ours = engine("float32", override(folder))
        theirs = TransformersSide(ours.pipeline, ours.config)
        differences = difference(ours.warm_up(texts[:32]).results, theirs.run(texts[:32]))
    found: list[list[dict[str, float]]] = [[], []]
    gc.collect()
    gc.freeze()
    for number in range(args.rounds):
        timings = [Timing(TextBatch([])), Timing(TextBatch([]))]
        with quiet():
            latencies([ours, theirs], timings, texts, 0.1 if args.quick else args.seconds, MOST)
        for figures, timing in zip(found, timings, strict=True):
            figures.append(percentiles([1e3 * value for value in timing.single]))
        tell(f"{name}, round {number + 1} of {args.rounds}: {len(timings[0].single)} calls for each side")
    gc.unfreeze()
    p50 = [[round(figures["p50"], 4) for figures in side] for side in found]
    p95 = [sorted(figures["p95"] for figures in side)[len(side) // 2] for side in found]
    ratio = paired_ratio(p50[1], p50[0])  # the time of ours as a part of theirs
    spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
    rows = [
        [ours.name, ", ".join(f"{value:.2f}" for value in p50[0]), p95[0], spread, None],
        [theirs.name, ", ".join(f"{value:.2f}" for value in p50[1]), p95[1], None, None],
    ]
    rows[1][-1] = differences["largest_score_difference"]
    return {"name": name, "title": title, "kind": "figures", "columns": COLUMNS, "rows": rows, "value": ratio}


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="at the most, for each side and round")
    args = parser.parse_args()
    shape = "tiny" if args.quick else "distilbert-base"
    finish(
        args,
        "latency",
        lambda: [
            compare("latency/shipped", "One text at a time, the shipped checkpoint", SHIPPED, args),
            compare(
                "latency/classifier", "One text at a time, DistilBERT-base shape", classifier(args.work, shape), args
            ),
        ],
    )


if __name__ == "__main__":
    main()
