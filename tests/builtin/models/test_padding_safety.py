"""Which padding sides are safe: looked up for common families, tried out for the others."""

from __future__ import annotations

import pytest
from harness import checkpoint
from model_helpers import HEAD, load

from pipeline_kit.builtin.models.hf import stage as hf
from pipeline_kit.builtin.models.hf.batches import KNOWN_FAMILIES, known_sides, probe_sides
from pipeline_kit.contract.types import Device, ModelOutput, Side, TokenBatch
from pipeline_kit.testing.checkpoints import ARCHITECTURES


@pytest.mark.parametrize("head", ["base", HEAD])
@pytest.mark.parametrize("architecture", sorted(KNOWN_FAMILIES & set(ARCHITECTURES)))
def test_what_is_known_about_padding_is_what_a_trial_finds(architecture: str, head: str) -> None:
    model = load(checkpoint(architecture), head)
    config = model._network.config
    assert known_sides(config, head) == probe_sides(model.forward, config, Device(), None)


def test_a_leak_is_found() -> None:
    config = load(checkpoint())._network.config

    def forward(batch: TokenBatch) -> ModelOutput:
        leak = 0.001 * (1 - batch.attention_mask).sum(1, keepdim=True) if batch.side == "left" else 0
        return ModelOutput({"logits": batch.lengths.max() * 0 + batch.input_ids[:, :1] * 0.0 + leak})

    assert probe_sides(forward, config, Device(), 0) == {"right"}


def test_common_families_are_not_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_trial(*_: object) -> frozenset[Side]:
        raise AssertionError("this family is known")

    monkeypatch.setattr(hf, "probe_sides", no_trial)
    load(checkpoint("bert"))
    with pytest.raises(AssertionError, match="known"):
        load(checkpoint("gpt2"))
