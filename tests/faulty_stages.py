"""A plugin whose stages do what must not bring a job down, where a text asks for it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.stages import Postprocessor, StageContext, Tokenizer
from pipeline_kit.contract.types import Encoding, Example, Result, RowOutput, Side


@dataclass
class NoConfig:
    """No options."""


def fault(text: str) -> None:
    """Do what `text` asks for."""
    if "~hang" in text:
        sys.stderr.write("hangs\n")
        sys.stderr.flush()
        time.sleep(600)
    if "~kill" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "~die" in text:
        die(*text.split()[1:3])
    if "~exit" in text:
        os._exit(7)
    if "~fail" in text and not os.environ.get("FAULTS_MENDED"):
        raise ValueError("no result for this one")


def die(whom: str, flag: str) -> None:
    """Once, while there is no file `flag`: kill this worker of a Ray cluster, its node, its raylet, or nobody."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    raylet = psutil.Process(os.getppid())
    if whom in ("node", "raylet"):
        others = [process for process in raylet.children() if process.pid != os.getpid() and whom == "node"]
        for process in (*others, raylet):
            process.kill()
    if whom in ("node", "worker"):
        os.kill(os.getpid(), signal.SIGKILL)
    while not os.path.exists(f"{flag}.go"):  # the shard is made by another worker in the meantime
        time.sleep(0.02)


def text_of(example: Example) -> str:
    return example if isinstance(example, str) else str(example["text"])


class FaultyTokenizer(Tokenizer):
    """An id for each byte; faults where the text says ``tokenizer``."""

    pad_token_id = 0
    padding_side: Side = "right"
    max_length = 30

    def __init__(self, config: NoConfig, context: StageContext) -> None:
        del config, context

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        for example in examples:
            if "tokenizer" in text_of(example):
                fault(text_of(example))
        return [
            Encoding([5, *(byte % 20 + 5 for byte in text_of(e).encode())][:30], example=i)
            for i, e in enumerate(examples)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class FaultyPostprocessor(Postprocessor):
    """The text back; faults where it does not say ``tokenizer``."""

    def __init__(self, config: NoConfig, context: StageContext) -> None:
        del config, context

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        for example in examples:
            if "tokenizer" not in text_of(example):
                fault(text_of(example))
        found: list[Any] = [float(arrays["logits"].sum()) for (arrays,) in outputs]
        return [{"label": text_of(e), "score": round(s, 4)} for e, s in zip(examples, found, strict=True)]


def register(registry: Registry) -> None:
    registry.tokenizer("faulty", f"{__name__}:FaultyTokenizer", NoConfig, summary="for a test")
    registry.postprocessor("faulty", f"{__name__}:FaultyPostprocessor", NoConfig, summary="for a test")
