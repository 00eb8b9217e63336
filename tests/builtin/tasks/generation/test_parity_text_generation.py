"""Text generation gives what transformers.pipeline gives one text at a time, whatever the batch and the padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import transformers
from generate_helpers import NEW, TEXTS, shuffled_agree, texts, with_files, writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_kit import Pipeline
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.testing.checkpoints import tiny_checkpoint


@dataclass(frozen=True)
class Case:
    """A checkpoint and how it writes: arguments of ``tiny_checkpoint``, keys of its generation_config.json, options."""

    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        named = {**self.options, **self.own, **self.generation}
        return "-".join([self.architecture, *(f"{key}={value}" for key, value in named.items())])


PLAIN = ("bloom", "gpt2", "gpt_neox", "llama", "mamba", "mistral", "opt", "qwen2", "qwen3")
CASES = (
    *(Case(name) for name in PLAIN),
    Case("gpt2", {"pad_token": "<|endoftext|>"}, generation={"repetition_penalty": 1.5}),
    Case("llama", {"padding_side": "right"}, generation={"num_beams": 3}),
    Case("llama", generation={"num_beams": 3, "length_penalty": 2.0, "early_stopping": True}),
    Case("qwen2", generation={"no_repeat_ngram_size": 2}),
    Case("qwen3", {"seed": 3}, own={"repetition_penalty": 1.3, "do_sample": False}),
    Case("opt", {"seed": 1}, generation={"min_new_tokens": 5}),
)


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Pipeline, list[str]]:
    """Return a pipeline and what transformers gives for each of `TEXTS`, cut on the left to the room there is."""
    case: Case = request.param
    folder = tiny_checkpoint(tmp_path_factory.mktemp("x") / "c", case.architecture, head="causal-lm", **case.options)
    with_files(folder, generation_config=dict(case.own))
    pipe = writer(folder, generation=case.generation)
    reference = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    reference.tokenizer.truncation_side = "left"
    room = {"truncation": True, "max_length": pipe.tokenizer.max_length}
    asked = {"do_sample": False, "max_new_tokens": NEW, "return_full_text": False, **case.generation}
    expected = [reference(text, tokenizer_encode_kwargs=room, **asked)[0]["generated_text"] for text in TEXTS]
    return case, pipe, expected


def test_sides(built: tuple[Case, Pipeline, list[str]]) -> None:
    case, pipe, _ = built
    ngrams = "no_repeat_ngram_size" in case.generation
    assert pipe.model.supported_sides == (frozenset() if ngrams else {"left"})
    assert pipe.padding.name == ("none" if ngrams else "longest")


def test_one_at_a_time(built: tuple[Case, Pipeline, list[str]]) -> None:
    _, pipe, expected = built
    assert [pipe(text)["text"] for text in TEXTS] == expected


def test_any_batch_order_and_padding(built: tuple[Case, Pipeline, list[str]]) -> None:
    _, pipe, expected = built
    shuffled_agree(pipe, TEXTS, expected)


def test_texts_differ(built: tuple[Case, Pipeline, list[str]]) -> None:
    """The checkpoints are of use only if two prompts are carried on differently."""
    assert len(set(built[2])) > 3


def test_pieces(built: tuple[Case, Pipeline, list[str]]) -> None:
    """A text in pieces is the same text."""
    case, pipe, expected = built
    if "num_beams" not in case.generation:
        assert ["".join(pipe.stream_text(text)) for text in TEXTS] == expected


def test_a_long_prompt_keeps_its_end(built: tuple[Case, Pipeline, list[str]]) -> None:
    _, pipe, _ = built
    if pipe.tokenizer.max_length is None or pipe.tokenizer.max_length == 64:
        return  # no positions to run out of
    assert pipe.tokenizer.max_length == 64 - NEW
    result = pipe(TEXTS[4])
    assert result["truncated"] > 0
    assert result["text"] == pipe("of all the days " * 9 + TEXTS[4])["text"]


A_TEXT = st.lists(
    st.sampled_from(["love", "hate", "movie", "not", "</s>", "<|endoftext|>", "zq", "漢", "🙂"]), min_size=1
)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def invariant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("x") / "c", request.param, head="causal-lm", seed=2)
    return writer(folder, most=4)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(found=st.lists(A_TEXT.map(" ".join), min_size=1, max_size=6), rows=st.integers(1, 6))
def test_a_text_does_not_depend_on_its_batch(invariant: Pipeline, found: list[str], rows: int) -> None:
    alone = [invariant(text)["text"] for text in found]
    pipe = Pipeline(**{**vars(invariant), "batching": BatchingPolicy(False, None, rows, 16)})
    assert texts(pipe(found)) == alone
