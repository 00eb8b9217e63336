"""The choice postprocessor: pairs, softmax over the choices, windows, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from harness import checkpoint, pipeline_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit import ExampleError, Pipeline
from pipeline_kit.builtin.tasks.choice.stage import Choice
from pipeline_kit.builtin.tasks.options import ChoiceConfig
from pipeline_kit.contract.types import Device, Encoding, Example, ModelOutput, Result, TokenBatch
from pipeline_kit.errors import RowError, StageError
from pipeline_kit.runtime.padding import PaddingPolicy, collate
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_no_number_fails_the_row(value: float) -> None:
    with pytest.raises(ExampleError, match="finite"):
        choose(["x", "y"], [[1.0], [value]], [[1], [1]])


def test_windows_are_merged_before_the_softmax() -> None:
    result = choose(["x", "y"], [[1.0, 5.0], [2.0]], [[10, 30], [10]])
    powers = np.exp([(10 * 1.0 + 30 * 5.0) / 40, 2.0])
    np.testing.assert_allclose(result["scores"], powers / powers.sum(), rtol=1e-6)


def test_reduce_takes_one_logit_a_row() -> None:
    batch = collate([Encoding([1]), Encoding([1, 2])], PaddingPolicy("longest"), "cpu")
    reduced = stage().reduce(ModelOutput({"logits": torch.ones(2, dtype=torch.bfloat16)}), batch)
    assert reduced["logits"].dtype == torch.float32
    assert reduced["logits"].shape == (2, 1)
    with pytest.raises(StageError, match=r"needs 'logits' as \[B\], the model returned the shape \[2, 3\]"):
        stage().reduce(ModelOutput({"logits": torch.zeros(2, 3)}), batch)


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


def test_a_bad_example_fails_its_row_in_the_input(pipe: Pipeline) -> None:
    good, bad = {"text": "so", "choices": TWO}, {"text": "so", "choices": ["yes"]}
    assert [isinstance(outcome, dict) for outcome in pipe.results_or_failures([good, bad, good])] == [True, False, True]
    with pytest.raises(RowError, match="the field 'choices' has 1 text; it needs at least 2") as raised:
        pipe([bad])
    assert (raised.value.failure.stage, raised.value.failure.error) == ("input", "ExampleError")


def test_the_text_is_cut_and_never_a_choice(pipe: Pipeline) -> None:
    choices = ["we stay in all day " * 3, "no"]
    result = pipe({"text": "so the film was good " * 20, "choices": choices})
    encodings = pipe.tokenizer.encode([{"text": "x", "text_pair": choice} for choice in choices])
    kept = [48 - len(encoding.input_ids) + 1 for encoding in encodings]
    assert result["truncated"] == 100 - min(kept)
    with pytest.raises(RowError, match="second text of the pair has 100 tokens and may not be cut"):
        pipe({"text": "so", "choices": ["no", "so the film was good " * 20]})


def test_windows_of_a_long_text_by_hand(pipe: Pipeline) -> None:
    windowed = pipeline_of(
        "multiple-choice",
        checkpoint("bert", head="multiple-choice", max_positions=48),
        {"overflow": "window", "max_length": 16, "overlap": 0},
    )
    text, choices = "so the film was good " * 4, ["yes", "no it was a bad film"]
    result = windowed({"text": text, "choices": choices})
    logits = []
    for choice in choices:
        encodings = windowed.tokenizer.encode([{"text": text, "text_pair": choice}])
        assert len(encodings) > 1
        values = windowed.model.forward(collate(encodings, windowed.padding, "cpu"))["logits"].numpy()
        special = 3 + len(windowed.tokenizer.encode([choice])[0].input_ids) - 2
        weights = [len(encoding.input_ids) - special for encoding in encodings]
        assert sum(weights) == 20
        logits.append(float(np.average(values, weights=weights)))
    powers = np.exp(logits)
    np.testing.assert_allclose(result["scores"], powers / powers.sum(), atol=1e-6)


def test_very_long_texts_and_many_choices(pipe: Pipeline) -> None:
    text = "so the film was good " * 5000
    many = [f"{word} {i}" for i in range(150) for word in ("yes", "no")]
    first, second = pipe([{"text": text, "choices": TWO}, {"text": "so", "choices": many}])
    assert first["truncated"] > 0
    assert len(second["scores"]) == 300
    assert second["choice"] == many[int(np.argmax(second["scores"]))]


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
