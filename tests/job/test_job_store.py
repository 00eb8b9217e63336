"""Jobs in an object store: what is written once stays, one writer keeps the books, and bytes are those of a folder."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from echo_job import EchoModel, Interrupted, content_of, echo, job_config, run_echo, write_rows

from pipeline_kit.contract.types import ModelOutput, RunStats, TokenBatch
from pipeline_kit.errors import JobError, OutputError, UsageError
from pipeline_kit.files.storage.base import Conflict, Storage
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.files.storage.objects import forget_stores
from pipeline_kit.job import store
from pipeline_kit.job.ledger import JobLedger, JobWatcher
from pipeline_kit.job.manifest import Manifest
from pipeline_kit.job.receipt import Receipt, shard_name
from pipeline_kit.job.shard import ShardResult
from pipeline_kit.job.store import StoreFolder
from pipeline_kit.runtime.config import JobConfig

OUT = "memory://bucket/deep/out"
OPTIONS = ("input.id=id", "job.max_failed_rows=null")


@pytest.fixture(autouse=True)
def memory() -> Iterator[Storage]:
    forget_stores()
    yield storage_of(OUT)
    forget_stores()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    faults = {1: "~m one", 4: "~p four"}
    return write_rows(tmp_path / "in.jsonl", [{"id": f"r{i}", "text": faults.get(i, f"text {i}")} for i in range(8)])


def stored(storage: Storage, out: str = OUT) -> dict[str, bytes]:
    """The shards and dead letters of a job in a store."""
    found = {}
    for folder in ("", "_dead/"):
        for name, status in storage.files(f"{out}/{folder}".rstrip("/")).items():
            if name.startswith("part-") and status.kind == "file":
                found[folder + name] = storage.read(f"{out}/{folder}{name}")
    return found


def run(source: Path, *overrides: str, out: Any = OUT, **how: Any) -> Any:
    return run_echo(job_config(*OPTIONS, *overrides), [source], out, **how)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_the_objects_are_the_files_of_a_folder(source: Path, tmp_path: Path, memory: Storage, format: str) -> None:
    run(source, f"output.format={format}", out=tmp_path / "out")
    done = run(source, f"output.format={format}")
    assert (done.rows, done.dead, done.folder, done.complete) == (8, 2, OUT, True)
    assert stored(memory) == content_of(tmp_path / "out")
    assert sorted(memory.files(OUT)) == [
        *("_SUCCESS", "_dead", "_manifest.json", "_receipts"),
        *(f"part-{number:05d}.{format}" for number in range(3)),
    ]
    assert run(source, f"output.format={format}").reused == 8
    with pytest.raises(UsageError, match="holds a job that is not this one"):
        run(source, f"output.format={format}", "padding=max_length")


class Mended(EchoModel):
    """No longer minds ``~m``."""

    def forward(self, batch: TokenBatch) -> ModelOutput:
        return ModelOutput({"sum": (batch.input_ids * batch.attention_mask).sum(1).float()})


def test_a_retry_adds_objects_and_changes_none(source: Path, memory: Storage) -> None:
    run(source)
    before = stored(memory)
    done = run(source, retry=True, build=lambda config: echo(config, model=Mended()))
    assert (done.dead, done.reused) == (1, 6)
    after = stored(memory)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == ["part-00000.retry-1.jsonl"]
    assert sorted(memory.files(f"{OUT}/_receipts"))[:2] == ["part-00000.json", "part-00000.retry-1.json"]
    again = run(source, retry=True)
    assert (again.dead, again.reused) == (1, 7), "row r4 alone failed at last"
    assert run(source).reused == 8


class Stop(Exception):
    """Ends a run from outside."""


@contextmanager
def dying(storage: Storage, step: int) -> Iterator[None]:
    """Count the requests that change something, before and after each; from the count `step` on raise at all of them.

    So what a process does while it unwinds changes nothing either, as if it had been killed.
    """
    kind, count = type(storage), 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count >= step:
            raise Stop

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def send(*given: Any) -> Any:
            tick()
            done = call(*given)
            tick()
            return done

        return send

    def counted_writer(call: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def write(*given: Any) -> Iterator[Any]:
            tick()
            with call(*given) as file:
                yield file
            tick()

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create", "swap", "delete"):
            patch.setattr(kind, name, counted(getattr(kind, name)))
        patch.setattr(kind, "writer", counted_writer(kind.writer))
        yield


class Halves(EchoModel):
    """Fails for some rows, until it is mended: then for fewer."""

    def forward(self, batch: TokenBatch) -> ModelOutput:
        if any(b"~later" in bytes(row) for row in batch.input_ids.tolist()):
            raise RuntimeError("not yet")
        return super().forward(batch)


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    """Rows of which a retry mends some of a shard, all of one, and none of one."""
    faults = {0: "~later 0", 1: "~m 1", 4: "~p 4", 6: "~later 6"}
    return write_rows(tmp_path / "f.jsonl", [{"id": f"r{i}", "text": faults.get(i, f"text {i}")} for i in range(11)])


def start(source: Path, retry: bool = False) -> Any:
    return run(source, retry=retry, build=lambda config: echo(config, model=EchoModel() if retry else Halves()))


@pytest.mark.parametrize("how", ["run", "retry", "retry, then run"])
def test_cut_off_before_and_after_any_request_the_next_run_completes_it(
    failing: Path, memory: Storage, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Of the driver and of the writer, which are one here; the lease is left behind, and packs are written too."""
    monkeypatch.setattr(store, "PACK", 2)
    monkeypatch.setattr(store, "_alive", lambda process: False)
    retry = how != "run"

    def begin() -> None:
        forget_stores()
        if retry:
            start(failing)

    begin()
    start(failing, retry)
    expected, names, step, whole = stored(memory), sorted(memory.files(OUT)), 0, False
    assert len(expected) == (10 if retry else 7)
    while not whole:
        begin()
        step += 1
        with dying(memory, step):
            try:
                start(failing, retry)
                whole = True
            except Stop:
                pass
        if how == "retry, then run":
            assert start(failing).complete
        assert start(failing, retry).complete
        assert stored(memory) == expected
        assert sorted(memory.files(OUT)) == names
    assert step > 20


