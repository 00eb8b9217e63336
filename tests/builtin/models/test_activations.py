"""Activations that linear layers do themselves: found by what they compute, only where nothing else reads the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from pipeline_kit.builtin.models.kernels.linears import PackedLinear, can_pack
from pipeline_kit.builtin.models.kernels.replace import FusedLinear, PostOp, activations_after, replace_linears
from pipeline_kit.contract.types import Device

TEXTS = ["I love this movie.", "a", "It was a terrible film, and the plot was so dull that I never want it again!"]

needs_onednn = pytest.mark.skipif(not can_pack(Device()), reason="this build of torch has no oneDNN")


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
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "silu"])
def test_a_layer_does_its_activation(name: str) -> None:
    block = Block(ACT2FN[name])
    expected = run(block)
    done = replace_linears(block, packed_layers(block), lambda: {"out": run(block)}, 2e-5)
    assert (done.layers, done.activations) == (2, 1)
    assert type(block.between) is nn.Identity
    torch.testing.assert_close(run(block), expected, atol=1e-6, rtol=1e-5)


def packed_layers(network: nn.Module) -> dict[nn.Linear, FusedLinear]:
    return {module: PackedLinear(module) for module in network.modules() if type(module) is nn.Linear}


class Twice(Block):
    """The first layer's output goes to the activation and past it."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.first(rows)
        result: torch.Tensor = self.second(self.between(hidden) + hidden)
        return result


@needs_onednn
def test_a_layer_that_is_also_read_otherwise_does_no_activation() -> None:
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
    one = {block.first: PackedLinear(block.first)}
    done = replace_linears(block, one, lambda: {"out": run(block)}, 2e-5)
    assert done.activations == 0
    torch.testing.assert_close(run(block), expected, atol=1e-6, rtol=1e-5)
