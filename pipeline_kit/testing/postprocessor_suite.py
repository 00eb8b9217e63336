"""The conformance suite for postprocessors."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from pipeline_kit.contract.column_types import ColumnType, holds
from pipeline_kit.contract.stages import ENCODING_FIELDS, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Device, Encoding, Example, ModelOutput, Result, RowOutput, Side, TokenBatch
from pipeline_kit.errors import ExampleError, for_message
from pipeline_kit.runtime.padding import PaddingPolicy, collate, split_rows
from pipeline_kit.testing.kit import TinyModelConfig, WordTokenizerConfig
from pipeline_kit.testing.stages import TinyModel, WordTokenizer, tiny_stage_context
from pipeline_kit.testing.suite import HARD_TEXTS, StageConformance, cuda_or_skip
from pipeline_kit.testing.tokenizer_suite import assert_same

LONG = "A text of twenty words or a few more, so that it falls into several windows of the tiny tokenizer here."


class PostprocessorConformance(StageConformance):
    """Checks a postprocessor against the contract of :class:`pipeline_kit.contract.stages.Postprocessor`.

    ::

        class TestKeyword(PostprocessorConformance):
            stage = "keyword"
            options = {"words": ["spam"]}

    It runs behind a :class:`~pipeline_kit.testing.WordTokenizer` whose windows have 16 tokens and a
    :class:`~pipeline_kit.testing.TinyModel`; override `examples` and :meth:`example` for a task with fields of
    its own, and :meth:`encode` or :meth:`forward` for one that needs other encodings or tensors.

    :cvar head: the head the model has, see :class:`~pipeline_kit.testing.TinyModel`.
    :cvar cuda_tolerance: how far the results on a GPU may be from those on the CPU.
    """

    kind: ClassVar[str] = "postprocessor"
    interface: ClassVar[type[Any]] = Postprocessor
    head: ClassVar[str] = "base"
    cuda_tolerance: ClassVar[float] = 1e-3

    def context(self, device: Device | None = None) -> StageContext:
        """Return what the stage is built with."""
        return tiny_stage_context(device=device, head=self.head)

    def example(self, text: str) -> Example:
        """Return an example that holds `text`."""
        return text

    def encode(self, examples: Sequence[Example]) -> list[list[Encoding]]:
        """Return the encodings of what ``prepare`` makes of each example, all fields filled."""
        stage = self.build()
        tokenizer = WordTokenizer(WordTokenizerConfig(max_length=16, overflow="window", overlap=4))
        return [
            [
                replace(encoding, example=place, part=part)
                for part, text in enumerate(stage.prepare(example))
                for encoding in tokenizer.encode([text])
            ]
            for place, example in enumerate(examples)
        ]

    def forward(self, batch: TokenBatch, device: Device | None = None) -> ModelOutput:
        """Return the model's output."""
        return TinyModel(TinyModelConfig(), self.context(device)).forward(batch)

    def outputs(
        self, stage: Postprocessor, groups: Sequence[Sequence[Encoding]], side: Side = "right", width: int = 1
    ) -> list[list[RowOutput]]:
        """Run the model and ``reduce`` on all encodings in one batch; return the rows per example."""
        batch = _batch([e for windows in groups for e in windows], side, width)
        rows = iter(split_rows(stage.reduce(self.forward(batch), batch), batch))
        return [[next(rows) for _ in windows] for windows in groups]

    def results(
        self, stage: Postprocessor, examples: Sequence[Example], side: Side = "right", width: int = 1
    ) -> list[Result]:
        """Run tokenizer, model and `stage` on `examples` in one batch."""
        groups = self.encode(examples)
        return stage(examples, groups, self.outputs(stage, groups, side, width))

    def use(self, stage: Postprocessor) -> None:
        """Run all steps."""
        self.results(stage, self.examples)

    def test_no_examples(self) -> None:
        """``[]`` returns ``[]``."""
        assert_same(self.build()([], [], []), [], 0, "results of no examples")

    def test_required_fields_are_known(self) -> None:
        """`required_fields` names fields that encodings have on request."""
        unknown = sorted(self.spec().load().required_fields - ENCODING_FIELDS)
        assert not unknown, f"required_fields names {unknown}; there are: {', '.join(sorted(ENCODING_FIELDS))}"

    def test_one_result_per_example(self) -> None:
        """There is exactly one dict per example, and all have the same keys."""
        results = self.results(self.build(), self.examples)
        assert len(results) == len(self.examples), f"{len(results)} results for {len(self.examples)} examples"
        for result in results:
            assert isinstance(result, dict), f"a result is {type(result).__name__}, not a dict"
            assert set(result) == set(results[0]), f"results differ in keys: {sorted(result)}, {sorted(results[0])}"

    def test_batch_equals_one_by_one(self) -> None:
        """A result does not depend on the examples beside it."""
        stage = self.build()
        alone = [result for example in self.examples for result in self.results(stage, [example])]
        assert_same(self.results(stage, self.examples), alone, self.tolerance, "results of a batch and alone")

    def test_order_is_kept(self) -> None:
        """Examples in reverse have the same results in reverse."""
        stage = self.build()
        forward = self.results(stage, self.examples)
        backward = self.results(stage, list(reversed(self.examples)))
        assert_same(backward[::-1], forward, self.tolerance, "results of the examples in reverse")

    def test_reduce_is_row_wise(self) -> None:
        """A row that ``reduce`` returns depends on that row alone, whichever side padding is on."""
        stage = self.build()
        groups = [[e] for windows in self.encode(self.examples) for e in windows]
        alone = [self.outputs(stage, [group])[0] for group in groups]
        for side in ("right", "left"):
            together = self.outputs(stage, groups, side)
            assert_same(together, alone, self.tolerance, f"rows of reduce, padded on the {side} and alone")

    def test_padding_changes_nothing(self) -> None:
        """A result does not depend on the side or the amount of padding."""
        stage = self.build()
        expected = self.results(stage, self.examples)
        for side in ("right", "left"):
            found = self.results(stage, self.examples, side, 40)
            assert_same(found, expected, self.tolerance, f"results with more padding, on the {side}")

    def test_windows_give_one_result(self) -> None:
        """A long text in several windows has one result, beside short ones too."""
        stage = self.build()
        examples = [self.example(LONG), *self.examples, self.example(LONG)]
        results = self.results(stage, examples)
        assert len(results) == len(examples), f"{len(results)} results for {len(examples)} examples, two of them long"
        alone = [result for example in examples for result in self.results(stage, [example])]
        assert_same(results, alone, self.tolerance, "results of long and short texts together and alone")

    def test_a_window_that_comes_twice_changes_nothing(self) -> None:
        """Windows with the same outputs have the numbers of one: they are merged by a mean or a maximum, not a sum.

        Texts may be joined, and windows refused.
        """
        stage, examples = self.build(), self.examples[:1]
        groups = self.encode(examples)
        outputs = self.outputs(stage, groups)
        twice = []
        for encoding in groups[0]:
            whole = (0, sum(special == 0 for special in encoding.special_tokens_mask or ()))
            twice += [replace(encoding, window=window, token_span=whole) for window in range(2)]
        try:
            found = stage(examples, [twice], [[row for row in outputs[0] for _ in range(2)]])
        except ExampleError:
            return
        results = (*found, *stage(examples, groups, outputs))
        doubled, single = ({key: v for key, v in result.items() if not isinstance(v, str)} for result in results)
        assert_same(doubled, single, self.tolerance, "results of one window, twice and once")

    def test_unicode_and_empty_text(self) -> None:
        """Odd texts give a result or an ExampleError."""
        stage = self.build()
        for text in HARD_TEXTS:
            try:
                _assert_json(self.results(stage, [self.example(text)]))
            except ExampleError:
                continue

    def test_results_are_json(self) -> None:
        """Results are JSON values, without NaN or infinity, with the keys and types that `gives` names."""
        results = self.results(self.build(), [self.example(LONG), *self.examples])
        _assert_json(results)
        gives: Mapping[str, ColumnType] | None = self.spec().detail
        for result in results if gives is not None else ():
            _assert_columns(result, gives or {})

    def test_bad_numbers_are_an_example_error(self) -> None:
        """Where the model returns NaN, the example is refused, or the result does without."""
        stage = self.build()
        groups = self.encode(self.examples[:1])
        batch = _batch(groups[0])
        output = self.forward(batch)
        broken = {n: torch.full_like(t, torch.nan) if t.is_floating_point() else t for n, t in output.tensors.items()}
        try:
            rows = split_rows(stage.reduce(ModelOutput(broken, output.per_token), batch), batch)
            results = stage(self.examples[:1], groups, [rows])
        except ExampleError:
            return
        _assert_json(results)

    def test_inputs_are_not_mutated(self) -> None:
        """Both steps leave what they are given as it was."""
        stage = self.build()
        examples = copy.deepcopy(list(self.examples))
        groups = self.encode(examples)
        batch = _batch([e for windows in groups for e in windows])
        output = self.forward(batch)
        kept = {name: tensor.clone() for name, tensor in output.tensors.items()}
        stage.reduce(output, batch)
        assert_same(output.tensors, kept, 0, "the model's output after reduce")
        outputs = self.outputs(stage, groups)
        before = copy.deepcopy((groups, outputs))
        stage(examples, groups, outputs)
        assert_same(examples, list(self.examples), 0, "examples after the call")
        assert_same((groups, outputs), before, 0, "encodings and outputs after the call")

    def test_deterministic(self) -> None:
        """The same examples have the same results, whatever ran in between."""
        stage = self.build()
        first = copy.deepcopy(self.results(stage, self.examples))
        self.results(stage, [self.example(LONG)])
        assert_same(self.results(stage, self.examples), first, 0, "results of a second call")

    def test_instances_are_independent(self) -> None:
        """A second instance returns the same and changes nothing about the first."""
        stage = self.build()
        first = copy.deepcopy(self.results(stage, self.examples))
        assert_same(self.results(self.build(), self.examples), first, 0, "results of a second instance")
        assert_same(self.results(stage, self.examples), first, 0, "results after a second instance was used")

    def test_attribution_targets_are_numbers(self) -> None:
        """What `attribution_targets` names is one number for each variant of one of the example's encodings."""
        stage, labels = self.build(), self.context().checkpoint.labels
        examples = [self.example(LONG), *self.examples]
        groups = self.encode(examples)
        outputs = self.outputs(stage, groups)
        results = stage(examples, groups, outputs)
        for example, encodings, rows, result in zip(examples, groups, outputs, results, strict=True):
            twice = [_batch([encoding, encoding]) for encoding in encodings]
            raw = [split_rows(self.forward(batch), batch)[0] for batch in twice]
            for target in stage.attribution_targets(Seen(example, encodings, raw, rows, result, labels)) or ():
                assert 0 <= target.encoding < len(encodings), f"'{target.name}' is of encoding {target.encoding}"
                batch = twice[target.encoding]
                shape = list(target.value(self.forward(batch), batch).shape)
                assert shape == [2], f"'{target.name}' of two variants has the shape {shape}, not [2]"

    def test_cuda(self) -> None:
        """``reduce`` works on a GPU and returns what it returns on the CPU; skipped where there is none."""
        device = cuda_or_skip()
        groups = self.encode(self.examples)
        batch = _batch([e for windows in groups for e in windows], device=device.name)
        stage = self.build(self.context(device))
        rows = iter(split_rows(stage.reduce(self.forward(batch, device), batch), batch))
        found = stage(self.examples, groups, [[next(rows) for _ in windows] for windows in groups])
        expected = self.results(self.build(), self.examples)
        assert_same(found, expected, self.cuda_tolerance, "results on a GPU and on the CPU")


def _batch(encodings: Sequence[Encoding], side: Side = "right", width: int = 1, device: str = "cpu") -> TokenBatch:
    return collate(encodings, PaddingPolicy("max_length", side, 0, max_length=width), device)


def _assert_columns(result: Result, gives: Mapping[str, ColumnType]) -> None:
    kinds = {name.removesuffix("?"): kind for name, kind in gives.items()}
    missing = [name for name in gives if not name.endswith("?") and name not in result]
    more = [name for name in result if name not in kinds]
    assert not [*missing, *more], f"`gives` names {', '.join(gives)}, and a result has {', '.join(result)}"
    wrong = [name for name, value in result.items() if not holds(value, kinds[name])]
    assert not wrong, f"`gives` names '{wrong[0]}' as {kinds[wrong[0]]}, and a result has {result[wrong[0]]!r}"


def _assert_json(results: Sequence[Any]) -> None:
    for result in results:
        try:
            text = json.dumps(result, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"a result is not made of JSON values ({error}): {for_message(result)}") from error
        assert json.loads(text) == result, f"a result changes on its way through JSON: {for_message(result)}"
