"""model.unpadded: the layers see a batch's tokens alone, and its answers are those with padding."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import HEAD, ROWS, SIDES, Make, batch_of, largest_difference, load, maker, rows_of

import pipeline_kit as pk
from pipeline_kit.builtin.models.hf.stage import HfModel
from pipeline_kit.builtin.models.kernels import unpadded
from pipeline_kit.builtin.models.kernels import unpadded as unpadded_rows
from pipeline_kit.builtin.models.kernels.linears import can_pack
from pipeline_kit.builtin.models.kernels.unpadded import RUNNING
from pipeline_kit.contract.types import Device, Side
from pipeline_kit.errors import ConfigError

ENCODERS = ("albert", "bert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta")
DECODERS = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3")
HEADS = ("base", "masked-lm", "multiple-choice", "question-answering", HEAD, "token-classification")
LONG = (*ROWS, tuple(range(40, 70)), (50, 60, 70, 80), (90,))
OPTIONS: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": 8}}
PAIRS: dict[tuple[str, str], tuple[HfModel, HfModel]] = {}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    return maker(tmp_path_factory)


def pair(make: Make, architecture: str, head: str = "base") -> tuple[HfModel, HfModel]:
    """The model with padding, and without."""
    if (architecture, head) not in PAIRS:
        folder = make(architecture, head=HEAD if head == "base" else head, **OPTIONS.get(architecture, {}))
        PAIRS[architecture, head] = load(folder, head), load(folder, head, unpadded=True)
    return PAIRS[architecture, head]


def filler(model: HfModel) -> int:
    return max(model._network.config.get_text_config().pad_token_id or 0, 0)


def difference(plain: HfModel, other: HfModel, rows: Any, side: Side = "right", width: int = 1) -> float:
    batch = batch_of(rows, side, filler(plain), width)
    return largest_difference(rows_of(other, batch), rows_of(plain, batch))


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS, "bart", "mbart"])
def test_hidden_states_are_those_with_padding(make: Make, architecture: str) -> None:
    plain, other = pair(make, architecture)
    assert (plain.details["unpadded"], other.details["unpadded"]) == (False, "sdpa")
    assert plain.supported_sides == other.supported_sides
    for side in plain.supported_sides:
        assert difference(plain, other, LONG, side) < 1e-5
        assert difference(plain, other, LONG, side, width=40) < 1e-5


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_every_head_gives_the_same(make: Make, architecture: str, head: str) -> None:
    plain, other = pair(make, architecture, head)
    for side in plain.supported_sides:
        assert difference(plain, other, LONG, side) < 1e-5


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral"])
def test_a_decoder_that_classifies_gives_the_same(make: Make, architecture: str) -> None:
    plain, other = pair(make, architecture, HEAD)
    for side in plain.supported_sides:
        assert difference(plain, other, LONG, side) < 1e-5
        assert difference(plain, other, [*ROWS, (filler(plain),) * 3], side) < 1e-5


@pytest.mark.parametrize("architecture", ["bert", "llama", "modernbert", "mistral"])
@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    rows=st.lists(st.lists(st.integers(30, 99), min_size=1, max_size=20), min_size=1, max_size=7),
    side=st.sampled_from(SIDES),
    width=st.integers(1, 24),
)
def test_any_batch_in_any_order(make: Make, architecture: str, rows: list[list[int]], side: Side, width: int) -> None:
    plain, other = pair(make, architecture)
    assert difference(plain, other, rows, side, width) < 1e-5


def test_layers_see_no_padding(make: Make) -> None:
    _, other = pair(make, "bert")
    seen: list[tuple[int, ...]] = []
    layer = other._network.encoder.layer[1].intermediate
    hook = layer.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[:2])))
    try:
        other.forward(batch_of(ROWS, width=30))
        other.forward(batch_of(ROWS[:1], width=30))
        other.forward(batch_of([ROWS[0]] * 4))
    finally:
        hook.remove()
    assert seen == [(1, sum(map(len, ROWS))), (1, 3), (4, 3)]
    assert RUNNING.get() is None


def test_two_threads_may_run_batches_at_once(make: Make) -> None:
    plain, other = pair(make, "modernbert")
    batches = [batch_of(ROWS, "right", filler(plain)), batch_of(LONG[3:], "left", filler(plain), 40)]
    both = threading.Barrier(2, timeout=30)

    def wait(module: Any, args: Any, output: Any) -> None:
        both.wait()

    found: dict[int, Any] = {}
    hooks = [layer.register_forward_hook(wait) for layer in other._network.layers]
    try:
        threads = [
            threading.Thread(target=lambda n=number: found.update({n: rows_of(other, batches[n])}))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for hook in hooks:
            hook.remove()
    for number, batch in enumerate(batches):
        assert largest_difference(found[number], rows_of(plain, batch)) < 1e-5


def test_a_failed_batch_leaves_nothing_behind(make: Make) -> None:
    plain, other = pair(make, "bert")
    with pytest.raises(IndexError):
        other.forward(batch_of([[10**6], [5, 6]]))
    assert RUNNING.get() is None
    assert difference(plain, other, ROWS) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "head", "why"),
    [
        ("convbert", "base", "padding changes its answers"),
        ("deberta-v2", "base", "its attention is 'eager', not 'sdpa'"),
        ("bart", HEAD, "it has 2 stacks of layers"),
        ("t5", "base", "its layers cannot run on a packed batch: RuntimeError"),
    ],
)
def test_an_architecture_that_cannot_is_refused(make: Make, architecture: str, head: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        load(make(architecture), head, unpadded=True)
    message = str(raised.value)
    assert message.startswith(f"model.unpadded: a {architecture} (")
    assert "leave model.unpadded out" in message


def test_another_attention_kernel_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="its attention is 'eager'"):
        load(make("bert"), unpadded=True, attn_implementation="eager")


def test_answers_that_change_are_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_group(*args: Any) -> Any:
        rows = real(*args)
        rows.groups = ((0, 1, len(rows.places)),)
        return rows

    real = unpadded_rows.rows_of
    monkeypatch.setattr(unpadded, "rows_of", one_group)
    with pytest.raises(ConfigError, match="its answers change"):
        load(make("bert"), unpadded=True)


def test_the_network_is_as_before_when_it_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(make("bert"), "base")
    before = rows_of(model, batch_of(ROWS))
    monkeypatch.setattr(unpadded, "outputs_match", lambda *_: False)
    with pytest.raises(ConfigError, match="its answers change"):
        unpadded.Unpadded(model._network, model.forward, Device(), model.supported_sides, limit=64)
    assert model.details["attn_implementation"] == "sdpa"
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in model._network.encoder.layer)
    assert largest_difference(rows_of(model, batch_of(ROWS)), before) == 0


def varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, ends_k: torch.Tensor,
    longest: int, longest_k: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """What torch's kernel does by its documentation: so many tokens behind and ahead of each, -1 for all."""
    assert ends.dtype == torch.int32
    assert torch.equal(ends, ends_k)
    assert longest == longest_k == int(ends.diff().max())
    result = torch.empty_like(query)
    behind, ahead = (longest if size < 0 else size for size in window_size)
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        away = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        found = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=(away >= -behind) & (away <= ahead), scale=scale, enable_gqa=enable_gqa
        )
        result[start:end] = found[0].transpose(0, 1)
    return result


