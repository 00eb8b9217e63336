"""model.compile: the same answers through the compiler, few graphs, and the network as it is where that fails."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from harness import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from model_helpers import HEAD, ROWS, SIDES, batch_of, largest_difference, load, rows_of
from torch._dynamo.testing import CompileCounter

import pipeline_kit as pk
from pipeline_kit.builtin.models.hf.compiled import Buckets, CompiledNetwork, fill, wrap_layers_as_operators
from pipeline_kit.builtin.models.hf.linears import FusedLinear, can_pack
from pipeline_kit.builtin.models.hf.stage import HfModel
from pipeline_kit.contract.types import Device, Side

BATCHES: tuple[Sequence[Sequence[int]], ...] = (
    ROWS,
    ROWS[:1],
    ROWS[:3],
    [ROWS[3]] * 4,
    [range(40, 70), *ROWS, *ROWS],
    ROWS[1:2],
)
HEADS = ("base", "masked-lm", "multiple-choice", "question-answering", HEAD, "token-classification")
needs_onednn = pytest.mark.skipif(not can_pack(Device()), reason="this build of torch has no oneDNN")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the compiler itself, which takes long."""
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)


def bucketed(model: HfModel, limit: int | None = 64, see: Callable[..., Any] | None = None) -> HfModel:
    """Fill the batches of `model` up as on a GPU."""
    network = model._network
    filler = max(network.config.get_text_config().pad_token_id or 0, 0)
    model._compiled = CompiledNetwork(
        network, model._answers, Device(), model.safe_padding_sides, filler=filler, limit=limit, bucketed=True
    )
    if see is not None:
        network.register_forward_pre_hook(see, with_kwargs=True)
    return model


def difference(plain: HfModel, other: HfModel, rows: Any, side: Side, width: int = 1) -> float:
    batch = batch_of(rows, side, max(plain._network.config.get_text_config().pad_token_id or 0, 0), width)
    return largest_difference(rows_of(other, batch), rows_of(plain, batch))


@given(st.integers(1, 300), st.integers(1, 5000), st.one_of(st.none(), st.integers(8, 5000)))
def test_a_bucket_holds_the_batch_and_wastes_little(rows: int, width: int, limit: int | None) -> None:
    more, wider = Buckets(limit).shape(rows, width)
    assert rows <= more < 2 * rows or more == rows
    assert width <= wider <= max(16, 1.5 * width)
    assert limit is None or wider <= max(limit, width)
    assert Buckets(limit).shape(more, wider) == (more, wider)


def test_buckets_are_few() -> None:
    buckets = Buckets(512)
    shapes = {buckets.shape(rows, width) for width in range(1, 513) for rows in range(1, 1024) if rows * width <= 16384}
    assert len(shapes) <= 100


@pytest.mark.parametrize("side", SIDES)
def test_filling_up_adds_padding_and_copies(side: Side) -> None:
    batch = batch_of(((1, 2), (3, 4, 5)), side)
    filled = fill(batch, 4, 5, 9)
    inside = slice(0, 3) if side == "right" else slice(2, 5)
    outside = slice(3, 5) if side == "right" else slice(0, 2)
    assert filled.input_ids.shape == filled.attention_mask.shape == (4, 5)
    assert torch.equal(filled.input_ids[:2, inside], batch.input_ids)
    assert (filled.input_ids[:, outside] == 9).all()
    assert (filled.attention_mask[:, outside] == 0).all()
    assert torch.equal(filled.input_ids[2:], filled.input_ids[1:2].expand(2, -1))
    assert filled.attention_mask.sum(1).tolist() == filled.lengths.tolist() == [2, 3, 3, 3]
    assert filled.has_padding


@pytest.mark.parametrize(
    ("architecture", "head"),
    [*(("bert", head) for head in HEADS), ("llama", HEAD), ("llama", "token-classification"), ("roberta", "base")],
)
@pytest.mark.usefixtures("uncompiled")
def test_filled_up_batches_give_the_same(architecture: str, head: str) -> None:
    folder = checkpoint(architecture, head=head)
    plain, other = load(folder, head), bucketed(load(folder, head))
    for side in plain.safe_padding_sides:
        for rows in BATCHES:
            assert difference(plain, other, rows, side) < 1e-5
    assert other._compiled is not None
    assert other._compiled.failure is None


@pytest.mark.usefixtures("uncompiled")
def test_only_buckets_reach_the_network() -> None:
    shapes = []

    def see(module: Any, args: Any, given: dict[str, Any]) -> None:
        shapes.append((tuple(given["input_ids"].shape), "attention_mask" in given))

    other = bucketed(load(checkpoint(), HEAD), 40, see)
    for rows in BATCHES * 2:
        shapes.clear()
        other.forward(batch_of(rows))
        assert shapes[0] == (Buckets(40).shape(len(rows), max(map(len, rows))), True)
    assert len(shapes) == 1  # a shape that was met before is not tried out again
    other.forward(batch_of(ROWS, "left"))
    assert shapes[1] == ((4, 9), True)  # a classifier of BERT may not be padded on the left
    assert other._compiled is not None
    assert other._compiled.failure is None


