"""What each task refuses: examples, by the shared rules for every field and by its own, and outputs of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from pipeline_kit import builtin
from pipeline_kit.contract.options import parse_options
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.stages import Model, Postprocessor
from pipeline_kit.contract.types import Encoding, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import ExampleError, RowFailure, StageError
from pipeline_kit.runtime.padding import PaddingPolicy, collate
from pipeline_kit.testing import tiny_pipeline, tiny_stage_context

GOOD: Mapping[str, Mapping[str, Any]] = {
    "answers": {"question": "Who?", "context": "Sarah."},
    "choice": {"text": "so", "choices": ["yes", "no"]},
    "entities": {"words": ["a", "b"]},
    "fill_mask": {"text": "a blank"},
    "generated_text": {"text": "a"},
    "ranking": {"query": "q", "documents": ["d", "e"]},
    "zero_shot": {"text": "t", "labels": ["good", "bad"]},
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {"fill_mask": {"mask_token": "blank"}, "zero_shot": {"labels": ["x", "y"]}}
LABELS = {"ranking": ["relevance"], "zero_shot": ["contradiction", "neutral", "entailment"]}


def stage(name: str) -> Postprocessor:
    registry = Registry()
    builtin.register(registry)
    spec = registry.get("postprocessor", name)
    context = tiny_stage_context(labels=LABELS.get(name, ["NEGATIVE", "POSITIVE"]), head="causal-lm")
    made: Postprocessor = spec.load()(parse_options(spec.config, OPTIONS.get(name, {}), "postprocessor", []), context)
    return made


def shared(name: str) -> Iterator[tuple[Any, str]]:
    """Yield what breaks one rule of one field, and what is said of it."""
    good = GOOD[name]
    yield 5, "not int"
    yield {**good, "zz": 1}, "unknown field 'zz'"
    for field, value in good.items():
        rest = {key: other for key, other in good.items() if key != field}
        if field not in ("labels", "words"):
            yield rest, f"the field '{field}' is missing"
            yield {**rest, field[:-1]: value}, f"Is '{field[:-1]}' meant to be it"
            yield {**rest, field: None}, f"'{field}' is NoneType"
        if isinstance(value, str):
            wrong: list[tuple[Any, str]] = [(7, "is int"), (["x"], "is list"), ("\ud800", "has a lone surrogate")]
            wrong += [] if name == "fill_mask" else [("", "is empty"), (" \n", "is empty")]
        else:
            wrong = [({"a": "d"}, "is dict, not a list of texts"), ("[1", "is not a JSON list")]
            wrong += [([*value, 5], r"\[2\]' is int"), ([*value, "\ud800"], r"\[2\]' has a lone surrogate")]
            wrong += [] if field == "words" else [([], "has 0 texts; it needs at least")]
        for found, words in wrong:
            yield {**rest, field: found}, f"'{field}.*{words}"


@pytest.mark.parametrize("name", GOOD)
def test_the_shared_rules(name: str) -> None:
    made = stage(name)
    assert made.prepare(GOOD[name])
    for example, words in shared(name):
        with pytest.raises(ExampleError, match=words):
            made.prepare(example)


MESSAGE = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("name", "example", "words"),
    [
        ("answers", "a text", "mapping with the fields 'question' and 'context'"),
        ("choice", "just a text", "a mapping with the fields 'text' and 'choices', not a text"),
        ("choice", {"text": "so", "choices": "yes"}, "the field 'choices' is str, not a list"),
        ("choice", {"text": "so", "choices": ["yes"]}, "the field 'choices' has 1 text; it needs at least 2"),
        ("choice", {"text": "so", "choices": ["yes", ""]}, r"the field 'choices\[1\]' is empty"),
        ("entities", {}, "neither 'text' nor 'words'"),
        ("entities", {"text": None}, "neither 'text' nor 'words'"),
        ("entities", {"text": "a", "words": ["a"]}, "'text' and 'words' are both there"),
        ("entities", {"words": "one two"}, "the field 'words' is str, not a list of texts"),
        ("entities", {"words": ["a"], "tags": []}, "unknown field 'tags'; the fields are 'words' and 'text'"),
        ("entities", {"txt": "a"}, "the field 'text' is missing; found: txt"),
        ("entities", {"text": 7}, "the field 'text' is int"),
        ("entities", "a\ud800", "lone surrogate"),
        ("generated_text", {"text": "a", "mesages": []}, "Did you mean 'messages'"),
        ("generated_text", {"text": "a", "messages": [MESSAGE]}, "not both"),
        ("generated_text", {"messages": [MESSAGE], "mood": "good"}, "unknown field 'mood'"),
        ("generated_text", {"messages": []}, "empty"),
        ("generated_text", {"messages": "hello"}, "not a JSON list"),
        ("generated_text", {"messages": 5}, "is int, not a list"),
        ("generated_text", {"messages": MESSAGE}, "is dict, not a list"),
        ("generated_text", {"messages": ["hello"]}, r"messages\[0\] is str, not a message"),
        ("generated_text", {"messages": [MESSAGE, {"content": "a"}]}, r"messages\[1\] lacks 'role'; it has: content"),
        ("generated_text", {"messages": [{"role": "user", "contents": "a"}]}, "Is 'contents' meant to be it"),
        ("generated_text", {"messages": [{"role": 5, "content": "a"}]}, r"messages\[0\].role' is int"),
        ("generated_text", {"messages": [{"role": "", "content": "a"}]}, r"messages\[0\].role' is empty"),
        ("generated_text", {"messages": [{"role": "user", "content": [1]}]}, r"messages\[0\].content' is list"),
        ("generated_text", {"messages": [{"role": "user", "content": "\udfff"}]}, "lone surrogate"),
        ("ranking", "a text", "a mapping with the fields 'query' and 'documents', not a text: a text"),
        ("ranking", {"query": "q", "documents": "d"}, "is str, not a list of texts: d; in CSV write it as JSON"),
        ("ranking", {"query": "q", "documents": [["d"]]}, r"'documents\[0\]' is list"),
        ("zero_shot", {"text": "t", "label": ["a"]}, "unknown field 'label'.*Did you mean 'labels'"),
        ("zero_shot", {"text": "t", "labels": ", ,"}, "'labels' has 0 texts"),
        ("zero_shot", {"text": "t", "labels": ["a", " "]}, r"'labels\[1\]' is empty"),
        ("zero_shot", {"text": "t", "labels": ["a", "b", "a"]}, r"'labels' has 'a' twice, as \[0\] and \[2\]"),
        ("zero_shot", ["t"], "an example is a text or a mapping with the field 'text', not list"),
    ],
)
def test_its_own_rules(name: str, example: Any, words: str) -> None:
    with pytest.raises(ExampleError, match=words):
        stage(name).prepare(example)


READS: Mapping[str, tuple[str, str]] = {
    "answers": ("start_logits", "T"),
    "choice": ("logits", ""),
    "classification": ("logits", "L"),
    "entities": ("logits", "TL"),
    "features": ("last_hidden_state", "TL"),
    "fill_mask": ("logits", "TL"),
    "logits": ("logits", "L"),
    "pooling": ("last_hidden_state", "TL"),
    "ranking": ("logits", "L"),
    "zero_shot": ("logits", "L"),
}
"""By postprocessor: the tensor that it reads, and its dimensions behind the rows: T tokens, L labels."""


class Constant(Model):
    """Returns tensors that hold one value."""

    safe_padding_sides: frozenset[Side] = frozenset({"left", "right"})

    def __init__(self, name: str, width: int, value: float, dtype: torch.dtype = torch.float32) -> None:
        self.name, self.width, self.value, self.dtype = name, width, value, dtype

    def forward(self, batch: TokenBatch) -> ModelOutput:
        name, axes = READS[self.name]
        rows, tokens = batch.input_ids.shape
        tensor = torch.full([rows, *[{"T": tokens, "L": self.width}[axis] for axis in axes]], self.value).to(self.dtype)
        more = {"end_logits": tensor} if self.name == "answers" else {}
        return ModelOutput({name: tensor, **more}, frozenset({name, *more}) if "T" in axes else frozenset())


def outcome(model: Constant) -> Any:
    example = GOOD.get(model.name, {"text": "a blank"})
    [found] = tiny_pipeline(stage(model.name), model=model).results_or_failures([example])
    return found


@pytest.mark.parametrize("name", READS)
def test_outputs_of_a_model(name: str) -> None:
    width = len(LABELS.get(name, "ab"))
    assert isinstance(outcome(Constant(name, width, 0.0)), dict)
    for value in (float("nan"), float("inf"), -float("inf")):
        failure = outcome(Constant(name, width, value))
        assert isinstance(failure, RowFailure), value
        assert (failure.error, "finite" in failure.message) == ("ExampleError", True)
    if name in ("classification", "entities", "logits", "ranking", "zero_shot"):
        with pytest.raises(StageError, match=f"returns 7 logits, but 'tiny-checkpoint' names {width} labels"):
            outcome(Constant(name, 7, 0.0))


@pytest.mark.parametrize("name", READS)
def test_tensors_of_a_model(name: str) -> None:
    batch = collate([Encoding([1, 1, 1])] * 2, PaddingPolicy("longest"), "cpu")
    reads, width = READS[name][0], len(LABELS.get(name, "ab"))
    with pytest.raises(StageError, match=rf"needs '{reads}', the model has only other; does model\.head fit"):
        stage(name).reduce(ModelOutput({"other": torch.zeros(2, 1)}), batch)
    with pytest.raises(StageError, match=rf"needs '{reads}' as \[B.*\], the model returned the shape \[2, 3, 4, 5\]"):
        stage(name).reduce(ModelOutput({reads: torch.zeros(2, 3, 4, 5)}), batch)
    given = Constant(name, width, 0.0, torch.bfloat16).forward(batch)
    more = ModelOutput({**given.tensors, "unused": torch.zeros(2, 1)}, given.per_token)
    reduced = stage(name).reduce(more, batch)
    assert "unused" not in reduced.tensors
    if name != "features":
        assert {tensor.dtype for tensor in reduced.tensors.values()} <= {torch.float32, torch.int64}
