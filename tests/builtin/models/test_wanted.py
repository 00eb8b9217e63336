"""The head of a masked language model, run on the wanted tokens alone: the same numbers as everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import checkpoint
from model_helpers import ROWS, batch_of, load
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from pipeline_kit.builtin.models.hf.batches import sample_batch
from pipeline_kit.builtin.models.hf.stage import HfModel
from pipeline_kit.contract.types import Device, ModelOutput, Side
from pipeline_kit.testing.checkpoints import ARCHITECTURES

MASKED = sorted(name for name in ARCHITECTURES if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def model_of(architecture: str) -> HfModel:
    return load(checkpoint(architecture, head="masked-lm"), "masked-lm")


@pytest.mark.parametrize("architecture", MASKED)
def test_wanted_tokens_have_the_logits_of_the_whole_network(architecture: str) -> None:
    model = model_of(architecture)
    sides: list[Side] = sorted(model.safe_padding_sides)
    for side in sides or ["right"]:
        batch = batch_of(ROWS if sides else [ROWS[0]] * 3, side)
        wanted = batch.attention_mask.bool() & (batch.input_ids % 3 == 0)
        wanted[0] = batch.attention_mask[0].bool()
        wanted[1] = False
        some, whole = model.forward(replace(batch, wanted=wanted)), model.forward(batch)
        assert not some.per_token, "the head ran on all tokens"
        assert some["logits"].shape[:2] == (len(batch.lengths), int(wanted.sum(1).max()))
        assert torch.allclose(some.at("logits", wanted), whole.at("logits", wanted), rtol=0, atol=1e-5)


def test_a_batch_may_want_nothing() -> None:
    model, batch = model_of("bert"), batch_of(ROWS)
    nothing = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    output = model.forward(replace(batch, wanted=nothing))
    assert output.at("logits", nothing).shape == (0, output["logits"].shape[2])
    assert bool(output["logits"].isfinite().all())


def test_padding_never_reaches_the_head() -> None:
    model, batch = model_of("bert"), batch_of(ROWS)
    hook = model._network.bert.encoder.register_forward_hook(
        lambda _, __, output: output.__class__(output[0].masked_fill(batch.attention_mask[:, :, None] == 0, torch.nan))
    )
    wanted = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    wanted[int(batch.lengths.argmax())] = True
    try:
        assert bool(model.forward(replace(batch, wanted=wanted))["logits"].isfinite().all())
    finally:
        hook.remove()


class Mixing(torch.nn.Module):
    """A head in which a token sees its neighbours."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(states - states.mean(dim=1, keepdim=True))
        return logits


class Fixed(Mixing):
    """A head for one number of tokens."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if states.shape[1] != 11:
            raise ValueError("eleven tokens")
        return super().forward(states)


@pytest.mark.parametrize("head", [Mixing, Fixed])
def test_a_head_that_needs_all_tokens_gets_them(head: type[Mixing]) -> None:
    model = model_of("bert")
    sample = sample_batch(model._network.config, Device())
    assert model._selects_tokens(sample)
    model._network.cls = head(model._network.cls)
    assert not model._selects_tokens(sample)


def test_outputs_are_read_alike_whether_all_or_some_are_there() -> None:
    wanted = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    whole = torch.arange(9.0).reshape(3, 3, 1)
    some = torch.tensor([[1.0, 2.0], [99.0, 99.0], [6.0, 99.0]])[:, :, None]
    expected = torch.tensor([[1.0], [2.0], [6.0]])
    assert torch.equal(ModelOutput({"x": whole}, frozenset({"x"})).at("x", wanted), expected)
    assert torch.equal(ModelOutput({"x": some}).at("x", wanted), expected)
