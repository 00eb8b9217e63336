"""Jobs whose stages take no time: echo stages under a real config, so that what is tested is the job alone.

A text may ask for a fault: ``~t`` in it panics in the tokenizer, ``~m`` fails in the model, ``~p`` in the
postprocessor.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import checkpoint

from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.stages import Model, Postprocessor, Tokenizer
from pipeline_kit.contract.types import (
    Device,
    Encoding,
    Example,
    ModelOutput,
    Result,
    RowOutput,
    RunStats,
    Side,
    TokenBatch,
)
from pipeline_kit.files.read.source import Source
from pipeline_kit.job import sealed
from pipeline_kit.job.ledger import JobWatcher
from pipeline_kit.job.run import JobSummary, run_to_end
from pipeline_kit.job.runner import Job
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.runtime.pipeline import Pipeline, Recipe
from pipeline_kit.runtime.steps import Step, StepPipeline


class Panic(BaseException):
    """What a tokenizer written in Rust raises when it panics: no Exception."""


Panic.__name__ = "PanicException"


def text_of(example: Example) -> str:
    return example if isinstance(example, str) else str(example["text"])


class EchoTokenizer(Tokenizer):
    """An id for each byte."""

    pad_token_id = 0
    padding_side: Side = "right"
    max_length = 512

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        texts = [text_of(example) for example in examples]
        if any("~t" in text for text in texts):
            raise Panic("called `Result::unwrap()` on an `Err` value")
        return [Encoding([1, *text.encode()[:500]], example=i) for i, text in enumerate(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids[1:]).decode(errors="replace")


class EchoModel(Model):
    """Gives each row's ids back, whole numbers that no batch can change."""

    safe_padding_sides = frozenset({"left", "right"})

    def forward(self, batch: TokenBatch) -> ModelOutput:
        for row in batch.input_ids.tolist():
            if b"~m" in bytes(row):
                raise RuntimeError("the model does not like this one")
        ids = batch.input_ids * batch.attention_mask
        return ModelOutput({"sum": ids.sum(1).to(torch.float32)})


class EchoPostprocessor(Postprocessor):
    """Gives the text back with the sum of its bytes, or as a vector."""

    def __init__(self, vectors: bool = False) -> None:
        self.vectors = vectors

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        results: list[Result] = []
        for example, (arrays,) in zip(examples, outputs, strict=True):
            text, total = text_of(example), float(arrays["sum"])
            if "~p" in text:
                raise ValueError("no result for this one")
            vector = [total, float(len(text)), 0.5, 0.25]
            results.append({"embedding": vector} if self.vectors else {"label": text, "score": total})
        return results


def echo(config: PipelineConfig, **parts: Any) -> Pipeline:
    """Build what `config` asks for out of echo stages; `parts` replace some."""
    if config.steps:
        built = {name: echo(part, **parts) for name, part in config.parts.items()}
        steps = {name: Step(step.wiring, built.get(name)) for name, step in config.steps.items()}
        return StepPipeline.of(steps, Recipe(takes=config.task.takes))
    stages: dict[str, Any] = {
        "tokenizer": EchoTokenizer(),
        "model": EchoModel(),
        "postprocessor": EchoPostprocessor(config.task.name == "sentence-embedding"),
        "padding": PaddingPolicy("longest"),
        "batching": BatchingPolicy(max_tokens=200, window=16),
    }
    return Pipeline(**{**stages, **parts}, device=Device(), description={})


class Interrupted(JobWatcher):
    """Ends a run in its first shard, before it is written."""

    def advanced(self, stats: RunStats) -> None:
        raise InterruptedError


@functools.cache
def job_config(*overrides: str, at: Path | str | None = None) -> PipelineConfig:
    """Compose a config for shards of three rows; `at` is another checkpoint than the shared one."""
    return compose([f"checkpoint.path={at or checkpoint()}", "device=cpu", "output.rows_per_shard=3", *overrides])


def echo_config(checkpoint: Path | str, *overrides: str) -> PipelineConfig:
    return job_config(*overrides, at=checkpoint)


def run_echo(
    config: PipelineConfig,
    names: Sequence[str | Path],
    out: Path,
    *,
    watcher: JobWatcher | None = None,
    restart: bool = False,
    retry: bool = False,
    verify: bool = False,
    build: Callable[[PipelineConfig], Pipeline] = echo,
) -> JobSummary:
    with Source.open([str(name) for name in names], config.input, config.task.takes) as source:
        return run_to_end(Job(config, source, str(out), build, restart, retry, verify=verify), watcher or JobWatcher())


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reseal(path: Path, **changes: Any) -> None:
    """Change what a job wrote down, with a hash that is right; ``layout=None`` takes that out."""
    content = {**json.loads(path.read_text()), **changes}
    content = {
        key: value for key, value in content.items() if key != "sha256" and (value is not None or key != "layout")
    }
    path.write_text(json.dumps(content | {"sha256": sealed._seal(content)}))


def content_of(out: Path) -> dict[str, bytes]:
    """Every file of a job that must be the same in every run of it: the shards and the dead letters."""
    files = [*out.glob("part-*"), *(out / "_dead").glob("part-*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(out.glob("part-*.jsonl")) for line in path.read_bytes().splitlines()]


def dead_of(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "_dead").glob("part-*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]


def ids_of(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [row["id"] for row in rows]
