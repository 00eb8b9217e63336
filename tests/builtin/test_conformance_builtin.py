"""The conformance suites on every built-in stage, on the test kit's own, and on stages that are broken on purpose."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.options import REQUIRED, option
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.stages import Model, Postprocessor, StageContext, Tokenizer
from pipeline_kit.contract.types import Device, Encoding, Example, ModelOutput, Result, RowOutput, Side, TokenBatch
from pipeline_kit.errors import ExampleError, RegistryError
from pipeline_kit.testing import (
    ModelConformance,
    PostprocessorConformance,
    TinyModel,
    TinyModelConfig,
    TokenizerConformance,
    WordTokenizer,
    WordTokenizerConfig,
    register,
    tiny_checkpoint,
    tiny_stage_context,
)

# The test kit's own stages.


class TestWords(TokenizerConformance):
    stage = "words"
    register = register


class TestWordsInWindows(TokenizerConformance):
    stage = "words"
    register = staticmethod(register)
    options: ClassVar = {"max_length": 16, "overflow": "window", "overlap": 4, "padding_side": "left"}


class TestTiny(ModelConformance):
    stage = "tiny"
    register = register


# Built-in postprocessors.


class TestClassification(PostprocessorConformance):
    stage = "classification"


class TestClassificationOfAllLabels(PostprocessorConformance):
    stage = "classification"
    options: ClassVar = {"top_k": None, "function": "sigmoid", "thresholds": {"POSITIVE": 0.5}, "merge": "max"}


class TestPooling(PostprocessorConformance):
    stage = "pooling"


class TestPoolingByPlace(PostprocessorConformance):
    stage = "pooling"
    options: ClassVar = {"pooling": "weighted_mean", "normalize": False}


class TestFeatures(PostprocessorConformance):
    stage = "features"


class TestFeaturesOfText(PostprocessorConformance):
    stage = "features"
    options: ClassVar = {"special_tokens": False}


class TestLogits(PostprocessorConformance):
    stage = "logits"


# Built-in tokenizers and models, on tiny checkpoints.


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a tiny checkpoint by architecture and head, written once."""
    root = tmp_path_factory.mktemp("conformance")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            architecture, _, head = name.partition(" ")
            if architecture == "static":
                static_checkpoint(folder)
            else:
                tiny_checkpoint(folder, architecture, head=head)
        return folder

    return make


