"""Packed linear layers: the same answers, taken where they are faster, and never where torch or a network objects."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from harness import checkpoint, pipeline_of
from torch import nn
from transformers.activations import ACT2FN

import pipeline_kit as pk
from pipeline_kit.builtin.models.hf import linears as packed
from pipeline_kit.builtin.models.hf.linears import (
    FusedLinear,
    LinearKernels,
    PackedLinear,
    PostOp,
    activations_after,
    can_pack,
    choose_linear_kernels,
    pack_linears,
    replace_linears,
)
from pipeline_kit.contract.types import Device
from pipeline_kit.errors import ConfigError

TEXTS = ["I love this movie.", "a", "It was a terrible film, and the plot was so dull that I never want it again!"]

needs_onednn = pytest.mark.skipif(not can_pack(Device()), reason="this build of torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 5), (3, 7, 5), (2, 3, 4, 5)])
def test_a_packed_layer_gives_what_the_layer_gives(bias: bool, shape: tuple[int, ...]) -> None:
    linear = nn.Linear(5, 6, bias=bias)
    rows = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(rows), linear(rows), atol=1e-6, rtol=1e-6)


@needs_onednn
@pytest.mark.parametrize("architecture", ["albert", "bert", "deberta-v2", "distilbert", "llama", "modernbert", "t5"])
def test_answers_stay_the_same_with_layers_that_do_their_activations(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    eager, fast = (
        pipeline_of("text-classification", checkpoint(architecture), model={"linear": kernel}, function="none")
        for kernel in ("eager", "packed")
    )
    assert eager.description["model"]["packed_linears"] == 0
    assert fast.description["model"]["packed_linears"] > 0
    assert fast.description["model"]["fused_activations"] > 0 or architecture in ("albert", "modernbert")
    for left, right in zip(eager(TEXTS), fast(TEXTS), strict=True):
        assert left == {"label": right["label"], "score": pytest.approx(right["score"], abs=1e-5)}


class Two(nn.Module):
    """A layer that is called, and a use of its weight past its forward."""

    def __init__(self, direct: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.direct = direct

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(rows, self.inner.weight) if self.direct else self.inner(rows)


def probe_of(network: nn.Module) -> Mapping[str, torch.Tensor]:
    with torch.inference_mode():
        return {"logits": network(torch.ones(2, 4))}


def kernels_of(network: nn.Module) -> LinearKernels:
    return choose_linear_kernels(network, lambda: probe_of(network), "auto", "none", Device())


@needs_onednn
def test_a_network_that_reads_the_weight_itself_keeps_its_layers() -> None:
    network = Two(direct=True)
    before = probe_of(network)["logits"]
    assert pack_linears(network, lambda: probe_of(network), Device()).layers == 0
    assert type(network.inner) is nn.Linear
    assert torch.equal(probe_of(network)["logits"], before)
    assert pack_linears(plain := Two(direct=False), lambda: probe_of(plain), Device()).layers == 1


@needs_onednn
def test_a_kernel_that_answers_otherwise_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLinear, "forward", lambda self, input: input + 1.0)
    network = Two(direct=False)
    assert pack_linears(network, lambda: probe_of(network), Device()).layers == 0
    assert type(network.inner) is nn.Linear


@needs_onednn
@pytest.mark.parametrize("faster", [True, False])
def test_auto_packs_what_is_measured_to_be_faster(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_are_faster", lambda layers: faster)
    network = Two(direct=False)
    assert kernels_of(network).packed.layers == int(faster)


@needs_onednn
@pytest.mark.parametrize(("small", "large", "chosen"), [((1.0, 3.0), (9.0, 5.0), 3), ((1.0, 9.0), (9.0, 5.0), 0)])
def test_auto_decides_for_all_layers_together(
    small: tuple[float, float], large: tuple[float, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 8))
    monkeypatch.setattr(packed, "_LEAST_WEIGHTS", 1)
    monkeypatch.setattr(packed, "_times", lambda linear: small if linear.out_features == 4 else large)
    assert kernels_of(network).packed.layers == chosen


@needs_onednn
@pytest.mark.parametrize("faster", [True, False])
def test_what_auto_came_to_can_be_asked_for(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint()
    monkeypatch.setattr(packed, "_are_faster", lambda layers: faster)
    pipe = pk.load(f"checkpoint.path={folder}", "device=cpu")
    assert pipe.model.pinned_options == {"linear": "packed" if faster else "eager"}


def test_without_the_private_operators_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(PackedLinear, "__init__", absent)
    assert not can_pack(Device())
    folder = checkpoint()
    pipe = pk.load(f"checkpoint.path={folder}", "device=cpu")
    assert pipe.description["model"]["packed_linears"] == 0
    assert pipe("good")["label"]
    with pytest.raises(ConfigError, match=r"model\.linear: 'packed' is for float32, or bfloat16 where the CPU has it,"):
        pk.load(f"checkpoint.path={folder}", "device=cpu", "model.linear=packed")


@pytest.mark.parametrize("device", [Device("cpu", "float16"), Device("cuda:0"), Device("mps")])
def test_it_is_for_float32_and_bfloat16_on_a_cpu(device: Device) -> None:
    assert not can_pack(device)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_packed_where_the_cpu_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "emulated", lambda dtype: not native)
    try:
        PackedLinear(nn.Linear(16, 16, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):  # oneDNN has it for processors with AVX-512 or better
        native = False
    assert can_pack(Device("cpu", "bfloat16")) == native


class Block(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.second = nn.Linear(8, 16), between, nn.Linear(16, 8)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.between(self.first(rows)))
        return result


def run(block: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = block(torch.linspace(-3, 3, 24).reshape(3, 8))
    return result


@pytest.mark.parametrize(
    ("name", "post"),
    [
        ("gelu", ("gelu", "none")),
        ("gelu_python", ("gelu", "none")),
        ("gelu_new", ("gelu", "tanh")),
        ("gelu_pytorch_tanh", ("gelu", "tanh")),
        ("gelu_fast", ("gelu", "tanh")),
        ("relu", ("relu", "")),
        ("silu", ("swish", "")),
        ("quick_gelu", None),
        ("relu2", None),
        ("tanh", None),
        ("linear", None),
    ],
)
def test_an_activation_is_known_by_what_it_computes(name: str, post: PostOp | None) -> None:
    block = Block(ACT2FN[name])
    expected = {} if post is None else {block.first: (block.between, post)}
    assert activations_after(block, lambda: run(block)) == expected


@needs_onednn
@pytest.mark.parametrize("vectors", ["AVX2", "AVX512"])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "silu"])
def test_a_layer_does_its_activation_where_that_is_not_slower(
    name: str, vectors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    block = Block(ACT2FN[name])
    expected = run(block)
    done = replace_linears(block, packed_layers(block), lambda: {"out": run(block)}, 2e-5)
    fused = name == "relu" or vectors == "AVX512"
    assert (done.layers, done.activations) == (2, int(fused))
    assert (type(block.between) is nn.Identity) == fused
    torch.testing.assert_close(run(block), expected, atol=1e-6, rtol=1e-5)


def packed_layers(network: nn.Module) -> dict[nn.Module, FusedLinear]:
    return {module: PackedLinear(module) for module in network.modules() if type(module) is nn.Linear}


class Twice(Block):
    """The first layer's output goes to the activation and past it."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.first(rows)
        result: torch.Tensor = self.second(self.between(hidden) + hidden)
        return result


