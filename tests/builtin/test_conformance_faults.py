"""The suites can fail: stages that are broken on purpose, and the check that is there for them."""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pipeline_kit.contract.options import REQUIRED, option
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.stages import Model, Postprocessor, StageContext, Tokenizer
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, Side, TokenBatch
from pipeline_kit.errors import ExampleError, RegistryError
from pipeline_kit.testing import (
    ModelConformance,
    PostprocessorConformance,
    TinyModel,
    TinyModelConfig,
    TokenizerConformance,
    WordTokenizer,
    WordTokenizerConfig,
    tiny_checkpoint,
    tiny_stage_context,
)
from pipeline_kit.testing import __main__ as command


class BrokenTokenizer(Tokenizer):
    """Encodes as WordTokenizer does, apart from the fault its class name tells."""

    def __init__(self, config: WordTokenizerConfig, context: StageContext) -> None:
        self.inner = WordTokenizer(config)
        self.calls = itertools.count()

    pad_token_id = 0
    padding_side: Side = "right"
    max_length = 64

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return self.inner.encode(examples)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(ids)


class BrokenModel(Model):
    """Answers as TinyModel does, apart from the fault its class name tells."""

    def __init__(self, config: TinyModelConfig, context: StageContext) -> None:
        self.inner = TinyModel(config, context)

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        return self.inner.safe_padding_sides

    def forward(self, batch: TokenBatch) -> ModelOutput:
        output = self.inner.forward(batch)
        changed = self.change(output["logits"].clone(), batch)
        return ModelOutput({**output.tensors, "logits": changed}, output.per_token)

    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return logits


@dataclass
class NothingConfig:
    """No options."""


class BrokenPostprocessor(Postprocessor):
    """Gives the first logit, apart from the fault its class name tells."""

    def __init__(self, config: NothingConfig, context: StageContext) -> None:
        self.seen: list[int] = []

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        scores = [float(np.mean([row["logits"][0] for row in rows])) for rows in outputs]
        if not all(map(math.isfinite, scores)):
            raise ExampleError("a logit is not finite")
        return self.change([{"score": score} for score in scores], examples, outputs)

    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        return results


