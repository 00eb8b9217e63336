"""A cold ``pipeline-kit run --text`` against a script that runs the same sentence through ``transformers.pipeline``.

    python benchmarks/cold_start.py [--rounds 7]

Each round starts both as fresh processes, in turn; the figures are medians of wall time in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pipeline_kit

CHECKPOINT = Path(pipeline_kit.__file__).parent / "checkpoints" / "tiny_sentiment"
TEXT = "I love this."
SCRIPT = f"""
from transformers import pipeline
print(pipeline("text-classification", model={str(CHECKPOINT)!r})({TEXT!r}))
"""
COMMANDS = {
    "pipeline-kit run": [sys.executable, "-m", "pipeline_kit", "run", "--text", TEXT],
    "transformers.pipeline": [sys.executable, "-c", SCRIPT],
}


def main() -> None:
    """Time both and print JSON."""
    parser = argparse.ArgumentParser(description="cold start of one sentence")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(round(time.perf_counter() - start, 2))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["pipeline-kit run"] / medians["transformers.pipeline"]
    print(json.dumps({"median_seconds": medians, "ratio": round(ratio, 2), "seconds": seconds}))


if __name__ == "__main__":
    main()
