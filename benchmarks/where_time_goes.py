"""Where the time of our float32 goes: by kind of operator, for three checkpoints on three kinds of text.

    python benchmarks/where_time_goes.py [--quick] > benchmarks/PROFILE.md

torch.profiler slows what it watches, so its shares are quoted and no speed. Operators that it does not see (tokenizing,
planning, Python between operators) are what is left of the wall time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from common.checkpoints import SHIPPED, classifier, minilm, override
from common.environment import facts
from common.script import tell
from common.texts import read

import pipeline_kit
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.types import RunStats

ROWS = {"short": 256, "mixed": 64, "long": 16}
KINDS = {
    "matrix products": ("mkldnn", "_linear_pointwise", "packed", "linear", "addmm", "mm", "bmm", "matmul"),
    "attention": ("_scaled_dot_product", "softmax"),
    "activations": ("gelu", "relu", "silu", "tanh", "erf"),
    "layer norms": ("layer_norm", "native_layer_norm"),
    "embeddings": ("embedding", "index_select"),
    "sums of tensors": ("add",),
}
"""Words in an operator's name, looked for in this order; what has none of them is ``other operators``."""


def kind_of(operator: str) -> str:
    """Name the kind of an operator of torch."""
    name = operator.partition("::")[2] or operator
    if any(word in name for word in KINDS["attention"]):
        return "attention"
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other operators")


def profile(pipeline: Any, texts: list[str]) -> dict[str, float]:
    """Return the share of each kind of operator in the wall time of one pass, and what the stages took."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    stats = RunStats()
    with quiet():
        list(pipeline.results_or_failures(texts))  # warm
        with torch_profile(activities=[ProfilerActivity.CPU]) as seen:
            start = time.perf_counter()
            list(pipeline.results_or_failures(texts, stats))
            wall = time.perf_counter() - start
    shares: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        if not event.key.startswith("ProfilerStep"):
            shares[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / wall
    shares["outside of operators"] = max(0.0, 1 - sum(shares.values()))
    return {**shares, "padding": stats.padding_share, "tokenizer": stats.seconds["tokenizer"] / wall}


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few texts and a tiny shape: tries the script")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".work")
    args = parser.parse_args()
    checkpoints: dict[str, tuple[str, ...]] = {"shipped, 5.9 M": (override(SHIPPED),)}
    if (folder := minilm()) is not None:
        checkpoints["all-MiniLM-L6-v2, 22 M"] = ("task=sentence-embedding", override(folder))
    shape = "tiny" if args.quick else "distilbert-base"
    checkpoints[f"{shape} shape, 66 M"] = (override(classifier(args.work, shape)),)
    columns = [*KINDS, "other operators", "outside of operators", "padding", "tokenizer"]
    lines = []
    for name, overrides in checkpoints.items():
        pipeline = pipeline_kit.load(*overrides, "device=cpu")
        for kind, rows in ROWS.items():
            tell(f"{name}, {kind}")
            found = profile(pipeline, read(kind, rows, args.quick))
            cells = " | ".join(f"{found.get(column, 0.0):.1%}" for column in columns)
            lines.append(f"| {name} | {kind} | {cells} |")
    machine = facts()
    sys.stdout.write(PAGE.format(about=", ".join(f"{key} {value}" for key, value in machine.items() if value)))
    sys.stdout.write(f"\n| checkpoint | texts | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}\n")
    sys.stdout.write("\n".join(lines) + "\n")


PAGE = """\
# Where the time goes

Made by `python benchmarks/where_time_goes.py`: shares of the wall time of one pass in float32 as it comes, under
torch.profiler. *outside of operators* is Python, planning, and waiting for the tokenizer's thread. *padding* is the
share of token slots that held padding; *tokenizer* the tokenizer's own time, which overlaps with the model where there
is more than one chunk.

{about}
"""

if __name__ == "__main__":
    main()