@pytest.mark.parametrize("retry", [False, True])
def test_a_writer_that_dies_at_any_request_is_replaced_and_does_no_harm_when_it_lives_on(
    failing: Path, memory: Storage, monkeypatch: pytest.MonkeyPatch, retry: bool
) -> None:
    """As workers of a cluster do: another one makes the shard again, and the first one, slow but alive, goes on."""
    write, expected, most, step = StoreFolder.write_shard, dict[str, bytes](), list[int](), 0

    def three_times(self: StoreFolder, receipt: Receipt, contents: Mapping[str, bytes], before: Any) -> Receipt:
        with suppress(Stop), dying(memory, step):
            write(self, receipt, contents, before)
        second = write(self, replace(receipt, counts={**receipt.counts, "tokens": 1}), contents, before)
        assert write(self, receipt, contents, before) == second
        most.append(2 * len(contents) + 2)
        return second

    while step < 8:
        step += 1
        forget_stores()
        if retry:
            start(failing)
        with monkeypatch.context() as patch:
            patch.setattr(StoreFolder, "write_shard", three_times)
            done = start(failing, retry)
        assert (done.complete, done.dead) == (True, 2 if retry else 4)
        expected = expected or stored(memory)
        assert stored(memory) == expected
    assert max(most) == 6 < step


def test_a_second_writer_is_refused_until_the_lease_has_ended(source: Path, memory: Storage) -> None:
    folder, other = StoreFolder(OUT), StoreFolder(OUT)
    with folder.locked(60):
        with pytest.raises(OutputError, match=rf"another process writes .*: process {os.getpid()} on .*, \d+ s ago"):
            run(source)
        with pytest.raises(OutputError, match="its lease ends after 60 s"), other.locked(60):
            pass
    assert memory.kind(f"{OUT}/_lock") is None

    def hold(**changes: Any) -> None:
        content = {"token": "t", "host": "other-host", "pid": 1, "seconds": 60} | changes
        memory.swap(f"{OUT}/_lock", json.dumps(content).encode(), None)

    hold()
    with pytest.raises(OutputError, match="process 1 on other-host"), folder.locked(60):
        pass
    memory.delete(f"{OUT}/_lock")
    hold(seconds=-5)
    with folder.locked(60):
        memory.delete(f"{OUT}/_lock")
        hold()
        folder._lease._renew(_Once())  # type: ignore[union-attr]
        with pytest.raises(JobError, match="another process has taken over this folder"):
            folder.put("_manifest.json", b"")
    memory.delete(f"{OUT}/_lock")
    hold(host=socket.gethostname(), pid=2**22 + 7)
    with folder.locked(60):
        assert folder.exists("_lock")