@needs_onednn
def test_a_layer_that_is_also_read_otherwise_does_no_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    block = Twice(nn.GELU())
    expected = run(block)
    done = replace_linears(block, packed_layers(block), lambda: {"out": run(block)}, 2e-5)
    assert (done.layers, done.activations) == (2, 0)
    assert type(block.between) is nn.GELU
    torch.testing.assert_close(run(block), expected, atol=1e-6, rtol=1e-5)


class Shared(Block):
    """One activation after both layers, one of which is not replaced, and a layer that is called twice."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.between(self.second(self.between(self.first(rows)) * 2))
        return result


@needs_onednn
def test_an_activation_of_several_layers_is_taken_over_by_all_of_them_or_by_none() -> None:
    block = Shared(nn.ReLU())
    expected = run(block)
    done = replace_linears(block, packed_layers(block), lambda: {"out": run(block)}, 2e-5)
    assert (done.layers, done.activations) == (2, 2)
    torch.testing.assert_close(run(block), expected, atol=1e-6, rtol=1e-5)

    block = Shared(nn.ReLU())
    one: dict[nn.Module, FusedLinear] = {block.first: PackedLinear(block.first)}
    done = replace_linears(block, one, lambda: {"out": run(block)}, 2e-5)
    assert done.activations == 0
    torch.testing.assert_close(run(block), expected, atol=1e-6, rtol=1e-5)
