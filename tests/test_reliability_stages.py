"""H8, H10, H14, H18: what a stage may do wrong, and what options may ask for, without a wrong answer or a hang."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from echo_job import (
    EchoModel,
    EchoPostprocessor,
    EchoTokenizer,
    dead_of,
    echo,
    echo_config,
    ids_of,
    lines_of,
    run_echo,
    text_of,
    write_rows,
)

from pipeline_kit.errors import RowError, StageError, Stopped
from pipeline_kit.isolate import is_interruption, no_exit
from pipeline_kit.testing import tiny_checkpoint
from pipeline_kit.types import Encoding, Example, ModelOutput, Result, RowFailure, RowOutput, TokenBatch

ANY = "job.max_failed_rows=null"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("stages") / "bert")


# ---- H10: a stage that ends the process


class LeavingTokenizer(EchoTokenizer):
    error: BaseException

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        if any("row 5" in text_of(example) for example in examples):
            raise self.error
        return super().encode(examples)


class LeavingModel(EchoModel):
    error: BaseException

    def forward(self, batch: TokenBatch) -> ModelOutput:
        if any(b"row 5" in bytes(row) for row in batch.input_ids.tolist()):
            raise self.error
        return super().forward(batch)


class LeavingPostprocessor(EchoPostprocessor):
    error: BaseException
    at: str

    def prepare(self, example: Example) -> Sequence[Example]:
        if self.at == "input" and "row 5" in text_of(example):
            raise self.error
        return (example,)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        if self.at == "reduce" and any(b"row 5" in bytes(row) for row in batch.input_ids.tolist()):
            raise self.error
        return output

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        if self.at == "postprocessor" and any("row 5" in text_of(example) for example in examples):
            raise self.error
        return super().__call__(examples, encodings, outputs)


def leaving(at: str, error: BaseException) -> dict[str, Any]:
    stage: Any = {"tokenizer": LeavingTokenizer, "model": LeavingModel}.get(at, LeavingPostprocessor)()
    stage.error, stage.at = error, at
    return {at if at in ("tokenizer", "model") else "postprocessor": stage}


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), StopIteration(), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("at", ["input", "tokenizer", "model", "reduce", "postprocessor"])
def test_h10_a_stage_that_leaves_costs_one_row(checkpoint: Path, tmp_path: Path, at: str, error: BaseException) -> None:
    rows = write_rows(tmp_path / "in.jsonl", [{"text": f"row {i}"} for i in range(8)])
    config = echo_config(checkpoint, ANY)
    summary = run_echo(config, [rows], tmp_path / "out", build=lambda config: echo(config, **leaving(at, error)))
    assert (summary.rows, summary.written, summary.dead) == (8, 7, 1)
    (letter,) = dead_of(tmp_path / "out")
    stage = "postprocessor" if at == "reduce" else at
    assert (letter["index"], letter["stage"], letter["error"]) == (5, stage, type(error).__name__)
    assert ids_of(lines_of(tmp_path / "out")) == [f"in.jsonl:{i + 1}" for i in range(8) if i != 5]


@pytest.mark.parametrize("at", ["input", "tokenizer", "model", "reduce", "postprocessor"])
def test_h10_without_a_job_too_on_either_thread(at: str) -> None:
    pipe = echo(echo_config("unused"), **leaving(at, SystemExit(0)))
    texts = [f"row {i}" for i in range(6)] * 40  # more than one chunk, so that a second thread tokenizes
    found = list(pipe.outcomes(iter(texts)))
    assert [isinstance(outcome, RowFailure) for outcome in found] == ["row 5" in text for text in texts]
    with pytest.raises(RowError, match=r"row 5: \w+: SystemExit: 0"):
        pipe(texts)


@pytest.mark.parametrize("at", ["input", "tokenizer", "model", "postprocessor"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(143)], ids=repr)
def test_h10_an_interruption_is_no_bad_row(at: str, error: BaseException) -> None:
    with pytest.raises(type(error)):
        list(echo(echo_config("unused"), **leaving(at, error)).outcomes(["row 1", "row 5"]))


def test_h10_a_handler_of_the_users_own_ends_the_run() -> None:
    """What a signal handler raises lands in the stage that runs; that is no failure of its row."""

    class Signalled(EchoModel):
        def forward(self, batch: TokenBatch) -> ModelOutput:
            os.kill(os.getpid(), signal.SIGUSR1)
            return super().forward(batch)

    def leave(number: int, frame: object) -> None:
        sys.exit(0)

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit) as caught:
            echo(echo_config("unused"), model=Signalled())(["a"])
        assert is_interruption(caught.value)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_h10_what_would_end_the_process_names_its_place() -> None:
    with pytest.raises(StageError, match=r"^loading x: SystemExit\(0\) was raised in .*stages\.py, line \d+; a stage"):
        with no_exit("loading x"):
            sys.exit(0)
    with pytest.raises(Stopped), no_exit("loading x"):
        raise Stopped(143)


LEAVING = """
import sys
from dataclasses import dataclass
from pipeline_kit import Postprocessor, option

@dataclass
class Config:
    at: str = option("build", "where to leave")

class Leaving(Postprocessor):
    def __init__(self, config, context):
        self.at = config.at
        if self.at == "build":
            sys.exit()

    def __call__(self, examples, encodings, outputs):
        if self.at == "call":
            sys.exit(0)
        return [{"label": "A", "score": 0.5} for example in examples]

    def panels(self, seen):
        sys.exit(0)

def register(registry):
    registry.postprocessor("leaving", __name__ + ":Leaving", Config)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipeline_kit", *words], capture_output=True, text=True, timeout=120)


def test_h10_the_command_line_never_ends_with_0(checkpoint: Path, tmp_path: Path) -> None:
    from pipeline_kit.cli.app import main

    (tmp_path / "leaving.py").write_text(LEAVING)
    common = ["--plugin", str(tmp_path / "leaving.py"), "postprocessor=leaving", "device=cpu"]
    common += [f"checkpoint.path={checkpoint}", "model.linear=eager"]
    text = ["--text", "a", "--text", "b"]
    rows = ["--input", str(write_rows(tmp_path / "in.jsonl", [{"text": "a", "label": "NEGATIVE"}] * 3))]
    calls = [
        (["run", *text], "build", 1),
        (["run", *text], "call", 1),
        (["run", *rows, "--output", f"{tmp_path}/job/"], "build", 1),
        (["run", *rows, "--output", f"{tmp_path}/job2/"], "call", 1),
        (["explain", "--text", "a"], "build", 1),
        (["explain", "--text", "a"], "panels", 0),
        (["evaluate", *rows], "call", 1),
        (["bench", "--repeats", "1", *rows], "call", 1),
        (["tune", *rows], "build", 1),
    ]
    for words, at, code in calls:
        assert main([*words, *common, f"postprocessor.at={at}"]) == code, (words, at)
