"""The choice postprocessor: pairs, softmax over the choices, windows, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from harness import checkpoint, pipeline_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit import Pipeline
from pipeline_kit.builtin.tasks.choice import Choice
from pipeline_kit.builtin.tasks.options import ChoiceConfig
from pipeline_kit.contract.types import Device, Encoding, Example, ModelOutput, Result, TokenBatch
from pipeline_kit.errors import RowError
from pipeline_kit.testing import PostprocessorConformance, tiny_stage_context


def stage() -> Choice:
    return Choice(ChoiceConfig(), tiny_stage_context())


def choose(choices: Sequence[str], logits: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]) -> Result:
    """Run the stage on one example; `logits` and `tokens` are by choice and window."""
    windows = [
        Encoding([1] * count, part=part, window=window)
        for part, counts in enumerate(tokens)
        for window, count in enumerate(counts)
    ]
    rows = [{"logits": np.array([value], dtype=np.float32)} for values in logits for value in values]
    [result] = stage()([{"text": "so", "choices": list(choices)}], [windows], [rows])
    json.dumps(result, allow_nan=False)
    return result


def test_pairs_of_text_and_choice() -> None:
    found = stage().prepare({"text": "It rains", "choices": ["I stay", "I swim"]})
    assert found == [{"text": "It rains", "text_pair": "I stay"}, {"text": "It rains", "text_pair": "I swim"}]
    assert stage().prepare({"text": "It rains", "choices": '["I stay", "I swim"]'}) == found
    assert Choice.truncation == "only_first"


def test_softmax_by_hand() -> None:
    result = choose(["a", "b", "c"], [[1.0], [3.0], [2.0]], [[4], [9], [4]])
    powers = np.exp([1.0, 3.0, 2.0])
    assert list(result) == ["choice", "score", "scores"]
    assert result["choice"] == "b"
    assert result["score"] == result["scores"][1]
    np.testing.assert_allclose(result["scores"], powers / powers.sum(), rtol=1e-6)


def test_the_first_of_equal_choices_wins() -> None:
    assert choose(["x", "y", "z"], [[1.0], [2.0], [2.0]], [[1]] * 3)["choice"] == "y"
    assert choose(["same", "same"], [[1.0], [1.0]], [[1]] * 2) == {"choice": "same", "score": 0.5, "scores": [0.5, 0.5]}


def test_logits_of_any_size() -> None:
    assert choose(["x", "y"], [[3e38], [-3e38]], [[1], [1]])["scores"] == [1.0, 0.0]
    assert choose(["x", "y"], [[-1e30], [-1e30]], [[1], [1]])["scores"] == [0.5, 0.5]


def test_windows_are_merged_before_the_softmax() -> None:
    result = choose(["x", "y"], [[1.0, 5.0], [2.0]], [[10, 30], [10]])
    powers = np.exp([(10 * 1.0 + 30 * 5.0) / 40, 2.0])
    np.testing.assert_allclose(result["scores"], powers / powers.sum(), rtol=1e-6)


@settings(max_examples=50)
@given(logits=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=8), chance=st.randoms(use_true_random=False))
def test_scores_are_a_distribution_that_goes_with_the_choices(logits: list[float], chance: Any) -> None:
    names = [f"choice {i}" for i in range(len(logits))]
    result = choose(names, [[x] for x in logits], [[3]] * len(logits))
    assert all(0 <= score <= 1 for score in result["scores"])
    assert abs(sum(result["scores"]) - 1) < 1e-9
    assert result["score"] == max(result["scores"])
    order = list(range(len(logits)))
    chance.shuffle(order)
    moved = choose([names[i] for i in order], [[logits[i]] for i in order], [[3]] * len(order))
    np.testing.assert_allclose(moved["scores"], [result["scores"][i] for i in order], atol=1e-12)
    assert logits[names.index(moved["choice"])] == max(logits)


# Bad input.


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline_of("multiple-choice", checkpoint("bert", head="multiple-choice", max_positions=48))


TWO = ["yes", "no"]


def test_the_text_is_cut_and_never_a_choice(pipe: Pipeline) -> None:
    choices = ["we stay in all day " * 3, "no"]
    result = pipe({"text": "so the film was good " * 20, "choices": choices})
    encodings = pipe.tokenizer.encode([{"text": "x", "text_pair": choice} for choice in choices])
    kept = [48 - len(encoding.input_ids) + 1 for encoding in encodings]
    assert result["truncated"] == 100 - min(kept)
    with pytest.raises(RowError, match="second text of the pair has 100 tokens and may not be cut"):
        pipe({"text": "so", "choices": ["no", "so the film was good " * 20]})


# The conformance suite.


class TestChoice(PostprocessorConformance):
    stage = "choice"
    examples: ClassVar = (
        {"text": "I love this.", "choices": ["yes", "no"]},
        {"text": "ok", "choices": ["one", "two", "three of them"]},
        {"text": "A longer text, so that rows are not of one length.", "choices": ["yes it is", "no"]},
        {"text": "Good day", "choices": ["a", "a"]},
    )

    def example(self, text: str) -> Example:
        return {"text": text, "choices": ["yes, of course", "no"]}

    def forward(self, batch: TokenBatch, device: Device | None = None) -> ModelOutput:
        return ModelOutput({"logits": super().forward(batch, device)["logits"][:, 0]})
