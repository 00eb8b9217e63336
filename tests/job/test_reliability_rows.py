"""R7, R9, R10, R11, S14, S17: every row has one outcome in its place, and a bad one harms no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from echo_job import (
    EchoModel,
    EchoTokenizer,
    content_of,
    dead_of,
    echo,
    ids_of,
    job_config,
    lines_of,
    run_echo,
    text_of,
    write_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.compose.build import build
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, TokenBatch
from pipeline_kit.errors import JobError, Stopped
from pipeline_kit.job.ledger import JobWatcher
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy

ANY = "job.max_failed_rows=null"


STAGES = {"~t": ("tokenizer", "PanicException"), "~m": ("model", "RuntimeError"), "~p": ("postprocessor", "ValueError")}


@settings(max_examples=8)
@given(faults=st.lists(st.sampled_from(["", "", "", *STAGES]), max_size=20), shard=st.integers(1, 7))
def test_rows_around_bad_ones_have_the_bytes_of_a_clean_run(
    tmp_path_factory: pytest.TempPathFactory, faults: list[str], shard: int
) -> None:
    folder = tmp_path_factory.mktemp("poison")
    (folder / "clean").mkdir()
    clean = write_rows(folder / "clean" / "in.jsonl", [{"text": f"row {i}"} for i in range(len(faults))])
    bad = write_rows(folder / "in.jsonl", [{"text": f"row {i}{mark}"} for i, mark in enumerate(faults)])
    config = job_config(ANY, f"output.rows_per_shard={shard}")
    run_echo(config, [clean], folder / "whole")
    summary = run_echo(config, [bad], folder / "out")
    whole = {row["id"]: row for row in lines_of(folder / "whole")}
    written, dead = lines_of(folder / "out"), dead_of(folder / "out")
    assert ids_of(written) == [f"in.jsonl:{i + 1}" for i, mark in enumerate(faults) if not mark]
    assert all(row == whole[row["id"]] for row in written)
    assert [(letter["index"], letter["stage"], letter["error"]) for letter in dead] == [
        (i, *STAGES[mark]) for i, mark in enumerate(faults) if mark
    ]
    counts = json.loads((folder / "out" / "_manifest.json").read_bytes())["counts"]
    assert counts["rows"] == len(faults) == summary.rows == counts["written"] + counts["dead"]
    assert (counts["written"], counts["dead"]) == (len(written), len(dead))


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped])
@pytest.mark.parametrize("stage", ["tokenizer", "model"])
def test_a_request_to_stop_is_no_poison(tmp_path: Path, error: type[BaseException], stage: str) -> None:
    class Stopped(EchoTokenizer):
        def encode(self, examples: Sequence[Example]) -> list[Encoding]:
            if any("row 5" in text_of(example) for example in examples):
                raise error
            return super().encode(examples)

    class StoppedModel(EchoModel):
        def forward(self, batch: TokenBatch) -> ModelOutput:
            if any(b"row 5" in bytes(row) for row in batch.input_ids.tolist()):
                raise error
            return super().forward(batch)

    parts: dict[str, Any] = {"tokenizer": Stopped()} if stage == "tokenizer" else {"model": StoppedModel()}
    rows = write_rows(tmp_path / "in.jsonl", [{"text": f"row {i}"} for i in range(8)])
    config = job_config(ANY)
    with pytest.raises(error):
        run_echo(config, [rows], tmp_path / "out", build=lambda config: echo(config, **parts))
    assert len(lines_of(tmp_path / "out")) == 3
    assert not dead_of(tmp_path / "out")


def test_no_room_for_a_batch_halves_it_and_one_row_too_large_is_kept_aside(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Small(EchoModel):
        def forward(self, batch: TokenBatch) -> ModelOutput:
            sizes.append(len(batch.input_ids))
            if batch.input_ids.numel() > 60:
                raise [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")][len(sizes) % 2]
            return super().forward(batch)

    texts = [f"row {i}" for i in range(12)] + ["too large " * 10]
    rows = write_rows(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    config = job_config(ANY, "output.rows_per_shard=100")
    run_echo(config, [rows], tmp_path / "whole")
    run_echo(config, [rows], tmp_path / "out", build=lambda config: echo(config, model=Small()))
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "whole")[:-1]
    (letter,) = dead_of(tmp_path / "out")
    assert (letter["id"], letter["stage"]) == ("in.jsonl:13", "model")
    assert letter["error"] in ("MemoryError", "RuntimeError")
    assert max(sizes) > 2 * min(sizes)


POLICIES = ["longest", "max_length", "multiple_of", "none"]


@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=25),
    tokens=st.integers(1, 300),
    window=st.integers(1, 30),
    sort=st.booleans(),
    policy=st.sampled_from(POLICIES),
    shard=st.integers(1, 9),
)
def test_rows_come_out_in_the_order_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], tokens: int, window: int,
    sort: bool, policy: Any, shard: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("order")
    rows = write_rows(folder / "in.jsonl", [{"text": f"{i} " + "x" * length} for i, length in enumerate(lengths)])
    parts = {
        "batching": BatchingPolicy(sort=sort, max_tokens=tokens, window=window),
        "padding": PaddingPolicy(policy, max_length=64, multiple_of=8),
    }
    config = job_config(f"output.rows_per_shard={shard}")
    summary = run_echo(config, [rows], folder / "out", build=lambda config: echo(config, **parts))
    found = lines_of(folder / "out")
    texts = [f"{i} " + "x" * length for i, length in enumerate(lengths)]
    assert [row["label"] for row in found] == texts
    assert [row["score"] for row in found] == [1.0 + sum(text.encode()) for text in texts]
    assert ids_of(found) == [f"in.jsonl:{i + 1}" for i in range(len(lengths))]
    assert (summary.rows, summary.written, summary.dead) == (len(lengths), len(lengths), 0)
    assert summary.shards == -(-len(lengths) // shard)


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_bytes_depend_on_neither_the_run_nor_the_batches_nor_where_it_was_taken_up(tmp_path: Path, format: str) -> None:
    class Enough(Exception):
        pass

    class Stopping(JobWatcher):
        def __init__(self, after: int) -> None:
            self.left = after

        def shard(self, receipt: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise Enough

    rows = write_rows(tmp_path / "in.jsonl", [{"text": f"row {i}~p" if i % 5 == 4 else f"row {i}"} for i in range(14)])
    config = job_config(ANY, f"output.format={format}")
    run_echo(config, [rows], tmp_path / "whole")
    expected = content_of(tmp_path / "whole")
    for tokens in (1, 20, 10_000):
        parts = {"batching": BatchingPolicy(max_tokens=tokens)}
        run_echo(config, [rows], tmp_path / f"batch-{tokens}", build=lambda config, parts=parts: echo(config, **parts))  # type: ignore[misc]
        assert content_of(tmp_path / f"batch-{tokens}") == expected
    for after in range(1, 5):
        with pytest.raises(Enough):
            run_echo(config, [rows], tmp_path / f"stop-{after}", watcher=Stopping(after))
        run_echo(config, [rows], tmp_path / f"stop-{after}")
        assert content_of(tmp_path / f"stop-{after}") == expected


def test_scores_of_a_network_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", [{"text": "good " * (i % 9) + "bad"} for i in range(20)])
    found = []
    for number, options in enumerate((["batching.max_rows=1"], ["batching.max_tokens=50"], ["padding=max_length"])):
        config = job_config("model.linear=eager", "output.rows_per_shard=7", *options)
        run_echo(config, [rows], tmp_path / f"out-{number}", build=build)
        found.append(lines_of(tmp_path / f"out-{number}"))
    for other in found[1:]:
        assert [row["label"] for row in other] == [row["label"] for row in found[0]]
        assert [row["score"] for row in other] == pytest.approx([row["score"] for row in found[0]], abs=1e-5)


HOSTILE = [
    (b'{"text": "fine"}', None),
    (b'{"text": "x", "n": NaN}', "NaN is not a JSON value"),
    (b'{"text": "x", "text": "y"}', "the key 'text' is there twice"),
    (b'{"text": ' + b"[" * 100_000, "nested too deep"),
    (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    (b'{"text": "\xc3("}', "not UTF-8"),
    ('{"text": "a\u2028b"}'.encode(), None),
    (b'{"text": "crlf"}\r', None),
    (b'{"txt": 1}', "'text' is missing"),
    (b"\x1b[2J" + b"x" * 1_000_000, "not JSON"),
    (b'{"text": "x~p"}', "no result for this one"),
    (b'{"text": "torn', "was it cut off?"),
]


def test_broken_lines_are_dead_letters_with_line_and_reason(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(line for line, _ in HOSTILE))
    run_echo(job_config(ANY), [tmp_path / "in.jsonl"], tmp_path / "out")
    dead = {letter["index"]: letter for letter in dead_of(tmp_path / "out")}
    assert ids_of(lines_of(tmp_path / "out")) == [
        f"in.jsonl:{i + 1}" for i, (_, reason) in enumerate(HOSTILE) if not reason
    ]
    for index, (_, reason) in enumerate(HOSTILE):
        if reason is None:
            assert index not in dead
            continue
        letter = dead.pop(index)
        assert letter["id"] == f"in.jsonl:{index + 1}"
        assert reason in letter["message"]
        assert letter["message"].startswith(f"in.jsonl, line {index + 1}: ") or letter["stage"] == "postprocessor"
        assert len(letter["message"]) <= 200
        assert letter["message"].isprintable()
    assert not dead
    for path in (tmp_path / "out").rglob("*.json*"):
        assert b"\x1b" not in path.read_bytes()
        assert path.stat().st_size < 20_000


def test_an_error_text_of_a_megabyte_with_escapes_is_cut_and_escaped(tmp_path: Path) -> None:
    class Loud(EchoModel):
        def forward(self, batch: TokenBatch) -> ModelOutput:
            raise ValueError("\x1b]0;owned\x07\nroot: all is well\r" + "\u202e" + "x" * 1_000_000)

    rows = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    for options, out in (([ANY], tmp_path / "kept"), ([], tmp_path / "stopped")):
        try:
            config = job_config(*options)
            run_echo(config, [rows], out, build=lambda config: echo(config, model=Loud()))
            (letter,) = dead_of(out)
            shown = letter["message"]
        except JobError as error:
            shown = str(error).split("\n  ")[0]  # the lines of advice are ours
        assert shown.isprintable()
        assert "\\x1b]0;owned\\x07\\nroot: all is well\\r\\u202e" in shown
        assert len(shown) < 300
