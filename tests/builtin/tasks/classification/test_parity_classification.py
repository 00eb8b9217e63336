"""Text classification gives what transformers.pipeline gives one text at a time, whatever the batch and the padding."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity_helpers import policies

from pipeline_kit import Pipeline, builtin
from pipeline_kit.compose.build import build
from pipeline_kit.compose.schema import parse_config
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Example, Side
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.testing.checkpoints import tiny_checkpoint

TOLERANCE = 1e-5
MAX_LENGTH = 48
TEXTS: tuple[Example, ...] = (
    "I love this movie.",
    "a",
    "It was a terrible film, and the plot was so dull that I never want to see it again!",
    {"text": "Is the food good?", "text_pair": "The food in Paris is the best in the world."},
    "not bad at all",
    "What a long day. " * 30,
    {"text": "I like it", "text_pair": "I hate it " * 40},
    "Ünïcödé 漢字 😀 \t zzz",
    "ends with </s> and [SEP] and <pad> <|endoftext|>",
    "so we are waiting for a Hugging Face course",
    "it is what it is",
)


@dataclass(frozen=True)
class Case:
    """A kind of checkpoint: the arguments of ``tiny_checkpoint``, and on which sides it may be padded."""

    architecture: str
    sides: frozenset[Side]
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.architecture, *(f"{key}={value}" for key, value in self.options.items())])


RIGHT: frozenset[Side] = frozenset({"right"})
LEFT: frozenset[Side] = frozenset({"left"})
BOTH: frozenset[Side] = RIGHT | LEFT
NEITHER: frozenset[Side] = frozenset()
THREE = ("BAD", "MIXED", "GOOD")

CASES = (
    *(Case(name, RIGHT) for name in ("albert", "bart", "bert", "deberta-v2", "distilbert", "electra")),
    *(Case(name, RIGHT) for name in ("longformer", "modernbert", "mpnet", "roberta", "t5", "xlm-roberta")),
    *(Case(name, BOTH) for name in ("bloom", "gpt2", "llama", "opt", "qwen2", "qwen3")),
    *(Case(name, NEITHER) for name in ("convbert", "fnet", "funnel", "mobilebert", "nystromformer")),
    Case("xlnet", LEFT),
    Case("bert", RIGHT, {"labels": THREE, "problem_type": "multi_label_classification"}),
    Case("distilbert", RIGHT, {"labels": THREE}),
    Case("roberta", RIGHT, {"labels": ("LABEL_0",), "problem_type": "regression"}),
    Case("electra", RIGHT, {"labels": ("LABEL_0",)}),
    Case("llama", BOTH, {"padding_side": "right", "labels": THREE, "problem_type": "multi_label_classification"}),
    Case("gpt2", BOTH, {"padding_side": "left", "pad_token": "<|endoftext|>"}),
    Case("gpt2", LEFT, {"pad_token": False}),
    Case("qwen2", LEFT, {"labels": THREE}, {"pad_token_id": None}),
)


@dataclass(frozen=True)
class Built:
    """A pipeline on a case's checkpoint, and for each of `TEXTS` the logits and scores to match, by label."""

    case: Case
    folder: Path
    pipe: Pipeline
    logits: Sequence[Mapping[str, float]]
    scores: Sequence[Mapping[str, float]]


def assemble(folder: Path, **postprocessor: Any) -> Pipeline:
    registry = Registry()
    builtin.register(registry)
    data = {
        "task": {"name": "text-classification", "head": "sequence-classification"},
        "checkpoint": {"path": str(folder)},
        "tokenizer": {"name": "hf"},
        "model": {"name": "hf"},
        "postprocessor": {"name": "classification", "top_k": None, **postprocessor},
        "device": {"name": "cpu", "threads": 1},
    }
    return build(parse_config(data, registry, []))


def by_label(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {item["label"]: item["score"] for item in results}


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("parity") / "checkpoint"
    tiny_checkpoint(folder, case.architecture, max_positions=MAX_LENGTH, **case.options, **case.config)
    reference = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    texts = [text if isinstance(text, str) else dict(text) for text in TEXTS]
    logits = [by_label(reference(text, top_k=None, truncation=True, function_to_apply="none")) for text in texts]
    scores = [by_label(reference(text, top_k=None, truncation=True)) for text in texts]
    return Built(case, folder, assemble(folder), logits, scores)


def worst(results: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, float]]) -> float:
    assert len(results) == len(expected)
    differences = []
    for result, scores in zip(results, expected, strict=True):
        found = by_label(result["labels"])
        assert found.keys() == scores.keys()
        assert result["score"] == max(found.values())
        differences += [abs(found[label] - scores[label]) for label in scores]
    return max(differences)


def test_sides(built: Built) -> None:
    assert built.pipe.model.supported_sides == built.case.sides
    padded = built.case.sides and built.pipe.tokenizer.pad_token_id is not None
    assert built.pipe.padding.name == ("longest" if padded else "none")


def test_scores_as_it_comes(built: Built) -> None:
    assert worst(built.pipe(list(TEXTS)), built.scores) <= TOLERANCE


def test_one_at_a_time(built: Built) -> None:
    assert worst([built.pipe([text])[0] for text in TEXTS], built.scores) <= TOLERANCE


def test_logits_in_any_batch_order_and_padding(built: Built) -> None:
    raw = replace(built.pipe, postprocessor=assemble(built.folder, function="none").postprocessor)
    order = list(range(len(TEXTS)))
    chance = random.Random(7)
    for policy in policies(raw, built.case.sides, MAX_LENGTH):
        for batching in (BatchingPolicy(), BatchingPolicy(max_tokens=100), BatchingPolicy(False, None, 4, 8)):
            chance.shuffle(order)
            pipe = replace(raw, padding=policy, batching=batching)
            expected = [built.logits[place] for place in order]
            assert worst(pipe([TEXTS[place] for place in order]), expected) <= TOLERANCE, (policy, batching)


def test_answers_differ(built: Built) -> None:
    """The checkpoints are of use only if two texts have clearly different answers."""
    values = np.array([list(scores.values()) for scores in built.logits])
    assert np.ptp(values, axis=0).max() > 0.1


WORDS = ["love", "hate", "this", "movie", "not", "bad", "Paris", "</s>", "[PAD]", "<|endoftext|>", "<s>", "zq", "漢"]
A_TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join)
AN_EXAMPLE = st.one_of(A_TEXT, st.builds(lambda a, b: {"text": a, "text_pair": b}, A_TEXT, A_TEXT))
INVARIANT = [
    Case("bert", RIGHT),
    Case("bart", RIGHT),
    Case("gpt2", BOTH, {"pad_token": "<|endoftext|>", "padding_side": "left"}),
    Case("llama", BOTH),
    Case("nystromformer", NEITHER),
]


@pytest.fixture(scope="module", params=INVARIANT, ids=str)
def invariant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("invariant") / "checkpoint"
    tiny_checkpoint(folder, case.architecture, max_positions=MAX_LENGTH, **case.options)
    return assemble(folder, function="none")


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(examples=st.lists(AN_EXAMPLE, min_size=1, max_size=9), rows=st.integers(1, 9), sort=st.booleans())
def test_an_answer_does_not_depend_on_its_batch(
    invariant: Pipeline, examples: list[Example], rows: int, sort: bool
) -> None:
    alone = [by_label(invariant([example])[0]["labels"]) for example in examples]
    pipe = replace(invariant, batching=BatchingPolicy(sort, None, rows, 64))
    assert worst(pipe(examples), alone) <= TOLERANCE
