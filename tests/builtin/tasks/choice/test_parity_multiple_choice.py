"""Multiple choice gives what transformers' AutoModelForMultipleChoice gives for each example, whatever the batch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity_helpers import policies

from pipeline_kit import Pipeline, builtin
from pipeline_kit.compose.build import build
from pipeline_kit.compose.schema import parse_config
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Side
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.testing.checkpoints import tiny_checkpoint

TOLERANCE = 1e-5
MAX_LENGTH = 48
EXAMPLES: tuple[Mapping[str, Any], ...] = (
    {"text": "It was a long day, so", "choices": ["I want some food.", "it will rain.", "a"]},
    {
        "text": "Is the food good?",
        "choices": ["yes", "no it is not good at all, and we want to be in Paris"],
    },
    {"text": "What a long day. " * 40, "choices": ["I love it", "I hate it so very much"]},
    {"text": "a", "choices": ["the same", "the same"]},
    {"text": "Ünïcödé 漢字 😀 \t zzz", "choices": ["שלום עולם", "e\u0301 \u200b"]},
    {
        "text": "this movie",
        "choices": ["is good", "is bad", "was", "has been", "will be", "ends", "makes me sad"],
    },
)

RIGHT: frozenset[Side] = frozenset({"right"})
LEFT: frozenset[Side] = frozenset({"left"})
NEITHER: frozenset[Side] = frozenset()

SIDES: Mapping[str, frozenset[Side]] = {
    **dict.fromkeys(("albert", "bert", "deberta-v2", "distilbert", "electra", "longformer"), RIGHT),
    **dict.fromkeys(("modernbert", "mpnet", "roberta", "squeezebert", "xlm-roberta"), RIGHT),
    "xlnet": LEFT,
    **dict.fromkeys(("convbert", "fnet", "funnel", "mobilebert", "nystromformer", "roformer"), NEITHER),
}
"""By architecture: how its rows may be padded. If they may not, transformers' answer depends on the longest choice."""


@dataclass(frozen=True)
class Built:
    """A pipeline on a tiny checkpoint, and for each example the scores to match."""

    architecture: str
    pipe: Pipeline
    expected: Sequence[Sequence[float]]


def assemble(folder: Path) -> Pipeline:
    registry = Registry()
    builtin.register(registry)
    data = {
        "task": {"name": "multiple-choice", "head": "multiple-choice"},
        "checkpoint": {"path": str(folder)},
        "tokenizer": {"name": "hf"},
        "model": {"name": "hf", "linear": "eager"},
        "postprocessor": {"name": "choice"},
        "device": {"name": "cpu", "threads": 1},
    }
    return build(parse_config(data, registry, []))


@torch.inference_mode()
def reference(folder: Path, examples: Sequence[Mapping[str, Any]], padded: bool) -> list[list[float]]:
    """Run transformers on one example at a time, ``[1, choices, T]``; without padding on one choice at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()

    def logits(text: str, choices: Sequence[str]) -> torch.Tensor:
        rows = tokenizer(
            [text] * len(choices), list(choices), truncation="only_first", padding=True, return_tensors="pt"
        )
        found: torch.Tensor = network(**{name: value[None] for name, value in rows.items()}).logits
        return found[0]

    scores = []
    for example in examples:
        text, choices = example["text"], example["choices"]
        found = logits(text, choices) if padded else torch.cat([logits(text, [choice]) for choice in choices])
        scores.append(found.softmax(0).tolist())
    return scores


@pytest.fixture(scope="module", params=sorted(SIDES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    architecture: str = request.param
    folder = tmp_path_factory.mktemp("parity") / "checkpoint"
    tiny_checkpoint(folder, architecture, head="multiple-choice", max_positions=MAX_LENGTH)
    return Built(architecture, assemble(folder), reference(folder, EXAMPLES, bool(SIDES[architecture])))


def worst(results: Sequence[Mapping[str, Any]], expected: Sequence[Sequence[float]]) -> float:
    for result in results:
        assert result["score"] == max(result["scores"])
    pairs = zip(results, expected, strict=True)
    return max(float(np.abs(np.subtract(result["scores"], scores)).max()) for result, scores in pairs)


def test_sides(built: Built) -> None:
    assert built.pipe.model.supported_sides == SIDES[built.architecture]


def test_as_it_comes_and_one_at_a_time(built: Built) -> None:
    results = built.pipe(EXAMPLES)
    assert worst(results, built.expected) <= TOLERANCE
    assert worst([built.pipe(example) for example in EXAMPLES], built.expected) <= TOLERANCE
    for example, result, scores in zip(EXAMPLES, results, built.expected, strict=True):
        chosen = example["choices"].index(result["choice"])
        assert scores[chosen] >= max(scores) - TOLERANCE


def test_any_batch_order_and_padding(built: Built) -> None:
    order = list(range(len(EXAMPLES)))
    chance = random.Random(7)
    for policy in policies(built.pipe, SIDES[built.architecture], MAX_LENGTH):
        for batching in (BatchingPolicy(), BatchingPolicy(max_tokens=100), BatchingPolicy(False, None, 1, 8)):
            chance.shuffle(order)
            pipe = replace(built.pipe, padding=policy, batching=batching)
            results = pipe([EXAMPLES[place] for place in order])
            assert worst(results, [built.expected[place] for place in order]) <= TOLERANCE, (policy, batching)


def test_answers_differ(built: Built) -> None:
    assert max(np.ptp(scores) for scores in built.expected) > 0.05


WORDS = ["love", "hate", "this", "movie", "not", "bad", "Paris", "[SEP]", "</s>", "zq", "漢"]
A_TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
AN_EXAMPLE = st.builds(lambda a, b: {"text": a, "choices": b}, A_TEXT, st.lists(A_TEXT, min_size=2, max_size=5))


@pytest.fixture(scope="module", params=["bert", "xlnet", "roformer"])
def invariant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("invariant") / "checkpoint"
    return assemble(tiny_checkpoint(folder, request.param, head="multiple-choice", max_positions=MAX_LENGTH))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(examples=st.lists(AN_EXAMPLE, min_size=1, max_size=4), rows=st.integers(1, 5), chance=st.randoms())
def test_an_answer_does_not_depend_on_batch_or_order(
    invariant: Pipeline, examples: list[dict[str, Any]], rows: int, chance: random.Random
) -> None:
    alone = [invariant(example)["scores"] for example in examples]
    pipe = replace(invariant, batching=BatchingPolicy(True, None, rows, 8))
    assert worst(pipe(examples), alone) <= TOLERANCE
    moved, expected = [], []
    for example, scores in zip(examples, alone, strict=True):
        order = list(range(len(scores)))
        chance.shuffle(order)
        moved.append({"text": example["text"], "choices": [example["choices"][i] for i in order]})
        expected.append([scores[i] for i in order])
    assert worst(pipe(moved[::-1]), expected[::-1]) <= TOLERANCE
