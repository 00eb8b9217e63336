"""pipeline-kit against ``transformers.pipeline`` on the same texts, in one alternating run.

    python benchmarks/against_pipeline.py [--texts short mixed] [--rounds 3] [--batch-sizes 8 32]

The model has the shape asked for and random weights: speed depends on the shape, not on what was
learned. Each round runs every side once, in turn, so that whatever else the machine does hits all of
them; the figures are medians over the rounds. The tokens counted are those of the texts, special
tokens included and padding left out, the same for every side. Results of both sides are compared too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import pipeline_kit as pk

HERE = Path(__file__).parent
SHAPES: dict[str, dict[str, int]] = {
    "distilbert-base": {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
    "tiny": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}


def make_checkpoint(folder: Path, shape: str) -> Path:
    """Write a DistilBERT classifier of the given shape, with the word pieces of the shipped checkpoint."""
    shipped = Path(pk.__file__).parent / "checkpoints" / "tiny_sentiment"
    tokenizer = transformers.AutoTokenizer.from_pretrained(shipped)
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=30522, num_labels=2, **SHAPES[shape])
    transformers.DistilBertForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Side = Callable[[Sequence[str]], list[dict[str, Any]]]


def sides(folder: Path, batch_sizes: Sequence[int]) -> dict[str, Side]:
    """Give each contender as a function of the texts."""
    ours = pk.load(f"checkpoint.path='{folder}'", "device=cpu")
    theirs = transformers.pipeline("text-classification", model=str(folder), device="cpu")

    def run_pipeline(batch_size: int) -> Side:
        return lambda texts: list(theirs(list(texts), batch_size=batch_size, truncation=True))

    found: dict[str, Side] = {"pipeline-kit": lambda texts: ours(list(texts))}
    for size in batch_sizes:
        found[f"pipeline() batch {size}"] = run_pipeline(size)
    return found


def measure(name: str, folder: Path, rounds: int, batch_sizes: Sequence[int]) -> dict[str, Any]:
    """Time every side on one set of texts."""
    lines = (HERE / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = sum(len(ids) for ids in tokenizer(texts, truncation=True)["input_ids"])
    contenders = sides(folder, batch_sizes)
    seconds: dict[str, list[float]] = {side: [] for side in contenders}
    answers: dict[str, list[dict[str, Any]]] = {}
    for side in contenders.values():  # a short warm-up each, not counted
        side(texts[:16])
    for number in range(rounds):
        order = list(contenders)
        for side_name in order[number % len(order) :] + order[: number % len(order)]:
            start = time.perf_counter()
            answers[side_name] = contenders[side_name](texts)
            seconds[side_name].append(time.perf_counter() - start)
    speed = {side: tokens / statistics.median(times) for side, times in seconds.items()}
    pairs = zip(answers["pipeline-kit"], answers["pipeline() batch 1"], strict=True)
    fixed = {side: value for side, value in speed.items() if side.startswith("pipeline()")}
    return {
        "texts": name,
        "rows": len(texts),
        "tokens": tokens,
        "tokens_per_second": {side: round(value, 1) for side, value in speed.items()},
        "ratio": {side: round(speed["pipeline-kit"] / value, 2) for side, value in fixed.items()},
        "ratio_to_best": round(speed["pipeline-kit"] / max(fixed.values()), 2),
        "largest_score_difference": max(abs(a["score"] - b["score"]) for a, b in pairs),
        "seconds": {side: [round(value, 3) for value in times] for side, times in seconds.items()},
    }


def main() -> None:
    """Run the comparison, print a table to stderr and JSON to stdout."""
    parser = argparse.ArgumentParser(description="pipeline-kit against transformers.pipeline")
    parser.add_argument("--texts", nargs="+", default=["short", "mixed"], choices=["short", "mixed"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32], help="of pipeline(), beside its own 1")
    parser.add_argument("--shape", default="distilbert-base", choices=list(SHAPES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder), args.shape)
        found = [measure(name, checkpoint, args.rounds, [1, *args.batch_sizes]) for name in args.texts]
    for row in found:
        print(f"\n{row['texts']}: {row['rows']} texts, {row['tokens']} tokens", file=sys.stderr)
        for side, value in row["tokens_per_second"].items():
            ratio = row["ratio"].get(side)
            print(f"  {side:22} {value:10.0f} tokens/s" + (f"   we are {ratio:.2f}x" if ratio else ""), file=sys.stderr)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pipeline_kit": pk.__version__,
    }
    print(json.dumps({"shape": args.shape, "machine": machine, "results": found}))


if __name__ == "__main__":
    main()
