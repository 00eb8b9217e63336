"""A pipeline and examples for each task, on tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import checkpoint

import pipeline_kit
from pipeline_kit import Pipeline

EAGER = ("model.linear=eager", "model.attn_implementation=eager")
"""The engine whose every operation is the raw network's own."""

_LONG = "The people of this city had waited a long year for the team to come home and play again. "

# By task: the checkpoint's head and options, overrides, and examples of different lengths.
TASKS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], list[Any]]] = {
    "text-classification": (
        "sequence-classification",
        {},
        ("postprocessor.top_k=null",),
        ["I love this film.", {"text": "Good.", "text_pair": "It was a great day for us all."}],
    ),
    "token-classification": (
        "token-classification",
        {"labels": ("O", "B-PER", "I-PER")},
        (),
        ["Paris had sun.", "Why?"],
    ),
    "question-answering": (
        "question-answering",
        {},
        (),
        [{"question": "Who?", "context": _LONG * 4}, {"question": "Where is it?", "context": "In Paris."}],
    ),
    "fill-mask": ("masked-lm", {}, ("postprocessor.top_k=2",), ["I {mask} this.", "It is {mask} and {mask} to me."]),
    "zero-shot-classification": (
        "sequence-classification",
        {"labels": ("contradiction", "neutral", "entailment")},
        ("postprocessor.labels=[food,sport,city life]",),
        ["I love this film.", "Good."],
    ),
    "text-ranking": (
        "sequence-classification",
        {"labels": ("score",)},
        (),
        [{"query": "film", "documents": ["A great film.", "No.", "The dog and the cat are here."]}],
    ),
    "multiple-choice": ("multiple-choice", {}, (), [{"text": "It was", "choices": ["good", "a very bad day"]}]),
    "sentence-embedding": ("base", {}, (), ["I love this film.", "Good."]),
    "feature-extraction": ("base", {}, (), ["I love this film.", "Good."]),
    "text-generation": ("causal-lm", {}, ("model.generation.max_new_tokens=4",), ["I love this", "Good"]),
    "summarization": ("seq2seq-lm", {}, ("model.generation.max_new_tokens=4",), ["I love this film.", "Good."]),
    "translation": ("seq2seq-lm", {}, ("model.generation.max_new_tokens=4",), ["I love this film.", "Good."]),
    "text2text-generation": ("seq2seq-lm", {}, ("model.generation.max_new_tokens=4",), ["I love this film.", "Good."]),
}

_MASKS = {"albert": "[MASK]", "bert": "[MASK]", "distilbert": "[MASK]", "electra": "[MASK]", "roberta": "<mask>"}


def task_checkpoint(task: str, architecture: str) -> Path:
    """Return the checkpoint of `task`."""
    head, options, _, _ = TASKS[task]
    return checkpoint(architecture, head=head, **options)


def task_pipeline(task: str, architecture: str, *overrides: str) -> tuple[Pipeline, list[Any]]:
    """Build the pipeline of `task` on its checkpoint; return examples too."""
    own, examples = TASKS[task][2:]
    pipe = pipeline_kit.load(f"task={task}", f"checkpoint.path={task_checkpoint(task, architecture)}", *own, *overrides)
    mask = _MASKS.get(architecture, "")
    return pipe, [e.replace("{mask}", mask) if isinstance(e, str) else e for e in examples]


def close(found: Any, expected: Any, tolerance: float = 1e-6, *, where: Callable[[Any], Any] = lambda x: x) -> None:
    """Compare numbers, absolutely or as a part of the larger one."""
    np.testing.assert_allclose(where(np.asarray(found)), where(np.asarray(expected)), rtol=tolerance, atol=tolerance)