def static_checkpoint(folder: Path) -> None:
    """Write static embeddings of 40 tokens with a head for two labels."""
    folder.mkdir()
    settings = {"model_type": "static", "vocab_size": 40, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}
    (folder / "config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    sizes = {"embeddings.weight": (40, 6), "classifier.weight": (2, 6), "classifier.bias": (2,)}
    weights = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    save_file(weights, folder / "model.safetensors")


class OnCheckpoint:
    """Mixed into a suite: its stage is built on a tiny checkpoint."""

    checkpoint: ClassVar[str] = "bert sequence-classification"
    head: ClassVar[str] = "sequence-classification"
    folder: Path

    @pytest.fixture(autouse=True)
    def _make_folder(self, checkpoints: Callable[[str], Path]) -> None:
        self.folder = checkpoints(self.checkpoint)

    def context(self, device: Device | None = None) -> StageContext:
        found = resolve_checkpoint(CheckpointConfig(path=str(self.folder)))
        return StageContext(found, device or Device(), self.head)


class TestHfTokenizer(OnCheckpoint, TokenizerConformance):
    stage = "hf"


class TestHfTokenizerOfDecoder(OnCheckpoint, TokenizerConformance):
    stage = "hf"
    checkpoint = "gpt2 sequence-classification"


class TestHfTokenizerInWindows(OnCheckpoint, TokenizerConformance):
    stage = "hf"
    options: ClassVar = {"overflow": "window", "max_length": 16, "overlap": 4}


class TestTokenizersJson(OnCheckpoint, TokenizerConformance):
    stage = "tokenizers_json"


class TestHfModel(OnCheckpoint, ModelConformance):
    stage = "hf"


class TestHfModelWithoutHead(OnCheckpoint, ModelConformance):
    stage = "hf"
    head = "base"


class TestHfModelOfDecoder(OnCheckpoint, ModelConformance):
    stage = "hf"
    checkpoint = "gpt2 sequence-classification"


class TestHfModelThatLeaksPadding(OnCheckpoint, ModelConformance):
    stage = "hf"
    checkpoint = "convbert sequence-classification"
    head = "base"


class TestStaticModel(OnCheckpoint, ModelConformance):
    stage = "static"
    checkpoint = "static"


class TestStaticModelWithoutHead(OnCheckpoint, ModelConformance):
    stage = "static"
    checkpoint = "static"
    head = "base"


# The suites can fail: each of these stages is broken in one way, and the check that is there for it must see it.


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


class DropsAnExample(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return self.inner.encode(examples)[:-1]


class EncodesBackwards(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return self.inner.encode(examples)[::-1]


class SeesOtherExamples(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return [replace(e, input_ids=[len(examples), *e.input_ids[1:]]) for e in self.inner.encode(examples)]


class IgnoresMaxLength(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return WordTokenizer(WordTokenizerConfig(max_length=None)).encode(examples)


class CutsSilently(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return [replace(e, truncated=0) for e in self.inner.encode(examples)]


class MutatesExamples(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        found = self.inner.encode(examples)
        for example in examples:
            if isinstance(example, dict):
                example["seen"] = True
        return found


class RaisesValueError(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        try:
            return self.inner.encode(examples)
        except ExampleError as error:
            raise ValueError("no") from error


class EmptyForEmptyText(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return [replace(e, input_ids=[]) if len(e.input_ids) == 2 else e for e in self.inner.encode(examples)]


class ShortMask(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return [replace(e, special_tokens_mask=[1]) for e in self.inner.encode(examples)]


class CountsCalls(BrokenTokenizer):
    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        call = next(self.calls)
        return [replace(e, input_ids=[*e.input_ids, call]) for e in self.inner.encode(examples)]


class DecodesToNumbers(BrokenTokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return list(ids)  # type: ignore[return-value]


class BrokenModel(Model):
    """Answers as TinyModel does, apart from the fault its class name tells."""

    def __init__(self, config: TinyModelConfig, context: StageContext) -> None:
        self.inner = TinyModel(config, context)

    @property
    def supported_sides(self) -> frozenset[Side]:
        return self.inner.supported_sides

    def forward(self, batch: TokenBatch) -> ModelOutput:
        output = self.inner.forward(batch)
        changed = self.change(output["logits"].clone(), batch)
        return ModelOutput({**output.tensors, "logits": changed}, output.per_token)

    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return logits


class DropsARow(BrokenModel):
    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return logits[1:]


class SeesOtherRows(BrokenModel):
    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return logits - logits.mean(dim=0)


class SeesPadding(BrokenModel):
    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return logits + batch.input_ids.shape[1]


class GivesNaN(BrokenModel):
    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return logits * torch.nan


class MutatesItsBatch(BrokenModel):
    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        batch.input_ids[0, 0] += 1
        return logits


class Guesses(BrokenModel):
    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return logits + torch.rand(1)


class ReusesItsMemory(BrokenModel):
    memory = torch.zeros(100, 3)

    def change(self, logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        self.memory[: len(logits)] = logits
        return self.memory[: len(logits)]


class AlwaysTheSame(BrokenModel):
    def forward(self, batch: TokenBatch) -> ModelOutput:
        return ModelOutput({"logits": torch.ones(len(batch.input_ids), 3)})


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


class DropsAResult(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        return results[1:]


class SeesOtherResults(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        best = max(result["score"] for result in results)
        return [{"score": result["score"] - best} for result in results]


class SortsResults(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        return sorted(results, key=lambda result: float(result["score"]))


class ReducesOverTheBatch(BrokenPostprocessor):
    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        return ModelOutput({"logits": output["logits"] / output["logits"].abs().max()})


class PoolsPadding(BrokenPostprocessor):
    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        return ModelOutput({"logits": output["last_hidden_state"].mean(dim=1)})


class MutatesOutputs(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        outputs[0][0]["logits"][0] = 0
        return results


class ReducesInPlace(BrokenPostprocessor):
    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        with torch.inference_mode():
            output["logits"].softmax(-1, dtype=torch.float32)
            output["logits"].mul_(2)
        return output


class GivesNaNResults(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        return [{"score": math.nan} for _ in results]


class GivesNumpy(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        return [{"score": np.float32(result["score"])} for result in results]


class PassesNaNOn(BrokenPostprocessor):
    def __call__(self, examples: Any, encodings: Any, outputs: Any) -> list[Result]:
        return [{"score": float(rows[0]["logits"][0])} for rows in outputs]


class LosesWindows(BrokenPostprocessor):
    def __call__(self, examples: Any, encodings: Any, outputs: Any) -> list[Result]:
        return [{"score": float(row["logits"][0])} for rows in outputs for row in rows]


class Remembers(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        self.seen.append(len(examples))
        return [{"score": result["score"], "calls": len(self.seen)} for result in results]


class SharesItsState(BrokenPostprocessor):
    made = 0

    def __init__(self, config: NothingConfig, context: StageContext) -> None:
        super().__init__(config, context)
        SharesItsState.made += 1

    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        return [{"score": result["score"] + SharesItsState.made} for result in results]


class ChangesShape(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        return [{**result, f"key{i}": 1} for i, result in enumerate(results)]


class FailsOnEmptyText(BrokenPostprocessor):
    def change(self, results: list[Result], examples: Sequence[Example], outputs: Any) -> list[Result]:
        if "" in examples:
            raise IndexError
        return results


class RequiresTooMuch(BrokenPostprocessor):
    requires = frozenset({"everything"})


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


@pytest.mark.parametrize(
    ("stage", "check"),
    [
        (DropsAnExample, "every_example_is_encoded_in_order"),
        (EncodesBackwards, "every_example_is_encoded_in_order"),
        (SeesOtherExamples, "batch_equals_one_by_one"),
        (IgnoresMaxLength, "max_length_holds"),
        (CutsSilently, "max_length_holds"),
        (MutatesExamples, "inputs_are_not_mutated"),
        (RaisesValueError, "bad_example_is_an_example_error"),
        (EmptyForEmptyText, "unicode_and_empty_text"),
        (ShortMask, "requested_fields_are_filled"),
        (CountsCalls, "deterministic"),
        (CountsCalls, "batch_equals_one_by_one"),
        (DecodesToNumbers, "decode_gives_text"),
        (DropsARow, "outputs_have_the_batch_first"),
        (SeesOtherRows, "batch_equals_one_by_one"),
        (SeesOtherRows, "equal_lengths_equal_one_by_one"),
        (SeesPadding, "batch_equals_one_by_one"),
        (SeesPadding, "more_padding_changes_nothing"),
        (GivesNaN, "outputs_are_finite_and_on_the_device"),
        (MutatesItsBatch, "inputs_are_not_mutated"),
        (Guesses, "deterministic"),
        (Guesses, "instances_are_independent"),
        (ReusesItsMemory, "outputs_are_not_written_to_again"),
        (AlwaysTheSame, "tokens_matter"),
        (DropsAResult, "one_result_per_example"),
        (DropsAResult, "windows_give_one_result"),
        (SeesOtherResults, "batch_equals_one_by_one"),
        (SortsResults, "order_is_kept"),
        (ReducesOverTheBatch, "reduce_is_row_wise"),
        (PoolsPadding, "reduce_is_row_wise"),
        (PoolsPadding, "padding_changes_nothing"),
        (MutatesOutputs, "inputs_are_not_mutated"),
        (ReducesInPlace, "inputs_are_not_mutated"),
        (GivesNaNResults, "results_are_json"),
        (GivesNumpy, "results_are_json"),
        (PassesNaNOn, "bad_numbers_are_an_example_error"),
        (LosesWindows, "windows_give_one_result"),
        (Remembers, "deterministic"),
        (SharesItsState, "instances_are_independent"),
        (ChangesShape, "one_result_per_example"),
        (RequiresTooMuch, "required_fields_are_known"),
    ],
)
def test_a_broken_stage_fails_its_check(stage: type[Any], check: str) -> None:
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


def test_the_tiny_context_names_labels_and_config() -> None:
    context = tiny_stage_context(labels=["a", "b"], config={"problem_type": "regression"})
    assert context.checkpoint.labels == ("a", "b")
    assert context.checkpoint.config["problem_type"] == "regression"
    assert isinstance(context.tokenizer, WordTokenizer)
