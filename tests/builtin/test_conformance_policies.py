"""The suites for policies and runners, on the built-in ones, on a plugin's, and on some that are broken."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import policy_plugin
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_plugins import ROOT

from pipeline_kit.errors import RowFailure
from pipeline_kit.kit import Device, Runner, UnwritableRowsError
from pipeline_kit.testing import (
    BatchingConformance,
    DeviceConformance,
    InputFormatConformance,
    OutputFormatConformance,
    PaddingConformance,
    RunnerConformance,
)

PLUGIN = str(ROOT / "tests" / "policy_plugin.py")


class TestLongest(PaddingConformance):
    stage = "longest"


class TestMultipleOf(PaddingConformance):
    stage = "multiple_of"


class TestBuckets(PaddingConformance):
    stage = "buckets"
    options: ClassVar = {"sizes": [8, 32, 128]}
    register = policy_plugin.register


class TestTokenBudget(BatchingConformance):
    stage = "token_budget"
    options: ClassVar = {"max_tokens": 40}


class TestFixed(BatchingConformance):
    stage = "fixed"


class TestBackwards(RunnerConformance):
    stage = "backwards"
    plugins = (PLUGIN,)
    register = policy_plugin.register


ROWS = ({"text": 'I "love", this.', "n": "1"}, {"text": "ä🙂", "n": "2"}, {"text": "", "n": "3"})
TABLE = pa.table({name: [row[name] for row in ROWS] for name in ("text", "n")})


class BuiltIn:
    test_import_is_light: Any = None  # the stages' suites look at the same module


class TestReadsText(BuiltIn, InputFormatConformance):
    stage, sample, rows = "text", "one\n\nä🙂\n".encode(), ({"text": "one"}, {"text": ""}, {"text": "ä🙂"})


class TestReadsJsonl(BuiltIn, InputFormatConformance):
    stage, rows = "jsonl", (*ROWS, None, ROWS[0])
    sample = "\n".join([*map(json.dumps, ROWS), "{", json.dumps(ROWS[0]), ""]).encode()


class TestReadsCsv(BuiltIn, InputFormatConformance):
    stage, rows = "csv", (*ROWS, None)
    sample = 'text,n\r\n"I ""love"", this.",1\r\nä🙂,2\r\n"",3\r\n4\r\n'.encode()


class TestReadsTsv(BuiltIn, InputFormatConformance):
    stage, sample, rows = "tsv", 'text\tn\nI "love", this.\t1\nä🙂\t2\n\t3\n'.encode(), ROWS


class TestReadsParquet(BuiltIn, InputFormatConformance):
    stage, rows = "parquet", ROWS
    pq.write_table(TABLE, sink := pa.BufferOutputStream(), row_group_size=1)
    sample = sink.getvalue().to_pybytes()


class TestReadsArrow(BuiltIn, InputFormatConformance):
    stage, rows = "arrow", ROWS
    with pa.ipc.new_stream(sink := pa.BufferOutputStream(), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=1)
    sample = sink.getvalue().to_pybytes()


class TestReadsVerses(InputFormatConformance):
    stage, register = "verse", policy_plugin.register
    sample, rows = (
        b"one\nI love it.\n%\ntorn%\ntwo\nSo so.\n",
        (
            {"title": "one", "text": "I love it."},
            None,
            {"title": "two", "text": "So so."},
        ),
    )


class TestWritesJsonl(BuiltIn, OutputFormatConformance):
    stage = "jsonl"

    def read(self, data: bytes) -> list[Any]:
        return [json.loads(line) for line in data.split(b"\n")[:-1]]


class TestWritesCsv(BuiltIn, OutputFormatConformance):
    stage = "csv"

    def read(self, data: bytes) -> list[Any]:
        found = csv.DictReader(io.StringIO(data.decode(), newline=""))
        return [{"id": r["id"], "n": int(r["n"]), "label": r["label"], "score": float(r["score"])} for r in found]


class TestWritesParquet(BuiltIn, OutputFormatConformance):
    stage = "parquet"

    def read(self, data: bytes) -> list[Any]:
        return [
            {k: v for k, v in row.items() if v is not None} for row in pq.read_table(pa.BufferReader(data)).to_pylist()
        ]


class TestWritesVerses(OutputFormatConformance):
    stage, register = "verse", policy_plugin.register

    def read(self, data: bytes) -> list[Any]:
        return [json.loads(block.partition("\n")[2]) for block in data.decode().split("\n%\n")[:-1]]


class TestCpu(BuiltIn, DeviceConformance):
    stage = "cpu"


class TestCuda(BuiltIn, DeviceConformance):
    stage = "cuda"


class TestNpu(DeviceConformance):
    stage, register = "npu", policy_plugin.register


FAULTS: list[tuple[Any, str, str, Any, str]] = [
    (TestBuckets, "Buckets", "padded", lambda self, longest: min(longest, 16), "every_row_fits"),
    (TestBuckets, "Buckets", "padded", lambda self, longest: longest + 64, "the_limit_holds"),
    (TestFixed, "Alone", "plan", lambda self, n, padding: [list(range(len(n)))[1:]], "each_row_is_in_one_batch"),
    (TestFixed, "Alone", "plan", lambda self, n, padding: [[i] for i in range(len(n))] * 2, "each_row_is_in_one_batch"),
    (TestFixed, "Alone", "plan", lambda self, n, padding: [list(range(len(n)))], "each_row_is_in_one_batch"),
]


@pytest.mark.parametrize(("base", "name", "method", "fault", "check"), FAULTS)
def test_a_broken_policy_fails_its_check(
    base: Any, name: str, method: str, fault: Any, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getattr(policy_plugin, name), method, fault)
    suite = type("Suite", (base,), {"stage": name.lower(), "register": policy_plugin.register})()
    with pytest.raises(AssertionError):
        getattr(suite, f"test_{check}")()


def appends(change: Any) -> Any:
    """A stream of verses that passes each chunk of rows on as `change` makes it."""
    whole = policy_plugin.Verses.stream

    @contextmanager
    def stream(self: Any, write: Any, schema: Any) -> Iterator[Any]:
        with whole(self, write, schema) as append:
            yield lambda rows: append(change(rows))

    return stream


def unlike(label: Any) -> Any:
    raise UnwritableRowsError([RowFailure(0, "output", "ValueError", label)])


@contextmanager
def hides_errors(self: Any, write: Any, schema: Any) -> Iterator[Any]:
    with suppress(KeyError):
        yield lambda rows: write("".join(f"\n{json.dumps(row)}\n%\n" for row in rows).encode())


@contextmanager
def writes_what_it_refuses(self: Any, write: Any, schema: Any) -> Iterator[Any]:
    def append(rows: Any) -> None:
        for place, row in enumerate(rows):
            if row["label"] == "\ud800":
                raise UnwritableRowsError([RowFailure(place, "output", "ValueError", "no text")])
            write(f"\n{json.dumps(row)}\n%\n".encode())

    yield append


CALLS = itertools.count()
VERSES = policy_plugin.verses
READS: list[tuple[Any, str]] = [
    (lambda stream: list(VERSES(stream))[:-1], "reads_its_rows"),
    (lambda stream: reversed(list(VERSES(stream))), "reads_its_rows"),
    (lambda stream: [row for row in VERSES(stream) if isinstance(row, dict)], "reads_its_rows"),
    (lambda stream: [str(row) for row in VERSES(stream)], "reads_its_rows"),
    (lambda stream: [*VERSES(stream), *([{"text": "again"}] * next(CALLS))], "reads_its_rows"),
    (lambda stream: VERSES(open(stream.name, "rb")), "reads_from_a_stream"),  # noqa: SIM115 - a fault
    (lambda stream: VERSES(stream) if stream.seek(-1, 2) + 1 and not stream.seek(0) else (), "reads_from_a_stream"),
    (lambda stream: list(VERSES(stream))[::-1][1:] or [], "a_cut_file_keeps_its_first_rows"),
]
WRITES: list[tuple[str, Any, str]] = [
    ("suffix", ".txt", "says_how_its_files_end"),
    ("chunk_rows", 0, "says_how_its_files_end"),
    ("stream", appends(lambda rows: rows[1:]), "nothing_is_lost"),
    ("stream", appends(lambda rows: [{**row, "score": round(row["score"], 1)} for row in rows]), "nothing_is_lost"),
    ("stream", appends(lambda rows: [(dict(row), row.clear())[0] for row in rows]), "nothing_is_lost"),
    ("stream", appends(lambda rows: [{**row, "at": next(CALLS)} for row in rows]), "the_same_rows_make_the_same_bytes"),
    ("schema", lambda self, rows: {"first": rows[0]["id"]}, "a_file_may_have_no_rows"),
    (
        "stream",
        appends(lambda rows: [row["label"].encode() and row for row in rows]),
        "a_row_that_does_not_fit_is_named",
    ),
    (
        "stream",
        appends(lambda rows: [r if r["label"].isprintable() else unlike("") for r in rows][:9]),
        "a_row_that_does_not_fit_is_named",
    ),
    ("stream", writes_what_it_refuses, "a_row_that_does_not_fit_is_named"),
    ("stream", hides_errors, "an_error_passes_through"),
]
DEVICES: list[tuple[Any, str]] = [
    (lambda config, checkpoint: "cpu", "builds_from_its_options"),
    (lambda config, checkpoint: Device("cpu", config.dtype, config.threads or 1), "options_are_followed"),
    (lambda config, checkpoint: Device("cpu", "float32", config.threads or 1), "options_are_followed"),
    (lambda config, checkpoint: Device("cpu", config.dtype.replace("auto", "float32"), 1), "options_are_followed"),
    (lambda config, checkpoint: Device("cpu", threads=next(CALLS)), "options_are_followed"),
    (lambda config, checkpoint: Device("npu0", config.dtype, 1), "answers_are_those_of_the_cpu"),
    (lambda config, checkpoint: Device("cpu", "float16", 1), "answers_are_those_of_the_cpu"),
]
BROKEN = [
    *((TestReadsVerses, "verses", fault, check) for fault, check in READS),
    *((TestWritesVerses, f"Verses.{name}", fault, check) for name, fault, check in WRITES),
    *((TestNpu, "npu", fault, check) for fault, check in DEVICES),
]


@pytest.mark.parametrize(("suite", "place", "fault", "check"), BROKEN)
def test_a_broken_format_or_device_fails_its_check(
    suite: Any, place: str, fault: Any, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"policy_plugin.{place}", fault)
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:  # what a broken one raises itself will do
        getattr(suite(), f"test_{check}")()
    assert not isinstance(caught.value, AttributeError | TypeError), caught.value


def test_a_runner_that_writes_other_bytes_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(TestBackwards):
        options: ClassVar = {"note": "x"}

    whole = Runner.run

    def run(self: Any, task: Any) -> Any:
        made = whole(self, task)
        if self.noted:
            assert made.receipt is not None
            name = next(iter(made.receipt.files))
            with Path(self.folder.at(name)).open("ab") as file:
                file.write(b"x")
        return made

    monkeypatch.setattr(Runner, "noted", property(lambda self: self.job.config.runner.name != "local"), raising=False)
    monkeypatch.setattr(Runner, "run", run)
    with pytest.raises(AssertionError, match="differ from those of local"):
        Short().test_writes_the_bytes_of_the_local_runner()
