"""Runs jobs in children that are killed at random instants, again and again until each is complete.

A process of its own, see warm.py: it has started no thread, so a fork is a fresh run of a job at the price of
milliseconds. Usage: ``job_killer.py FOLDER SEED JOBS KILLS``; prints one line of JSON.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 - loaded before the forks
import pyarrow.parquet  # noqa: F401
from echo_job import content_of, job_config, run_echo
from harness import checkpoint

from pipeline_kit.compose.schema import PipelineConfig

VARIANTS = {
    "jsonl": (),
    "csv": ("output.format=csv", "input.id=key", "input.carry=[number]"),
    "parquet": ("output.format=parquet", "input.carry=[number,key]"),
    "steps": (
        "steps=sentences_with_entities",
        f"steps.entities.checkpoint.path={checkpoint()}",
        f"steps.sentiment.checkpoint.path={checkpoint()}",
        "steps.sentiment.when=entities.*.label",
    ),
    "npy": ("task=sentence-embedding", "output.vectors=npy", "output.format=parquet", "input.id=key"),
}
ROWS, FEW_ROWS = 48, 24
"""Of a job, in a storm and otherwise."""
ROWS_PER_SHARD = 2
MOST_KILLS = 100
"""Of one job, so that a machine that is slow all at once does not make this last for ever."""


def rows_of(seed: random.Random, count: int = ROWS) -> list[bytes]:
    """Rows of which some fail in each stage, and some cannot be read."""
    lines = []
    for number in range(count):
        fault = seed.choices(["", "~t", "~m", "~p"], [16, 1, 1, 1])[0]
        row = {"text": f"row {number}{fault} " + "x" * seed.randrange(40), "number": number, "key": f"k{number}"}
        lines.append(b'{"key": "k' if seed.random() < 0.03 else json.dumps(row).encode())
    return lines


def child(work: Callable[[], object]) -> tuple[int, int]:
    """Start a run; give its process id and a descriptor that comes to its end when the process does."""
    ends, held = os.pipe()
    pid = os.fork()
    if pid:
        os.close(held)
        return pid, ends
    try:
        work()
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)


def run(work: Callable[[], object], kill_after: float | None = None) -> bool:
    """Run `work` in a child; tell whether it came to its end before it was killed."""
    pid, ends = child(work)
    try:
        ended, _, _ = select.select([ends], [], [], kill_after)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(ends)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        raise SystemExit(f"a run of a job failed with status {status}")
    return True


def look(out: Path, whole: dict[str, bytes]) -> None:
    """See that nothing under a final name is torn, whenever the last run was killed."""
    found = content_of(out) if out.exists() else {}
    for name, content in found.items():
        if content != whole.get(name):
            raise SystemExit(f"{out / name}: is not what an undisturbed run wrote")
    for path in [*out.glob("_receipts/*.json"), *out.glob("_manifest.json")]:
        json.loads(path.read_bytes())
    if (out / "_SUCCESS").exists() and found.keys() != whole.keys():
        raise SystemExit(f"{out}: says that it is complete, and is not")


def kill_until_done(config: PipelineConfig, source: Path, out: Path, seed: random.Random, rows: int) -> dict[str, Any]:
    """Run a job undisturbed, then once more with kills; give what a test compares."""
    whole = out.with_name(out.name + ".whole")
    lasted = lasts(lambda: run_echo(config, [source], whole))
    begins = lasts(lambda: run_echo(config, [source], whole))  # complete already, so this only looks
    reach = begins + 3 * lasted / (rows / ROWS_PER_SHARD)
    expected, kills = content_of(whole), 0
    while not run(lambda: run_echo(config, [source], out), seed.uniform(0, reach) if kills < MOST_KILLS else None):
        kills += 1
        look(out, expected)
    look(out, expected)
    return {"out": str(out), "whole": str(whole), "source": str(source), "kills": kills}


def kill_at_every_step(config: PipelineConfig, source: Path, out: Path, every: int) -> int:
    """Kill a run before each of its writes, syncs and renames, in a folder each; return how many kills there were.

    :param every: only before every so-manieth of them.
    """
    whole = out.with_name(out.name + ".whole")
    run(lambda: run_echo(config, [source], whole))
    expected = content_of(whole)
    for number in count():
        path = out.with_name(f"{out.name}.{number}")

        def killed(step: int = 1 + number * every, path: Path = path) -> None:
            die_before(step)
            run_echo(config, [source], path)

        if run(killed):
            return number
        look(path, expected)
        run(lambda path=path: run_echo(config, [source], path))  # type: ignore[misc]
        look(path, expected)
        if not (path / "_SUCCESS").exists() or list(path.rglob("*.tmp")):
            raise SystemExit(f"{path}: is not complete, or something is left over")
    raise AssertionError("never reached")


def die_before(step: int) -> None:
    """Let this process kill itself before the n-th call that changes what is on the disk."""
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        return call

    for name in ("open", "write", "fsync", "replace", "unlink"):
        setattr(os, name, dying(getattr(os, name)))


def lasts(work: Callable[[], object]) -> float:
    start = time.monotonic()
    run(work)
    return time.monotonic() - start


def main(folder: str, seed: str, jobs: str, kills: str) -> None:
    """Go on until there were both `jobs` and `kills`."""
    os.fsync = lambda fd: None  # a kill, unlike a loss of power, loses nothing that was written
    source, is_storm = random.Random(int(seed)), int(jobs) > len(VARIANTS)
    rows = ROWS if is_storm else FEW_ROWS
    done: list[dict[str, Any]] = []
    configs = {}
    for name, overrides in VARIANTS.items():
        given = (f"output.rows_per_shard={ROWS_PER_SHARD}", "job.max_failed_rows=null", *overrides)
        configs[name] = job_config(*given)
    gc.freeze()
    while len(done) < int(jobs) or sum(job["kills"] for job in done) < int(kills):
        number = len(done)
        name = list(VARIANTS)[number % len(VARIANTS)]
        path = Path(folder) / (f"in-{number}.jsonl.gz" if number % 3 == 2 else f"in-{number}.jsonl")
        data = b"\n".join(rows_of(source, rows)) + b"\n"
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        job = kill_until_done(configs[name], path, Path(folder) / f"out-{number}-{name}", source, rows)
        done.append({**job, "format": name})
    short = Path(folder) / "short.jsonl"
    short.write_bytes(b"\n".join([*rows_of(source)[:2], b'{"text": "~p"}']) + b"\n")
    steps = kill_at_every_step(configs["npy"], short, Path(folder) / "steps", 1 if is_storm else 5)
    sys.stdout.write(json.dumps({"jobs": done, "steps": steps}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
