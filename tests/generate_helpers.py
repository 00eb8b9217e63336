"""What the tests of generation share: pipelines without Hydra, texts, chat templates, and every way to batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import pipeline_of
from parity_helpers import check_any_order

from pipeline_kit import Pipeline
from pipeline_kit.contract.types import Example

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
    options = {**({} if most is None else {"max_new_tokens": most}), **(generation or {})}
    chosen = {"generation": options}
    return pipeline_of(task, folder, tokenizer, model=chosen, languages=languages, **(postprocessor or {}))


def texts(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return [result["text"] for result in results]


def shuffled_agree(pipe: Pipeline, examples: Sequence[Example], expected: Sequence[str]) -> None:
    """Check that every way to batch gives `expected`, whatever the order."""
    check_any_order(pipe, examples, expected, lambda result, text: result["text"] == text)
