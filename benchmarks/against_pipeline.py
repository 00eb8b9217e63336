"""pipeline-kit's engines against ``transformers.pipeline`` on the same texts, in one alternating run.

    python benchmarks/against_pipeline.py [--texts short mixed long] [--rounds 3] [--batch-sizes 8 32]

A classifier of DistilBERT-base shape with random weights. Each round runs every side once, in turn, so that whatever
else the machine does hits all of them. The tokens counted are those of the texts, special tokens included and padding
left out, the same for every side.
"""

from __future__ import annotations

import argparse

from common.checkpoints import SHAPES, classifier, override
from common.engines import ENGINES, PLAIN, engines
from common.measurement import measure_sides
from common.script import Measurement, finish, flags, tell
from common.texts import ROWS, read

from pipeline_kit.bench.transformers import TransformersSide

TITLES = {
    "short": "DistilBERT-base shape, short sentences",
    "mixed": "DistilBERT-base shape, short sentences and long reviews mixed",
    "long": "DistilBERT-base shape, texts of 512 tokens",
}


def compare(texts: str, args: argparse.Namespace) -> Measurement:
    """Measure all sides on one set of texts."""
    shape = args.shape or ("tiny" if args.quick else "distilbert-base")
    examples = read(texts, args.rows, args.quick)
    names = args.engines
    if names is None:  # the longest texts take minutes: the plugins are measured on the others
        names = PLAIN if args.quick or texts == "long" else list(ENGINES)
    ours, left_out = engines(names, [override(classifier(args.work, shape))], examples[:2])
    peers = []
    for size in dict.fromkeys((1, *args.batch_sizes)):
        tell(f"loading pipeline() batch {size}")
        peers.append(TransformersSide(ours[0].pipeline, ours[0].config, size))
    exact = [side.name for side in (*ours, *peers) if "float32" in side.name or side in peers]
    return measure_sides(f"classifier/{texts}", TITLES[texts], ours, peers, examples, args.rounds, exact, left_out)


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__)
    parser.add_argument("--texts", nargs="+", default=["short", "mixed"], choices=list(ROWS))
    parser.add_argument("--rows", type=int, help="texts of each set; default: " + str(ROWS))
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[8, 32], help="of pipeline(), beside its own 1")
    parser.add_argument("--engines", nargs="*", metavar="NAME", choices=list(ENGINES), help=", ".join(ENGINES))
    parser.add_argument("--shape", choices=list(SHAPES), help="default: distilbert-base; tiny with --quick")
    args = parser.parse_args()
    finish(
        args,
        "classifier " + " ".join(args.texts),
        lambda: [compare(texts, args) for texts in dict.fromkeys(args.texts)],
    )


if __name__ == "__main__":
    main()
