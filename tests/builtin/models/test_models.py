"""``model=hf``: what it loads and how, and what it gives for padded batches."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import transformers
from harness import checkpoint
from model_helpers import (
    HEAD,
    ROWS,
    SIDES,
    batch_of,
    change,
    checkpoint_of,
    largest_difference,
    load,
    reference_states,
    rows_of,
)
from safetensors.torch import load_file, save_file

from pipeline_kit.builtin.models.hf import stage as hf
from pipeline_kit.builtin.models.hf.batches import KNOWN_FAMILIES, inputs_of, known_sides, network_inputs, probe_sides
from pipeline_kit.builtin.models.hf.stage import HfModel
from pipeline_kit.builtin.models.options import HfModelConfig
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Device, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import ConfigError
from pipeline_kit.testing.checkpoints import ARCHITECTURES

BASES: tuple[tuple[str, tuple[Side, ...]], ...] = (
    *((name, SIDES) for name in ("albert", "bert", "distilbert", "electra", "gpt2", "llama", "mpnet", "qwen2")),
    *((name, SIDES) for name in ("roberta", "t5", "xlnet")),
    *((name, ("right",)) for name in ("bart", "roformer")),
    *((name, ()) for name in ("convbert", "fnet")),
)
"""Architectures whose last hidden states are compared, and the sides on which they may be padded."""


@pytest.mark.parametrize(("architecture", "sides"), BASES)
def test_base_gives_the_states_of_each_row_alone(architecture: str, sides: tuple[Side, ...]) -> None:
    folder = checkpoint(architecture, head="base")
    model = load(folder, "base")
    expected = reference_states(folder, ROWS)
    assert model.safe_padding_sides == frozenset(sides)
    assert largest_difference([rows_of(model, batch_of([row]))[0] for row in ROWS], expected) <= model.tolerance
    for side in sides:
        output = model.forward(batch_of(ROWS, side))
        assert output.per_token == {"last_hidden_state"}
        assert largest_difference(rows_of(model, batch_of(ROWS, side, width=20)), expected) <= model.tolerance


def test_loading_is_quiet_and_leaves_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = change(checkpoint(), tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.bias": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    logger = logging.getLogger("transformers")
    before = (logger.level, transformers.utils.logging.is_progress_bar_enabled())
    load(folder)
    load(checkpoint("longformer"))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert before == (logger.level, transformers.utils.logging.is_progress_bar_enabled())


def test_nothing_can_be_trained() -> None:
    model = load(checkpoint())
    output = model.forward(batch_of(ROWS))["logits"]
    assert not output.requires_grad
    assert not model._network.training
    assert not any(weight.requires_grad for weight in model._network.parameters())


def test_the_options_head_wins_over_the_tasks() -> None:
    context = StageContext(checkpoint_of(checkpoint()), Device(threads=1), "base")
    assert set(HfModel(HfModelConfig(head="sequence-classification"), context).forward(batch_of(ROWS)).tensors) == {
        "logits"
    }


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precision(dtype: str, torch_dtype: torch.dtype) -> None:
    expected = rows_of(load(checkpoint()), batch_of(ROWS))
    model = load(checkpoint(), dtype=dtype)
    assert model.forward(batch_of(ROWS))["logits"].dtype == torch_dtype
    assert model.tolerance > 1e-5
    assert largest_difference(rows_of(model, batch_of(ROWS)), expected) <= model.tolerance
    assert load(checkpoint("gpt2"), dtype=dtype).safe_padding_sides == {"right", "left"}
    assert load(checkpoint("convbert"), dtype=dtype).safe_padding_sides == frozenset()


def test_attention_kernels() -> None:
    assert load(checkpoint())._network.config._attn_implementation == "sdpa"
    assert load(checkpoint("squeezebert"))._network.config._attn_implementation == "eager"
    eager = load(checkpoint(), attn_implementation="eager")
    assert eager._network.config._attn_implementation == "eager"
    assert largest_difference(rows_of(eager, batch_of(ROWS)), rows_of(load(checkpoint()), batch_of(ROWS))) <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "kernel", "words"),
    [
        ("squeezebert", "sdpa", ["model.attn_implementation", "'sdpa'", "squeezebert", "allowed: eager"]),
        ("bert", "flash_attention_2", ["on cpu in float32", "allowed: sdpa, eager", "device=cuda", "bfloat16"]),
    ],
)
def test_a_kernel_that_is_not_there(architecture: str, kernel: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(checkpoint(architecture), attn_implementation=kernel)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_checkpoint_cannot_name_a_kernel_or_more_output(tmp_path: Path) -> None:
    settings = {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"}
    more = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    model = load(change(checkpoint(), tmp_path / "copy", **settings, **more))
    assert model._network.config._attn_implementation == "sdpa"
    assert largest_difference(rows_of(model, batch_of(ROWS)), rows_of(load(checkpoint()), batch_of(ROWS))) == 0


def test_the_mask_is_left_out_when_there_is_no_padding() -> None:
    takes = inputs_of(load(checkpoint("gpt2"))._network)
    assert set(network_inputs(batch_of([ROWS[0]]), takes)) == {"input_ids", "use_cache"}
    given = network_inputs(batch_of(ROWS, "left"), takes)
    assert set(given) == {"input_ids", "use_cache", "attention_mask", "position_ids"}
    assert given["position_ids"][3].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3]
    assert "position_ids" not in network_inputs(batch_of(ROWS), takes)
    for family in ("roberta", "mpnet"):
        assert "position_ids" not in network_inputs(
            batch_of(ROWS, "left"), inputs_of(load(checkpoint(family))._network)
        )


@pytest.mark.parametrize(
    ("pad_token", "filler", "sides"), [("<|endoftext|>", 1, SIDES), (True, 7, SIDES), (False, 0, ("left",))]
)
def test_a_decoders_classifier_reads_the_last_token(
    pad_token: bool | str, filler: int, sides: tuple[Side, ...]
) -> None:
    """Also in texts of padding ids, with another filler than the network's own padding id, and without one."""
    folder = checkpoint("gpt2", pad_token=pad_token)
    model = load(folder)
    pad = model._network.config.pad_token_id
    some = 1 if pad in (None, -1) else pad
    rows = [*ROWS, (some,), (some, some, some), (40, 41, some), (some, 40, 41)]
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = [network(input_ids=torch.tensor([row])).logits[0].numpy() for row in rows]
    assert model.safe_padding_sides == frozenset(sides)
    for side in sides:
        assert largest_difference(rows_of(model, batch_of(rows, side, filler)), expected) <= 1e-5
    equal = [row for row in range(len(rows)) if len(rows[row]) == 3]
    found = rows_of(model, batch_of([rows[row] for row in equal]))
    assert largest_difference(found, [expected[row] for row in equal]) <= 1e-5


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_texts_and_pairs_share_a_batch(architecture: str) -> None:
    """The classifiers of BART and T5 refuse a batch in which the number of end tokens differs."""
    folder = checkpoint(architecture)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    end = network.config.eos_token_id
    rows = [(40, 41, end), (50, end, 51, 52, end), (60, end), (70, end, end, 71, 72, 73, 74, end), (80, 81, end)]
    with torch.inference_mode():
        expected = [network(input_ids=torch.tensor([row])).logits[0].numpy() for row in rows]
    batch = batch_of(rows, pad=network.config.pad_token_id)
    assert largest_difference(rows_of(load(folder), batch), expected) <= 1e-5


