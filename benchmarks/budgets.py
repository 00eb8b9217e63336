"""How many tokens a batch should have, engine by engine: the table behind ``batching.max_tokens: null``.

    python benchmarks/budgets.py [--texts short mixed] [--engines float32 int8] [--rounds 3]

A classifier of DistilBERT-base shape with random weights; each engine runs the same texts with every budget by turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from common.checkpoints import classifier, override
from common.engines import ENGINES, OURS, PLAIN, engine, engines
from common.measurement import measure_sides
from common.script import Measurement, finish, flags
from common.texts import ROWS, read

from pipeline_kit.builtin.quiet import quiet

BUDGETS = (512, 1024, 2048, 4096)


def compare(args: argparse.Namespace) -> Iterator[Measurement]:
    """Measure all budgets of each engine, on each set of texts."""
    shape = override(classifier(args.work, "tiny" if args.quick else "distilbert-base"))
    for texts in args.texts:
        examples = read(texts, args.rows, args.quick)
        there, left_out = engines(args.engines, [shape], examples[:2])
        names = {side.name for side in there}
        for name in (name for name in args.engines if f"{OURS} {name}" in names):
            sides = []
            for budget in args.budgets:
                with quiet():
                    sides.append(engine(name, shape, f"batching.max_tokens={budget}"))
                sides[-1].name = f"{OURS} {name}, {budget:,} tokens"
            title = f"Tokens of a batch: {name}, {texts} texts"
            yield measure_sides(f"budgets/{name}/{texts}", title, sides, (), examples, args.rounds, (), left_out)


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__)
    parser.add_argument("--texts", nargs="+", default=["short", "mixed"], choices=list(ROWS))
    parser.add_argument("--rows", type=int, help="texts of each set; default: " + str(ROWS))
    parser.add_argument("--engines", nargs="+", default=list(PLAIN), choices=list(ENGINES), help=", ".join(ENGINES))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help=f"default: {BUDGETS}")
    args = parser.parse_args()
    finish(args, "budgets", lambda: list(compare(args)))


if __name__ == "__main__":
    main()