@pytest.mark.parametrize("filled", [False, pytest.param(True, marks=pytest.mark.storm)])  # each takes ten seconds
def test_a_few_graphs_serve_all_batches(filled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    folder = checkpoint("distilbert", n_layers=1)
    plain, other = load(folder, "base"), load(folder, "base", compile=True)
    if filled:
        bucketed(other)
    for rows in (*BATCHES, *([[40 + n] * (n + 2) for n in range(many)] for many in (2, 5, 11))):
        assert difference(plain, other, rows, "right") < 1e-5
    assert other.runtime_info["compile"] is True
    # Several rows, one row, one row of one token; filled up there is no last one, but the first is from loading too.
    assert counter.frame_count == 3


@pytest.mark.storm  # it compiles C++, for tens of seconds
@needs_onednn
def test_the_compiler_gives_the_same_with_packed_layers() -> None:
    folder = checkpoint("distilbert", n_layers=1)
    plain, other = load(folder, linear="eager"), load(folder, compile=True, linear="packed")
    assert other.runtime_info["compile"] is True
    assert other.runtime_info["packed_linears"] > 0
    for rows in (ROWS, ROWS[1:], [range(40, 70), *ROWS, *ROWS]):
        assert difference(plain, other, rows, "right") < 1e-5
    assert other.runtime_info["compile"] is True


@pytest.mark.storm
def test_without_a_cpp_compiler_the_network_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config, cpu_vec_isa

    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(config, "force_disable_caches", True)
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", list)
    check_falls_back(caplog, "no-such-compiler")


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("Python 3.99 is not supported by torch.compile\nand more of it")


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        (refuse, "RuntimeError: Python 3.99 is not supported by torch.compile"),
        (lambda network, **_: refuse, "RuntimeError: Python 3.99 is not supported"),
        (lambda network, **_: lambda **given: wrong(network(**given)), "differ from the network's own"),
    ],
    ids=["at once", "when it runs", "wrong answers"],
)
def test_where_it_fails_the_network_runs_as_it_is(
    compiler: Any, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    check_falls_back(caplog, why)


def wrong(output: Any) -> Any:
    output.logits = output.logits + 0.001
    return output


def check_falls_back(caplog: pytest.LogCaptureFixture, why: str) -> None:
    folder = checkpoint("distilbert", n_layers=1)
    plain = load(folder)
    with caplog.at_level(logging.WARNING, "pipeline_kit"):
        other = load(folder, compile=True)
        for rows in BATCHES:
            assert difference(plain, other, rows, "right") < 1e-5
    assert why in other.runtime_info["compile"]
    (record,) = [record for record in caplog.records if record.name.startswith("pipeline_kit")]
    assert record.getMessage().startswith("model.compile=true has no effect, the network runs as it is: ")
    assert "\n" not in record.getMessage()


@pytest.mark.usefixtures("uncompiled")
def test_what_is_wrong_with_a_batch_is_no_failure_of_the_compiler() -> None:
    other = load(checkpoint(), compile=True)
    with pytest.raises(IndexError):
        other.forward(batch_of([[10**6], [5, 6]]))
    assert other.runtime_info["compile"] is True


def test_lack_of_memory_is_left_to_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    other = load(checkpoint(), compile=True)
    assert other._compiled is not None
    other._compiled._compiled[False] = full
    with pytest.raises(torch.OutOfMemoryError):
        other.forward(batch_of(ROWS))
    assert other.runtime_info["compile"] is True


@needs_onednn
@pytest.mark.usefixtures("uncompiled")
def test_hidden_layers_can_be_put_back() -> None:
    model = load(checkpoint(), linear="packed")
    before = [part for part in model._network.modules() if isinstance(part, FusedLinear)]
    expected = rows_of(model, batch_of(ROWS))
    show = wrap_layers_as_operators(model._network)
    assert {type(part).__name__ for part in model._network.classifier.modules()} == {"_Hidden", "PackedLinear"}
    assert largest_difference(rows_of(model, batch_of(ROWS)), expected) == 0
    show()
    assert [part for part in model._network.modules() if isinstance(part, FusedLinear)] == before
    assert isinstance(model._network.classifier, FusedLinear)


@pytest.mark.usefixtures("uncompiled")
def test_the_option_reaches_the_model() -> None:
    options = (f"checkpoint.path={checkpoint()}", "device=cpu")
    plain, other = pk.load(*options), pk.load(*options, "model.compile=true")
    assert (plain.description["model"]["compile"], other.description["model"]["compile"]) == (False, True)
    assert other("good")["score"] == pytest.approx(plain("good")["score"], abs=1e-5)