def test_big_bird_does_not_remember_short_batches() -> None:
    """Its attention depends on the length, and transformers' own model never returns to the sparse one."""
    folder = checkpoint("big_bird", max_positions=128)
    model = load(folder)
    assert model.safe_padding_sides == frozenset()
    transformers.utils.logging.set_verbosity_error()
    for length in (100, 5, 99, 44, 45):
        row = [10 + 7 * place % 190 for place in range(length)]
        fresh = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.inference_mode():
            expected = fresh(input_ids=torch.tensor([row])).logits.numpy()
        assert largest_difference(rows_of(model, batch_of([row, row]))[1:], expected) <= 1e-5


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_base_needs_the_encoder_alone(tmp_path: Path, architecture: str) -> None:
    source = checkpoint(architecture, head="base")
    folder = change(source, tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if not name.startswith("decoder.")},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    found = rows_of(load(folder, "base"), batch_of(ROWS))
    assert largest_difference(found, reference_states(source, ROWS)) <= 1e-5


@pytest.mark.parametrize("architecture", ["bert", "squeezebert"])
def test_base_needs_no_pooler(tmp_path: Path, architecture: str) -> None:
    source = checkpoint(architecture, head="base")
    folder = change(source, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert largest_difference(rows_of(load(folder, "base"), batch_of(ROWS)), reference_states(source, ROWS)) <= 1e-5


def test_an_output_is_not_written_to_again() -> None:
    model = load(checkpoint())
    first = model.forward(batch_of(ROWS))["logits"]
    kept = first.clone()
    model.forward(batch_of(ROWS[::-1]))
    assert torch.equal(first, kept)


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