class _Once(threading.Event):
    """Ends after one turn."""

    def wait(self, timeout: float | None = None) -> bool:
        before = self.is_set()
        self.set()
        return before


def test_an_object_with_other_bytes_stops_the_job_and_stays(source: Path, memory: Storage) -> None:
    memory.create(f"{OUT}/_manifest.json", b"")
    memory.delete(f"{OUT}/_manifest.json")
    with pytest.raises(InterruptedError):
        run(source, watcher=Interrupted())
    memory.create(f"{OUT}/part-00001.jsonl", b"theirs")
    with pytest.raises(Conflict, match=r"part-00001.jsonl: another file is there: sha256 \w+; to be written: sha256"):
        run(source)
    assert memory.read(f"{OUT}/part-00001.jsonl") == b"theirs"
    memory.delete(f"{OUT}/part-00001.jsonl")
    assert run(source).complete
    memory.delete(f"{OUT}/part-00001.jsonl")
    with pytest.raises(OutputError, match="a file that this receipt names is absent or has another size"):
        run(source)
    memory.create(f"{OUT}/part-00001.jsonl", b"theirs")
    with pytest.raises(OutputError, match="absent or has another size"):
        run(source)


def test_only_verify_reads_what_is_done(source: Path, memory: Storage) -> None:
    run(source)
    data = memory.read(f"{OUT}/part-00001.jsonl")
    memory.delete(f"{OUT}/part-00001.jsonl")
    memory.create(f"{OUT}/part-00001.jsonl", data.replace(b"text", b"TEXT"))
    assert run(source).reused == 8
    with pytest.raises(OutputError, match="absent or"):
        run(source, verify=True)


def test_a_restart_takes_the_next_free_name(source: Path, memory: Storage) -> None:
    run(source)
    before = stored(memory)
    done = run(source, "tokenizer.max_length=20", restart=True)
    assert done.folder == f"{OUT}.1"
    assert stored(memory) == before
    assert len(stored(memory, f"{OUT}.1")) == len(before)


def test_receipts_are_packed_and_a_job_is_opened_without_reading_each(
    memory: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PACK", 10)
    folder, manifest = StoreFolder(OUT), Manifest({"a": 1})
    with folder.locked(60):
        ledger = JobLedger(folder, manifest, JobConfig(None), JobWatcher())
        for number in range(25):
            name = shard_name(number)
            files = {f"{name}.jsonl": "0" * 64}
            receipt = Receipt(manifest.key, number, number, number, 1, 1, 0, files, {f"{name}.jsonl": 1}, {"tokens": 3})
            memory.create(f"{OUT}/{name}.jsonl", b"x")
            memory.create(f"{OUT}/_receipts/{name}.json", receipt.content)
            ledger.keep(ShardResult(number, receipt, None, None, RunStats()))
    assert sorted(memory.files(f"{OUT}/_ledger")) == ["00000.jsonl", "00001.jsonl"]
    reads: list[str] = []
    read = type(memory).read

    def counted(self: Storage, key: str, *more: Any) -> bytes:
        reads.append(key)
        return bytes(read(self, key, *more))

    monkeypatch.setattr(type(memory), "read", counted)
    ledger = JobLedger(StoreFolder(OUT), manifest, JobConfig(None), JobWatcher())
    assert ledger.counts() == {"rows": 25, "written": 25, "dead": 0, "shards": 25}
    assert ledger.done.totals == {"tokens": 75}
    assert len(reads) == 7