@pytest.mark.parametrize("architecture", ["bert", "llama", "modernbert", "mistral"])
def test_all_rows_in_one_kernel(make: Make, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpadded, "varlen_kernel", lambda device: varlen)
    plain, _ = pair(make, architecture)
    other = load(make(architecture, head=HEAD, **OPTIONS.get(architecture, {})), "base", unpadded=True)
    assert other.details["unpadded"] == "varlen"
    for side in SIDES:
        assert difference(plain, other, LONG, side) < 1e-5


@pytest.mark.parametrize("fails", [True, False])
def test_a_kernel_that_fails_or_errs_is_not_used(make: Make, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if fails:
            raise RuntimeError("no kernel image is available")
        return query

    monkeypatch.setattr(unpadded, "varlen_kernel", lambda device: kernel)
    other = load(make("bert", head=HEAD), "base", unpadded=True)
    assert other.details["unpadded"] == "sdpa"
    assert difference(pair(make, "bert")[0], other, LONG) < 1e-5


@pytest.mark.skipif(not can_pack(Device()), reason="this build of torch has no oneDNN")
def test_packed_layers_go_with_it(make: Make) -> None:
    plain, _ = pair(make, "bert")
    other = load(make("bert", head=HEAD), "base", unpadded=True, linear="packed")
    assert other.details["packed_linears"] > 0
    assert difference(plain, other, LONG) < 1e-5


def test_bfloat16_goes_with_it(make: Make) -> None:
    folder = make("modernbert", head=HEAD)
    plain, other = load(folder, HEAD, "bfloat16"), load(folder, HEAD, "bfloat16", unpadded=True)
    assert difference(plain, other, LONG) < 0.05


def test_the_option_reaches_the_model(make: Make) -> None:
    options = (f"checkpoint.path={make('roberta')}", "device=cpu")
    texts = ["I love this movie.", "bad", "It was a terrible film with a dull plot and no end!"]
    plain, other = pk.load(*options), pk.load(*options, "model.unpadded=true")
    assert other.description["model"]["unpadded"] == "sdpa"
    for left, right in zip(plain(texts), other(texts), strict=True):
        assert (left["label"], left["score"]) == (right["label"], pytest.approx(right["score"], abs=1e-5))
    with pytest.raises(ConfigError, match="choose one"):
        pk.load(*options, "model.unpadded=true", "model.compile=true")
