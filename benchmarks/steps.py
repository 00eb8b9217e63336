"""A config with three steps against the three pipelines run by hand, one after another, over the same rows.

    python benchmarks/steps.py [--rows 10000] [--rounds 5] [--kills 8]

The steps: a classifier on the text, one with short texts on what the first calls POSITIVE, and an embedding. Both sides
have the same stages and take turns; what comes out is compared, value by value, before anything is timed. With --kills
nothing is timed: a job over the same rows is killed so often and resumed, and its files are compared with those of one
that ran alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common.script import Measurement, finish, flags, tell
from common.texts import labelled

from pipeline_kit.bench.machine import paired_ratio
from pipeline_kit.bench.rounds import turns
from pipeline_kit.errors import StageError

if TYPE_CHECKING:
    from pipeline_kit.runtime.steps import StepPipeline

ROWS, QUICK_ROWS, SHARDS = 10_000, 100, 50
CONFIG = """\
defaults: [config, STAGES_self_]
device: {name: cpu}
batching: {deduplicate: false}
steps:
  sentiment:
    postprocessor: {top_k: null}
  positive:
    tokenizer: {max_length: 16}
    when: {sentiment.label: POSITIVE}
  vector:
    task: sentence-embedding
"""


STATIC = "override /model: static, override /checkpoint: tiny_static, override /tokenizer: tokenizers_json, "
"""The shipped checkpoint without a network: fast enough to run so many rows again and again."""


def load(folder: Path, stages: str = "") -> StepPipeline:
    """Load the pipeline of `CONFIG`, with other stages if they are given."""
    import pipeline_kit as pk
    from pipeline_kit.runtime.steps import StepPipeline

    (folder / "chain.yaml").write_text(CONFIG.replace("STAGES", stages), encoding="utf-8")
    pipe = pk.load(config_dir=folder, config_name="chain")
    assert isinstance(pipe, StepPipeline)
    return pipe


def by_hand(pipe: StepPipeline, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Run the same three pipelines one after another, as a script of one's own would."""
    sentiment, positive, vector = (step.pipeline for step in pipe.steps.values())
    assert sentiment is not None
    assert positive is not None
    assert vector is not None
    first = sentiment(texts)
    chosen = [place for place, result in enumerate(first) if result["label"] == "POSITIVE"]
    second = dict(zip(chosen, positive([texts[place] for place in chosen]), strict=True))
    third = vector(texts)
    return [
        {"sentiment": result, "positive": second.get(place), "vector": third[place]}
        for place, result in enumerate(first)
    ]


def checked(args: argparse.Namespace, folder: Path, stages: str = "") -> tuple[StepPipeline, list[str]]:
    """Return the pipeline and the texts; this is the warm-up too.

    :raises StageError: if the results of both sides differ anywhere.
    """
    rows = QUICK_ROWS if args.quick else args.rows
    texts = list(islice(cycle(text for text, _ in labelled("short")), rows))
    pipe = load(folder, stages)
    if pipe(texts) != by_hand(pipe, texts):
        raise StageError("the results of the steps are not those of the three pipelines by hand")
    return pipe, texts


def killed(args: argparse.Namespace) -> Measurement:
    """Kill a job again and again, at an instant of a seed; compare its files with those of a job that ran alone.

    :raises StageError: if one byte differs.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        _, texts = checked(args, folder, STATIC)
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        command = [sys.executable, "-m", "pipeline_kit", "run", "--config", str(folder / "chain.yaml"), "--quiet"]
        command += ["--input", str(source), f"output.rows_per_shard={max(1, len(texts) // SHARDS)}", "--output"]
        subprocess.run([*command, str(folder / "alone")], check=True)
        random, kills = Random(0), 0
        while kills < args.kills:
            done = len(list((folder / "killed").glob("part-*")))
            due = done + random.randrange(1, max(2, (SHARDS - done) // (args.kills - kills)))
            process = subprocess.Popen([*command, str(folder / "killed")])
            while process.poll() is None and len(list((folder / "killed").glob("part-*"))) < due:
                time.sleep(random.random() / 10)
            if process.poll() is not None:
                raise StageError(f"the job ended before kill {kills + 1} of {args.kills}; pass fewer --kills")
            process.kill()
            process.wait()
            kills += 1
            tell(f"kill {kills} of {args.kills}: after {due} of {SHARDS} shards")
        subprocess.run([*command, str(folder / "killed")], check=True)
        alone, again = (
            {path.name: path.read_bytes() for path in sorted((folder / job).glob("part-*"))}
            for job in ("alone", "killed")
        )
    if alone != again:
        raise StageError(f"the files of the killed job differ: {[n for n in alone if alone[n] != again.get(n)]}")
    size = sum(map(len, alone.values()))
    return {
        "name": "steps/killed",
        "title": f"A config with three steps over {len(texts):,} sentences, the shipped checkpoint tiny_static",
        "kind": "figures",
        "columns": ("compared", "result"),
        "rows": [
            ["its results with those of the three pipelines by hand", f"all {len(texts):,} equal, value by value"],
            [
                f"a job killed {kills} times and resumed with one left alone",
                f"{len(alone)} files, {size:,} bytes: equal",
            ],
        ],
    }


def compare(args: argparse.Namespace) -> Measurement:
    """Let both sides take turns."""
    with TemporaryDirectory() as folder:
        pipe, texts = checked(args, Path(folder))
    rows = len(texts)
    sides: dict[str, Callable[[], object]] = {"steps": lambda: pipe(texts), "by hand": lambda: by_hand(pipe, texts)}
    names, seconds = list(sides), {name: list[float]() for name in sides}
    for number in range(args.rounds):
        for place in turns(len(names), number):
            gc.collect()
            start = time.perf_counter()
            sides[names[place]]()
            seconds[names[place]].append(round(time.perf_counter() - start, 3))
        tell(f"round {number + 1} of {args.rounds}: " + ", ".join(f"{n} {seconds[n][-1]} s" for n in names))
    ratio = paired_ratio(seconds["by hand"], seconds["steps"])
    shown = f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"
    return {
        "name": "steps/by_hand",
        "title": f"A config with three steps against the three by hand, {rows:,} sentences, the shipped checkpoint",
        "kind": "figures",
        "columns": ("side", "seconds, by round", "median", "rows/s", "the steps' time as a part of it"),
        "rows": [_line(name, seconds[name], rows, shown if name == "by hand" else "") for name in names],
        "value": ratio,
    }


def _line(side: str, seconds: Sequence[float], rows: int, part: str) -> list[Any]:
    middle = sorted(seconds)[len(seconds) // 2]
    return [side, ", ".join(map(str, seconds)), middle, round(rows / max(middle, 1e-9), 1), part]


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__, rounds=5)
    parser.add_argument("--rows", metavar="N", type=int, default=ROWS, help=f"default: {ROWS:,}")
    parser.add_argument("--kills", metavar="N", type=int, default=0, help="kill a job so often, and time nothing")
    args = parser.parse_args()
    finish(args, "steps", lambda: [killed(args) if args.kills else compare(args)])


if __name__ == "__main__":
    main()
