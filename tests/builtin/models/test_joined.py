"""Layers that read the same input as one product: the same answers, whatever is called when."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from harness import checkpoint, pipeline_of
from torch import nn

from pipeline_kit.builtin.models.hf.joined import JoinedLinear, join_linears
from pipeline_kit.builtin.models.hf.linears import can_quantize, linears

needs_int8 = pytest.mark.skipif(not can_quantize(), reason="torch has no products in int8 on this CPU")

ROWS = torch.linspace(-1, 1, 24).reshape(3, 8)


class Attention(nn.Module):
    """Query and key of one input, value of another one, and what `order` makes of the first three."""

    def __init__(self, order: str = "qkv", *, bias: bool = True, changes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(8, 6, bias=bias), nn.Linear(8, 4, bias=bias), nn.Linear(8, 4, bias=bias)
        self.other, self.order, self.changes = nn.Linear(8, 6), order, changes

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.clone()
        found = {}
        for name in self.order:
            found[name] = getattr(self, name)(rows)
            if self.changes:
                rows.add_(1.0)
        return torch.cat([*(found[name] for name in sorted(found)), self.other(rows + 1.0)], dim=-1)


def joined(network: nn.Module, alone: Callable[[nn.Module], bool] = lambda layer: False) -> int:
    def probe() -> Mapping[str, torch.Tensor]:
        with torch.inference_mode():
            return {"logits": network(ROWS)}

    layers = linears(network)
    return join_linears(network, layers, {layer for layer in layers if alone(layer)}, probe, 1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", ["qkv", "vkq"])
def test_the_layers_of_one_input_are_one_product(order: str, bias: bool) -> None:
    plain, network = Attention(order, bias=bias), Attention(order, bias=bias)
    assert joined(network) == 3
    q, v, other = map(network.get_submodule, ("q", "v", "other"))
    assert isinstance(q, JoinedLinear)
    assert q.joined is v.joined
    assert type(other) is nn.Linear
    with torch.inference_mode():
        for rows in (ROWS, ROWS.flip(0), ROWS[:1], ROWS[None]):
            torch.testing.assert_close(network(rows), plain(rows), atol=1e-6, rtol=1e-6)
    assert q._held == [None]


def test_a_layer_that_is_called_alone_or_out_of_turn_computes_for_itself() -> None:
    plain, network = Attention(), Attention()
    assert joined(network) == 3
    with torch.inference_mode():
        for name in ("k", "v", "q", "q", "v", "k"):
            for rows in (ROWS, ROWS * 2):
                torch.testing.assert_close(getattr(network, name)(rows), getattr(plain, name)(rows))


def test_an_input_that_changes_between_the_layers_keeps_them_apart() -> None:
    network = Attention(changes=True)
    assert joined(network) == 0
    assert type(network.q) is nn.Linear


def test_a_layer_may_be_left_alone() -> None:
    network = Attention()
    assert joined(network, lambda layer: layer is network.v) == 0


@needs_int8
@pytest.mark.parametrize(
    ("architecture", "layers"),
    [("albert", 3), ("bert", 6), ("deberta-v2", 4), ("distilbert", 6), ("modernbert", 0), ("t5", 16)],
)
def test_query_key_and_value_of_common_networks_are_joined(architecture: str, layers: int) -> None:
    model = {"quantization": "int8_per_token"}
    pipe = pipeline_of("text-classification", checkpoint(architecture), model=model, function="none")
    assert pipe.description["model"]["joined_linears"] == layers


@pytest.mark.parametrize("kernel", ["eager", "auto"])
def test_in_float32_nothing_is_joined(kernel: str) -> None:
    pipe = pipeline_of("text-classification", checkpoint("bert"), model={"linear": kernel}, function="none")
    assert pipe.description["model"]["joined_linears"] == 0
