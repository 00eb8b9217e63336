"""The checkpoint that ships with pipeline-kit, on short sentences: all engines against ``transformers.pipeline``.

    python benchmarks/shipped_checkpoint.py [--rounds 3] [--engines int8 ...]

It is trained, so its labels say what an engine's rounding costs: each is compared with float32 and with the true
labels on all texts of data/ but the long ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from common.checkpoints import SHIPPED, override
from common.engines import ENGINES, PLAIN, engines
from common.measurement import measure_sides
from common.remember import difference
from common.script import Measurement, finish, flags, tell
from common.texts import labelled, read

from pipeline_kit.bench.sides import PipelineSide
from pipeline_kit.bench.transformers import TransformersSide
from pipeline_kit.builtin.quiet import quiet

ROWS = 512
BATCH_SIZES = (1, 8, 32)
COLUMNS = ("engine", "texts", "labels as in float32", "largest difference of a score", "labels that are true")


def agreement(sides: Sequence[PipelineSide], quick: bool) -> Measurement:
    """Let each engine label the same texts, once: a label does not depend on when it is given."""
    rows = labelled("short", "mixed", "more")[: 40 if quick else None]
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    found: list[list[Any]] = []
    shares: dict[str, float] = {}
    reference: list[Any] = []
    for side in sides:
        tell(f"labels of {side.name}, {len(texts)} texts")
        with quiet():
            results: list[Any] = list(side.pipeline.results_or_failures(texts))
        reference = reference or results
        against = difference(reference, results)
        true = sum(result.get("label") == label for result, label in zip(results, labels, strict=True)) / len(labels)
        shares[side.name] = against["same_label"]
        largest = against["largest_score_difference"]
        found.append([side.name, len(texts), f"{shares[side.name]:.2%}", f"{largest:.1e}", f"{true:.1%}"])
    return {
        "name": "shipped/agreement",
        "title": "The shipped checkpoint's labels, by engine",
        "kind": "figures",
        "columns": COLUMNS,
        "rows": found,
        "agreement": shares,
    }


def compare(args: argparse.Namespace) -> list[Measurement]:
    """Measure the speed of all sides, and the labels of ours."""
    texts = read("short", ROWS, args.quick)
    names = args.engines if args.engines is not None else PLAIN if args.quick else list(ENGINES)
    ours, left_out = engines(names, [override(SHIPPED)], texts[:2])
    peers = [TransformersSide(ours[0].pipeline, ours[0].config, size) for size in BATCH_SIZES]
    exact = [side.name for side in (*ours, *peers) if "float32" in side.name or side in peers]
    title = "The shipped checkpoint (5.9 M parameters), short sentences"
    speed = measure_sides("shipped/short", title, ours, peers, texts, args.rounds, exact, left_out)
    return [speed, agreement(ours, args.quick)]


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__)
    parser.add_argument("--engines", nargs="*", metavar="NAME", choices=list(ENGINES), help=", ".join(ENGINES))
    args = parser.parse_args()
    finish(args, "shipped_checkpoint", lambda: compare(args))


if __name__ == "__main__":
    main()
