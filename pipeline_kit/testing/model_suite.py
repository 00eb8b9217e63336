"""The conformance suite for models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline_kit.builtin.models.hf.heads import GENERATION_HEADS, HEAD_KINDS
from pipeline_kit.contract.stages import Model, StageContext
from pipeline_kit.contract.types import Device, Encoding, ModelOutput, RowOutput, Side, TokenBatch
from pipeline_kit.runtime.padding import PaddingPolicy, collate, split_rows
from pipeline_kit.testing.stages import tiny_stage_context
from pipeline_kit.testing.suite import StageConformance, cuda_or_skip
from pipeline_kit.testing.tokenizer_suite import assert_same


class ModelConformance(StageConformance):
    """Checks a model against the contract of :class:`pipeline_kit.contract.stages.Model`.

    The suite makes rows of random ids below the checkpoint's ``vocab_size`` (97 if it names none); override
    :meth:`encodings` for a model that takes only certain ones.

    :cvar head: the head that the context asks for.
    :cvar lengths: tokens of those rows.
    :cvar cuda_tolerance: how far the answers on a GPU may be from those on the CPU.
    """

    kind: ClassVar[str] = "model"
    head: ClassVar[str] = "sequence-classification"
    interface: ClassVar[type[Any]] = Model
    lengths: ClassVar[Sequence[int]] = (7, 2, 12, 3, 7, 1)
    cuda_tolerance: ClassVar[float] = 1e-3

    def encodings(self, lengths: Sequence[int]) -> list[Encoding]:
        """Return a row of each of these lengths; the same ones for the same lengths, no two alike."""
        config = self.context().checkpoint.config
        padding, size = config.get("pad_token_id") or 0, config.get("vocab_size", 97)
        ids = [i for i in range(min(3, size - 1), size) if i != padding]
        random = np.random.default_rng(0)
        return [Encoding(random.choice(ids, size=length).tolist()) for length in lengths]

    def batch(
        self, encodings: Sequence[Encoding], side: Side = "right", width: int = 1, device: str = "cpu"
    ) -> TokenBatch:
        """Pad `encodings` to their longest or to `width`, whichever is more."""
        padding = self.context().checkpoint.config.get("pad_token_id") or 0
        return collate(encodings, PaddingPolicy("max_length", side, padding, max_length=width), device)

    def rows(self, stage: Model, batch: TokenBatch) -> list[RowOutput]:
        """Run `stage` and cut its outputs into rows without padding."""
        return split_rows(stage.forward(batch), batch)

    def context(self, device: Device | None = None) -> StageContext:
        """Return what the model is built with; override it for one that needs a checkpoint's files."""
        return tiny_stage_context(device=device, head=self.head)

    def use(self, stage: Model) -> None:
        """Run a batch."""
        stage.forward(self.batch(self._one_length()))

    def test_outputs_are_those_of_the_head(self) -> None:
        """The tensors have the names that the context's head promises, by token or by row, and a score for each label.

        A head that this package does not know promises nothing here.
        """
        context = self.context()
        kind = HEAD_KINDS.get(context.head)
        if kind is None or context.head in GENERATION_HEADS:
            return
        output = self.build(context).forward(self.batch(self._one_length()))
        missing = sorted(set(kind.outputs) - set(output.tensors))
        assert not missing, f"head '{context.head}' promises {missing}, the model returns {sorted(output.tensors)}"
        for name in kind.outputs:
            assert (name in output.per_token) == kind.per_token, (
                f"'{name}' of head '{context.head}' is by {'token' if kind.per_token else 'row'}; see per_token"
            )
        if context.head in ("sequence-classification", "token-classification"):
            width, labels = output["logits"].shape[-1], len(context.checkpoint.labels)
            assert width == labels, f"'logits' has {width} numbers for the checkpoint's {labels} labels"

    def test_outputs_have_the_batch_first(self) -> None:
        """Each tensor's first dimension is B; T is the second of those in `per_token`, which all exist."""
        stage = self.build()
        for some in (self.encodings([5]), self._one_length()):
            batch = self.batch(some)
            output = stage.forward(batch)
            count, width = batch.input_ids.shape
            assert output.tensors, "forward returns no tensors"
            unknown = sorted(output.per_token - set(output.tensors))
            assert not unknown, f"per_token names {unknown}, which the model does not give"
            for name, tensor in output.tensors.items():
                shape = list(tensor.shape)
                assert shape[:1] == [count], f"'{name}' has the shape {shape} for {count} rows"
                if name in output.per_token:
                    assert shape[1:2] == [width], f"'{name}' has the shape {shape} for {width} tokens"

    def test_outputs_are_finite_and_on_the_device(self) -> None:
        """Floats are finite, need no gradient, and are where the batch is."""
        batch = self.batch(self._one_length())
        for name, tensor in self.build().forward(batch).tensors.items():
            assert not tensor.requires_grad, f"'{name}' needs a gradient; use torch.inference_mode()"
            assert tensor.device == batch.input_ids.device, f"'{name}' is on {tensor.device}"
            assert bool(torch.isfinite(tensor.float()).all()), f"'{name}' holds values that are not finite"

    def test_supported_sides(self) -> None:
        """`safe_padding_sides` and `tolerance` are of their types."""
        stage = self.build()
        assert stage.safe_padding_sides <= {"left", "right"}, f"safe_padding_sides is {stage.safe_padding_sides!r}"
        assert 0 < stage.tolerance < 1, f"tolerance is {stage.tolerance!r}"

    def test_batch_equals_one_by_one(self) -> None:
        """A row's answer does not depend on the rows beside it, on each side of padding that is supported."""
        stage = self.build()
        encodings = self.encodings(self.lengths)
        for side in sorted(stage.safe_padding_sides):
            together = self.rows(stage, self.batch(encodings, side))
            assert_same(together, self._alone(stage, encodings), self.tolerance, f"rows padded on the {side} and alone")

    def test_equal_lengths_equal_one_by_one(self) -> None:
        """The same for rows that need no padding."""
        stage = self.build()
        encodings = self._one_length()
        together = self.rows(stage, self.batch(encodings))
        assert_same(together, self._alone(stage, encodings), self.tolerance, "rows of a batch and alone")

    def test_more_padding_changes_nothing(self) -> None:
        """Padding beyond the longest row changes no answer."""
        stage = self.build()
        encodings = self.encodings(self.lengths)
        width = max(len(e.input_ids) for e in encodings) + 5
        for side in sorted(stage.safe_padding_sides):
            found = self.rows(stage, self.batch(encodings, side, width))
            expected = self.rows(stage, self.batch(encodings, side))
            assert_same(found, expected, self.tolerance, f"rows padded further on the {side}")

    def test_wanted_tokens(self) -> None:
        """A model that returns its outputs for the wanted tokens alone returns there what it returns for all."""
        stage = self.build()
        batch = self.batch(self._one_length())
        wanted = batch.input_ids % 2 == 0
        whole, some = stage.forward(batch), stage.forward(replace(batch, wanted=wanted))
        for name in sorted(whole.per_token):
            assert_same(some.at(name, wanted), whole.at(name, wanted), self.tolerance, f"'{name}' at wanted tokens")

    def test_order_does_not_matter(self) -> None:
        """Rows in reverse have the same answers in reverse."""
        stage = self.build()
        encodings = self._one_length()
        forward = self.rows(stage, self.batch(encodings))
        backward = self.rows(stage, self.batch(encodings[::-1]))
        assert_same(backward[::-1], forward, self.tolerance, "rows in reverse")

    def test_tokens_matter(self) -> None:
        """Other tokens give another answer."""
        stage = self.build()
        first, second = self._one_length()[:2]
        assert list(first.input_ids) != list(second.input_ids), "encodings() gives the same row twice"
        rows = self.rows(stage, self.batch([first, second]))
        same = all(np.array_equal(rows[0][name], rows[1][name]) for name in rows[0])
        assert not same, "the model returns one answer for two different rows"

    def test_inputs_are_not_mutated(self) -> None:
        """``forward`` leaves the batch's tensors as they were."""
        batch, twin = (self.batch(self._one_length()) for _ in range(2))
        self.build().forward(batch)
        for name in ("input_ids", "attention_mask", "token_type_ids", "lengths"):
            assert_same(getattr(batch, name), getattr(twin, name), 0, f"'{name}' after forward")

    def test_deterministic(self) -> None:
        """The same batch has the same answer, whatever ran in between."""
        stage = self.build()
        batch = self.batch(self._one_length())
        first = self.rows(stage, batch)
        self.rows(stage, self.batch(self.encodings([5])))
        assert_same(self.rows(stage, batch), first, 0, "rows of a second call")

    def test_outputs_are_not_written_to_again(self) -> None:
        """What a call returned does not change in the next one."""
        stage = self.build()
        encodings = self._one_length()
        output: ModelOutput = stage.forward(self.batch(encodings))
        kept = {name: tensor.clone().float() for name, tensor in output.tensors.items()}
        stage.forward(self.batch(encodings[::-1]))
        after = {name: tensor.float() for name, tensor in output.tensors.items()}
        assert_same(after, kept, 0, "an output after the next call")

    def test_instances_are_independent(self) -> None:
        """A second instance returns the same and changes nothing about the first."""
        stage = self.build()
        batch = self.batch(self._one_length())
        first = self.rows(stage, batch)
        assert_same(self.rows(self.build(), batch), first, 0, "rows of a second instance")
        assert_same(self.rows(stage, batch), first, 0, "rows after a second instance was used")

    def test_cuda(self) -> None:
        """On a GPU the answers are those of the CPU; skipped where there is none."""
        device = cuda_or_skip()
        encodings = self._one_length()
        stage = self.build(self.context(device))
        found = self.rows(stage, self.batch(encodings, device=device.name))
        expected = self.rows(self.build(), self.batch(encodings))
        assert_same(found, expected, self.cuda_tolerance, "rows on a GPU and on the CPU")

    def _one_length(self) -> list[Encoding]:
        """Return rows that need no padding."""
        return self.encodings([9, 9, 9])

    def _alone(self, stage: Model, encodings: Sequence[Encoding]) -> list[RowOutput]:
        return [self.rows(stage, self.batch([encoding]))[0] for encoding in encodings]
