"""What the tests of generation share: pipelines without Hydra, texts, chat templates, and every way to batch."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from pipeline_kit import Pipeline, builtin
from pipeline_kit.compose.build import build
from pipeline_kit.compose.schema import parse_config
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Example
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy

NEW = 8
TEXTS: tuple[str, ...] = (
    "I love this movie.",
    "a",
    "It was a terrible film, and the plot was so dull that I never want to see it again!",
    "not bad at all",
    "What a long day. " * 30,
    "Ünïcödé 漢字 😀 e\u0301 עברית \t zzz",
    "so we are waiting for a Hugging Face course",
)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
"""A chat template with special tokens of its own, for the tokenizers that know them."""

HEADS = {"text-generation": "causal-lm"}


def writer(
    folder: Path,
    task: str = "text-generation",
    *,
    generation: Mapping[str, Any] | None = None,
    postprocessor: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    languages: tuple[str | None, str | None] = (None, None),
    most: int | None = NEW,
) -> Pipeline:
    """Build a pipeline that writes at most `most` tokens."""
    registry = Registry()
    builtin.register(registry)
    options = {**({} if most is None else {"max_new_tokens": most}), **(generation or {})}
    head = HEADS.get(task, "seq2seq-lm")
    data = {
        "task": {"name": task, "head": head, "src_lang": languages[0], "tgt_lang": languages[1]},
        "checkpoint": {"path": str(folder)},
        "tokenizer": {"name": "hf", **(tokenizer or {})},
        "model": {"name": "generate", "generation": options},
        "postprocessor": {"name": "generated_text", **(postprocessor or {})},
        "device": {"name": "cpu", "threads": 1},
    }
    return build(parse_config(data, registry, []))


def texts(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return [result["text"] for result in results]


def ways(pipe: Pipeline) -> Iterator[Pipeline]:
    """Yield the pipeline under several padding and batching policies."""
    pad, limit = pipe.padding.pad_token_id, pipe.tokenizer.max_length or 64
    policies = [PaddingPolicy("none", pipe.padding.side, pad)]
    for side in sorted(pipe.model.supported_sides):
        policies += [PaddingPolicy("longest", side, pad), PaddingPolicy("max_length", side, pad, limit)]
        policies += [PaddingPolicy("multiple_of", side, pad, limit, multiple_of=7)]
    batchings = (BatchingPolicy(), BatchingPolicy(max_tokens=90), BatchingPolicy(False, None, 3, 4))
    for policy, batching in zip(policies, cycle(batchings), strict=False):
        yield replace(pipe, padding=policy, batching=batching)


def shuffled_agree(pipe: Pipeline, examples: Sequence[Example], expected: Sequence[str]) -> None:
    """Check that every way to batch gives `expected`, whatever the order."""
    order, chance = list(range(len(examples))), random.Random(5)
    for way in ways(pipe):
        chance.shuffle(order)
        found = texts(way([examples[place] for place in order]))
        assert found == [expected[place] for place in order], (way.padding, way.batching)


def with_files(folder: Path, **files: Mapping[str, Any]) -> Path:
    """Merge keys into JSON files of a checkpoint: ``with_files(folder, config={...})``."""
    for name, keys in files.items():
        path = folder / f"{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**found, **keys}), encoding="utf-8")
    return folder