class FailsOnEmptyText(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        if "" in examples:
            raise IndexError
        return results


# What each fault puts in the place of which attribute of a sound stage.


def mutates_examples(self: Any, examples: Any) -> Any:
    found = self.inner.encode(examples)
    for example in examples:
        if isinstance(example, dict):
            example["seen"] = True
    return found


def raises_value_error(self: Any, examples: Any) -> Any:
    try:
        return self.inner.encode(examples)
    except ExampleError as error:
        raise ValueError("no") from error


def counts_calls(self: Any, examples: Any) -> Any:
    call = next(self.calls)
    return [replace(e, input_ids=[*e.input_ids, call]) for e in self.inner.encode(examples)]


def mutates_its_batch(self: Any, logits: Any, batch: TokenBatch) -> Any:
    batch.input_ids[0, 0] += 1
    return logits


MEMORY = torch.zeros(100, 3)


def reuses_its_memory(self: Any, logits: Any, batch: TokenBatch) -> Any:
    MEMORY[: len(logits)] = logits
    return MEMORY[: len(logits)]


def sees_other_results(self: Any, results: Any, examples: Any, outputs: Any) -> Any:
    best = max(result["score"] for result in results)
    return [{"score": result["score"] - best} for result in results]


def reduces_in_place(self: Any, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
    with torch.inference_mode():
        output["logits"].mul_(2)
    return output


def mutates_outputs(self: Any, results: Any, examples: Any, outputs: Any) -> Any:
    outputs[0][0]["logits"][0] = 0
    return results


def remembers(self: Any, results: Any, examples: Any, outputs: Any) -> Any:
    self.seen.append(len(examples))
    return [{"score": result["score"], "calls": len(self.seen)} for result in results]


MADE = itertools.count()


def shares_its_state(self: Any, config: Any, context: Any) -> None:
    self.made = next(MADE)
    self.change = lambda results, examples, outputs: [{"score": r["score"] + self.made} for r in results]


def measured(self: Any, examples: Any, length: Any) -> Any:
    """Encode with offsets in another unit than characters."""
    texts = [example if isinstance(example, str) else example.get("text", "") for example in examples]
    found = self.inner.encode(examples)
    return [
        replace(x, offsets=[(length(texts[x.example][:b]), length(texts[x.example][:e])) for b, e in x.offsets])
        for x in found
    ]


HOME = threading.get_ident()


def needs_its_thread(self: Any, examples: Any) -> Any:
    return self.inner.encode(examples if threading.get_ident() == HOME else examples[::-1])


def by_token(self: Any, batch: TokenBatch) -> ModelOutput:
    logits = self.inner.forward(batch)["logits"]
    width = batch.input_ids.shape[1]
    return ModelOutput({"logits": logits[:, None].expand(-1, width, -1)}, frozenset({"logits"}))


def needs_a_gradient(self: Any, logits: Any, batch: TokenBatch) -> Any:
    return torch.ones(3, requires_grad=True) * logits


def printed(value: Any) -> Any:
    sys.stdout.write("a word for whoever debugs this\n")
    return value


IN_ORDER, OF_THE_HEAD = "every_example_is_encoded_in_order", "outputs_are_those_of_the_head"
Place = tuple[type[Any], str]
ENCODE, DECODE, LOGITS = (BrokenTokenizer, "encode"), (BrokenTokenizer, "decode"), (BrokenModel, "change")
RESULTS, REDUCE = (BrokenPostprocessor, "change"), (BrokenPostprocessor, "reduce")
FORWARD = (BrokenModel, "forward")
CALL, INIT, REQUIRES = ((BrokenPostprocessor, name) for name in ("__call__", "__init__", "required_fields"))
FAULTS: list[tuple[Place, Any, str]] = [
    (ENCODE, lambda self, e: self.inner.encode(e)[:-1], "every_example_is_encoded_in_order"),
    (ENCODE, lambda self, e: self.inner.encode(e)[::-1], "every_example_is_encoded_in_order"),
    (
        ENCODE,
        lambda self, e: [replace(x, input_ids=[len(e), *x.input_ids[1:]]) for x in self.inner.encode(e)],
        "batch_equals_one_by_one",
    ),
    (ENCODE, lambda self, e: WordTokenizer(WordTokenizerConfig(max_length=None)).encode(e), "max_length_holds"),
    (ENCODE, lambda self, e: [replace(x, truncated=0) for x in self.inner.encode(e)], "max_length_holds"),
    (ENCODE, mutates_examples, "inputs_are_not_mutated"),
    (ENCODE, raises_value_error, "bad_example_is_an_example_error"),
    (
        ENCODE,
        lambda self, e: [replace(x, input_ids=[]) if len(x.input_ids) == 2 else x for x in self.inner.encode(e)],
        "unicode_and_empty_text",
    ),
    (
        ENCODE,
        lambda self, e: [replace(x, special_tokens_mask=[1]) for x in self.inner.encode(e)],
        "requested_fields_are_filled",
    ),
    (ENCODE, counts_calls, "deterministic batch_equals_one_by_one"),
    (DECODE, lambda self, ids: list(ids), "decode_gives_text"),
    (DECODE, lambda self, ids: printed(""), "prints_nothing"),
    (ENCODE, lambda self, e: measured(self, e, lambda text: len(text.encode())), "offsets_count_characters"),
    (ENCODE, lambda self, e: measured(self, e, lambda t: len(t.encode("utf-16")) // 2 - 1), "offsets_count_characters"),
    (ENCODE, lambda self, e: self.inner.encode(e or ["nothing"]), "no_examples"),
    (ENCODE, lambda self, e: [replace(x, window=1) for x in self.inner.encode(e)], "every_example_is_encoded_in_order"),
    (ENCODE, lambda self, e: [replace(x, token_span=(3, 3)) for x in self.inner.encode(e)], IN_ORDER),
    (ENCODE, lambda self, e: [replace(x, tokens=None) for x in self.inner.encode(e)], "requested_fields_are_filled"),
    (ENCODE, needs_its_thread, "another_thread_gives_the_same"),
    ((BrokenTokenizer, "pad_token_id"), -1, "properties"),
    ((BrokenTokenizer, "padding_side"), "both", "properties"),
    ((BrokenTokenizer, "max_length"), 0, "properties"),
    (LOGITS, lambda self, logits, batch: logits[1:], "outputs_have_the_batch_first"),
    (
        LOGITS,
        lambda self, logits, batch: logits - logits.mean(dim=0),
        "batch_equals_one_by_one equal_lengths_equal_one_by_one",
    ),
    (
        LOGITS,
        lambda self, logits, batch: logits + batch.input_ids.shape[1],
        "batch_equals_one_by_one more_padding_changes_nothing",
    ),
    (LOGITS, lambda self, logits, batch: logits * torch.nan, "outputs_are_finite_and_on_the_device"),
    (LOGITS, mutates_its_batch, "inputs_are_not_mutated"),
    (LOGITS, lambda self, logits, batch: logits + torch.rand(1), "deterministic instances_are_independent"),
    (LOGITS, reuses_its_memory, "outputs_are_not_written_to_again"),
    (FORWARD, lambda self, batch: ModelOutput({"logits": torch.ones(len(batch.input_ids), 3)}), "tokens_matter"),
    (FORWARD, lambda self, batch: ModelOutput({"scores": self.inner.forward(batch)["logits"]}), OF_THE_HEAD),
    (FORWARD, lambda self, batch: ModelOutput({"logits": self.inner.forward(batch)["logits"][:, :2]}), OF_THE_HEAD),
    (FORWARD, by_token, OF_THE_HEAD),
    (FORWARD, lambda self, batch: ModelOutput({}), "outputs_have_the_batch_first"),
    (
        FORWARD,
        lambda self, batch: replace(self.inner.forward(batch), per_token=frozenset({"attentions"})),
        "outputs_have_the_batch_first",
    ),
    (LOGITS, lambda self, logits, batch: printed(logits), "prints_nothing"),
    (LOGITS, needs_a_gradient, "outputs_are_finite_and_on_the_device"),
    (LOGITS, lambda self, logits, batch: logits.sort(dim=0).values, "order_does_not_matter batch_equals_one_by_one"),
    ((BrokenModel, "tolerance"), 0.0, "supported_sides"),
    ((BrokenModel, "safe_padding_sides"), frozenset({"middle"}), "supported_sides"),
    (RESULTS, lambda self, results, *_: results[1:], "one_result_per_example windows_give_one_result"),
    (RESULTS, sees_other_results, "batch_equals_one_by_one"),
    (RESULTS, lambda self, results, *_: sorted(results, key=lambda result: float(result["score"])), "order_is_kept"),
    (
        REDUCE,
        lambda self, output, batch: ModelOutput({"logits": output["logits"] / output["logits"].abs().max()}),
        "reduce_is_row_wise",
    ),
    (
        REDUCE,
        lambda self, output, batch: ModelOutput({"logits": output["last_hidden_state"].mean(dim=1)}),
        "reduce_is_row_wise padding_changes_nothing",
    ),
    (RESULTS, mutates_outputs, "inputs_are_not_mutated"),
    (REDUCE, reduces_in_place, "inputs_are_not_mutated"),
    (RESULTS, lambda self, results, *_: [{"score": math.nan} for _ in results], "results_are_json"),
    (
        CALL,
        lambda self, examples, encodings, outputs: [{"score": float(rows[0]["logits"][0])} for rows in outputs],
        "bad_numbers_are_an_example_error",
    ),
    (
        CALL,
        lambda self, examples, encodings, outputs: [
            {"score": float(row["logits"][0])} for rows in outputs for row in rows
        ],
        "windows_give_one_result",
    ),
    (RESULTS, remembers, "deterministic"),
    (INIT, shares_its_state, "instances_are_independent"),
    (
        RESULTS,
        lambda self, results, *_: [{**result, f"key{i}": 1} for i, result in enumerate(results)],
        "one_result_per_example",
    ),
    (REQUIRES, frozenset({"everything"}), "required_fields_are_known"),
    (
        CALL,
        lambda self, examples, encodings, outputs: [
            {"score": float(sum(row["logits"][0] for row in rows))} for rows in outputs
        ],
        "a_window_that_comes_twice_changes_nothing",
    ),
    (REDUCE, lambda self, output, batch: printed(output), "prints_nothing"),
    (CALL, lambda self, examples, encodings, outputs: [{"score": 1.0} for _ in examples or [0]], "no_examples"),
    (RESULTS, lambda self, results, *_: [list(result.items()) for result in results], "one_result_per_example"),
    (RESULTS, lambda self, results, *_: [{"score": (r["score"],)} for r in results], "results_are_json"),
]


@dataclass
class UndocumentedConfig(NothingConfig):
    size: int = 3


@dataclass
class UncheckedConfig(NothingConfig):
    size: Any = option("3", "a number")

    def __post_init__(self) -> None:
        self.size = int(self.size) + 1


def suite(broken: type[Any], config: type[Any] | None = None) -> Any:
    """Make the suite of a broken stage."""
    bases: list[tuple[type[Any], type[Any], type[Any]]] = [
        (Tokenizer, TokenizerConformance, WordTokenizerConfig),
        (Model, ModelConformance, TinyModelConfig),
        (Postprocessor, PostprocessorConformance, NothingConfig),
    ]
    base, schema = next((suite, schema) for kind, suite, schema in bases if issubclass(broken, kind))

    def register_broken(registry: Registry) -> None:
        registry.add(base.kind, "broken", f"{__name__}:{broken.__name__}", config or schema, "broken")

    return type("Suite", (base,), {"stage": "broken", "register": register_broken})()


@pytest.mark.parametrize("stage", [BrokenTokenizer, BrokenModel, BrokenPostprocessor])
def test_what_the_broken_stages_derive_from_passes(stage: type[Any]) -> None:
    whole = suite(stage)
    for name in dir(whole):
        if name.startswith("test_") and name not in ("test_cuda", "test_import_is_light"):
            getattr(whole, name)()


@pytest.mark.parametrize(("place", "fault", "checks"), FAULTS)
def test_a_broken_stage_fails_its_checks(
    place: Place, fault: Any, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, attribute = place
    monkeypatch.setattr(stage, attribute, fault)
    for check in checks.split():
        with pytest.raises(AssertionError):
            getattr(suite(stage), f"test_{check}")()


def test_another_error_than_an_example_error_fails_too() -> None:
    with pytest.raises(IndexError):
        suite(FailsOnEmptyText).test_unicode_and_empty_text()


def test_broken_options_fail_their_checks() -> None:
    with pytest.raises(AssertionError, match="size"):
        suite(BrokenPostprocessor, UndocumentedConfig).test_options_are_documented()
    with pytest.raises(AssertionError, match="change on their way"):
        suite(BrokenPostprocessor, UncheckedConfig).test_options_round_trip()


def test_a_registering_module_that_imports_torch_fails_its_check() -> None:
    heavy = suite(BrokenPostprocessor, HeavyConfig)
    with pytest.raises(AssertionError, match="imports torch"):
        heavy.test_import_is_light()


@dataclass
class HeavyConfig(NothingConfig):
    """Options that seem to be defined in a module that imports torch."""


HeavyConfig.__module__ = "pipeline_kit.testing.stages"


@dataclass
class NeedsWordsConfig:
    """An option without a default."""

    words: list[str] = option(REQUIRED, "words to look for")


def test_required_options_are_checked_and_given() -> None:
    needy = suite(BrokenPostprocessor, NeedsWordsConfig)
    with pytest.raises(AssertionError, match="words"):
        needy.test_options_round_trip()
    type(needy).options = {"words": ["spam"]}
    needy.test_options_round_trip()
    needy.test_missing_option_is_refused()
    needy.test_mistyped_option_is_refused()


def test_a_stage_that_is_not_registered_says_so() -> None:
    class Missing(PostprocessorConformance):
        stage = "clasification"

    with pytest.raises(RegistryError, match="Did you mean 'classification'"):
        Missing().test_registered()


def test_an_expected_failure_is_marked_strictly_and_only_there() -> None:
    class Excused(PostprocessorConformance):
        stage = "classification"
        xfail: ClassVar = {"deterministic": "because"}

    marks = getattr(Excused.test_deterministic, "pytestmark", [])
    assert [(mark.name, mark.kwargs) for mark in marks] == [("xfail", {"reason": "because", "strict": True})]
    assert not getattr(PostprocessorConformance.test_deterministic, "pytestmark", [])


def test_an_expected_failure_of_no_check_is_refused() -> None:
    with pytest.raises(TypeError, match="Did you mean 'deterministic'"):
        type("Excused", (PostprocessorConformance,), {"stage": "x", "xfail": {"determinstic": "because"}})


@pytest.mark.parametrize(
    ("architecture", "head", "said"),
    [
        ("berrt", "base", "'berrt' is none of albert, .*Did you mean 'bert'"),
        ("bert", "causal", "'causal' is none of .*Did you mean 'causal-lm'"),
        ("gpt2", "masked-lm", "transformers puts no head 'masked-lm' on 'gpt2'"),
    ],
)
def test_a_checkpoint_that_cannot_be_made_is_refused(architecture: str, head: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_checkpoint(tmp_path, architecture, head=head)


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["testing", str(tmp_path), "--head", "masked-lm", "--architecture", "gpt2"])
    with pytest.raises(SystemExit):
        command.main()
    assert "error: transformers puts no head 'masked-lm' on 'gpt2'" in capsys.readouterr().err


def test_the_tiny_context_names_labels_and_config() -> None:
    context = tiny_stage_context(labels=["a", "b"], config={"problem_type": "regression"})
    assert context.checkpoint.labels == ("a", "b")
    assert context.checkpoint.config["problem_type"] == "regression"
    assert isinstance(context.tokenizer, WordTokenizer)
