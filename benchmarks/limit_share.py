"""Which part of the machine's matrix-product limit float32 and bfloat16 reach, on short and on 512-token texts.

    python benchmarks/limit_share.py [--rounds 3]

A classifier of DistilBERT-base shape with random weights. The limit is the best single matrix product of the same
dtype, its weight packed, measured before and after the rounds in the same process; common/limit.py says how a network's
operations are counted.
"""

from __future__ import annotations

import argparse

from common.checkpoints import classifier, override
from common.engines import REFERENCE, engines
from common.measurement import measure_sides
from common.script import Measurement, finish, flags
from common.texts import read

ROWS = {"short": 256, "long": 16}


def compare(texts: str, args: argparse.Namespace) -> Measurement:
    """Measure our two engines on one set of texts."""
    shape = "tiny" if args.quick else "distilbert-base"
    examples = read(texts, ROWS[texts], args.quick)
    ours, left_out = engines(("float32", "bfloat16"), [override(classifier(args.work, shape))], examples[:1])
    title = f"Share of the matrix-product limit, DistilBERT-base shape, {texts} texts"
    found = measure_sides(f"limit/{texts}", title, ours, (), examples, args.rounds, (REFERENCE,), left_out)
    for limit in found["report"]["matrix_limits"]:
        how = f"{limit['kernel']}, {limit['threads']} threads"
        found["report"]["notes"].append(f"the limit in {limit['dtype']}: {limit['gflops']:,.0f} GFLOP/s ({how})")
    return found


def main() -> None:
    """Run the comparison."""
    args = flags(__doc__).parse_args()
    finish(args, "limit_share", lambda: [compare(texts, args) for texts in ROWS])


if __name__ == "__main__":
    main()
