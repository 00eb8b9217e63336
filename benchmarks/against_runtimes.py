"""pipeline-kit against ONNX Runtime and OpenVINO driven by hand with the same sorted batches.

    python benchmarks/against_runtimes.py [--texts short mixed] [--rounds 3]

A classifier of DistilBERT-base shape with random weights. The peers get what costs most people days to find: our batch
plan, the fast tokenizer in one call, the exporter's fusions, as many threads. Every side tokenizes within its time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec

from common.by_hand import ByHand
from common.checkpoints import SHAPES, classifier, override
from common.engines import engines, reason
from common.graphs import Graph, onnx_graph, onnx_runner, openvino_runner
from common.measurement import measure_sides
from common.script import Measurement, finish, flags, tell
from common.texts import ROWS, read

from pipeline_kit.bench.sides import PipelineSide

OUR_ENGINES = ("int8", "int8_per_token", "onnxruntime int8", "openvino int8")
NEEDS = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}


def peers(args: argparse.Namespace, ours: PipelineSide, shape: str) -> tuple[list[ByHand], dict[str, str]]:
    """Export the classifier for each runtime that is installed; say why one is missing."""
    folder, threads = classifier(args.work, shape), ours.device.threads
    wanted: dict[str, Callable[[], Graph]] = {
        "onnxruntime by hand float32": lambda: onnx_runner(onnx_graph(folder, args.work, "float32"), threads),
        "onnxruntime by hand float32, fused": lambda: onnx_runner(onnx_graph(folder, args.work, "fused"), threads),
        "onnxruntime by hand int8": lambda: onnx_runner(onnx_graph(folder, args.work, "int8"), threads),
        "openvino by hand float32": lambda: openvino_runner(folder, args.work, threads),
    }
    if args.quick:
        del wanted["onnxruntime by hand float32, fused"]  # its export takes as long as all else
    found: list[ByHand] = []
    left_out: dict[str, str] = {}
    for name, load in wanted.items():
        missing = [module for module in NEEDS[name.partition(" ")[0]] if find_spec(module) is None]
        if missing:
            left_out[name] = "not installed"
            continue
        tell(f"loading {name}; a graph is exported once")
        try:
            found.append(ByHand(name, load(), folder, ours))
        except Exception as error:  # exporters and runtimes raise whatever they like
            left_out[name] = reason(error)
            tell(f"  left out: {left_out[name]}")
    return found, left_out


def compare(texts: str, args: argparse.Namespace) -> Measurement:
    """Measure all sides on one set of texts."""
    shape = args.shape or ("tiny" if args.quick else "distilbert-base")
    examples = read(texts, args.rows, args.quick)
    ours, left_out = engines(() if args.quick else OUR_ENGINES, [override(classifier(args.work, shape))], examples[:2])
    theirs, missing = peers(args, ours[0], shape)
    exact = [side.name for side in (*ours, *theirs) if "float32" in side.name]
    title = f"DistilBERT-base shape against runtimes driven by hand, {texts} texts"
    return measure_sides(f"runtimes/{texts}", title, ours, theirs, examples, args.rounds, exact, left_out | missing)


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__)
    parser.add_argument("--texts", nargs="+", default=["short", "mixed"], choices=list(ROWS))
    parser.add_argument("--rows", type=int, help="texts of each set; default: " + str(ROWS))
    parser.add_argument("--shape", choices=list(SHAPES), help="default: distilbert-base; tiny with --quick")
    args = parser.parse_args()
    finish(
        args, "runtimes " + " ".join(args.texts), lambda: [compare(texts, args) for texts in dict.fromkeys(args.texts)]
    )


if __name__ == "__main__":
    main()
