"""int8: near float32, refused where it cannot be, and by token without a trace of the batch."""

from __future__ import annotations

import pytest
import torch
from harness import checkpoint, pipeline_of
from torch import nn

import pipeline_kit as pk
from pipeline_kit.builtin.models.hf import linears as products
from pipeline_kit.builtin.models.hf.linears import Int8Linear, Int8PerTokenLinear, can_quantize
from pipeline_kit.errors import ConfigError

pytestmark = pytest.mark.skipif(not can_quantize(), reason="torch has no products in int8 here")

TEXTS = ["I love this movie.", "a", "It was a terrible film, and the plot was so dull that I never want it again!"]
LAYERS = [Int8Linear, Int8PerTokenLinear]


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 40)


# A processor without VNNI rounds more coarsely: 0.0225 was measured with AVX2.
NEAR = 0.02 if torch.cpu._is_vnni_supported() else 0.025


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (3, 7, 48)])
def test_a_rounded_layer_is_near_the_layer(layer: type[Int8Linear], bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    linear, rows = nn.Linear(48, 40, bias=bias), torch.randn(shape) + 0.5
    with torch.inference_mode():
        found, expected = layer(linear)(rows), linear(rows)
    assert found.shape == expected.shape
    assert 0 < float((found - expected).abs().max()) < NEAR


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("post", [("gelu", "none"), ("gelu", "tanh"), ("relu", ""), ("swish", "")])
def test_a_rounded_layer_does_its_activation(layer: type[Int8Linear], post: tuple[str, str], linear: nn.Linear) -> None:
    rows = torch.randn(9, 48)
    names = {
        "gelu": lambda x: nn.functional.gelu(x, approximate=post[1]),
        "relu": torch.relu,
        "swish": nn.functional.silu,
    }
    plain, fused = layer(linear), layer(linear)
    fused.post = post  # type: ignore[assignment]
    with torch.inference_mode():
        torch.testing.assert_close(fused(rows), names[post[0]](plain(rows)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rows", [torch.zeros(2, 48), torch.full((2, 48), 3.0), torch.full((2, 48), -3.0)])
def test_rows_of_one_number_are_no_special_case(layer: type[Int8Linear], rows: torch.Tensor, linear: nn.Linear) -> None:
    with torch.inference_mode():
        assert float((layer(linear)(rows) - linear(rows)).abs().max()) < 0.03


@pytest.mark.parametrize("layer", LAYERS)
def test_channels_of_zeros_stay_zeros(layer: type[Int8Linear], linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight[3] = 0
        linear.bias[3] = 0.25
    with torch.inference_mode():
        assert layer(linear)(torch.randn(5, 48))[:, 3].tolist() == [0.25] * 5


def test_by_token_a_row_is_the_same_in_any_batch(linear: nn.Linear) -> None:
    rows = torch.randn(33, 48) * torch.logspace(-3, 3, 33)[:, None]
    layer = Int8PerTokenLinear(linear)
    with torch.inference_mode():
        together = layer(rows)
        alone = torch.cat([layer(row[None]) for row in rows])
    torch.testing.assert_close(together, alone, atol=0, rtol=1e-6)


def test_by_token_a_row_that_is_not_finite_harms_no_other(linear: nn.Linear) -> None:
    rows = torch.randn(3, 48)
    layer = Int8PerTokenLinear(linear)
    with torch.inference_mode():
        expected = layer(rows)
        rows[1, 5] = float("nan")
        found = layer(rows)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert found[1].isnan().all()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_by_batch_a_row_that_is_not_finite_is_an_error_and_no_wrong_answer(linear: nn.Linear, number: float) -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match="not finite"):
        Int8Linear(linear)(torch.tensor([[number, *[1.0] * 47], [1.0] * 48]))


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        *(("int8", name) for name in ("albert", "bert", "deberta-v2", "llama", "modernbert")),
        *(("int8_per_token", name) for name in ("bert", "llama")),
    ],
)
def test_a_network_in_int8_is_near_the_one_in_float32(kind: str, architecture: str) -> None:
    exact, fast = (
        pipeline_of("text-classification", checkpoint(architecture), model=model, function="none", top_k=None)
        for model in ({}, {"quantization": kind})
    )
    assert fast.description["model"]["int8_linears"] > 0
    assert fast.model.tolerance == 0.5
    differences = []
    for left, right in zip(exact(TEXTS), fast(TEXTS), strict=True):
        scores = {item["label"]: item["score"] for item in left["labels"]}
        differences += [abs(item["score"] - scores[item["label"]]) for item in right["labels"]]
    assert 0 < max(differences) < 0.5


def test_the_shipped_checkpoint_keeps_its_labels() -> None:
    texts = [f"{start} {end}" for start in ("I love", "I hate", "What a", "Never") for end in ("this.", "mess!", "joy")]
    exact = pk.load("device=cpu")(texts)
    for kind in ("int8", "int8_per_token"):
        fast = pk.load("device=cpu", f"model.quantization={kind}")(texts)
        assert sum(a["label"] == b["label"] for a, b in zip(exact, fast, strict=True)) >= len(texts) - 1


def test_it_is_for_float32() -> None:
    with pytest.raises(ConfigError, match=r"model\.quantization: 'int8' is for device=cpu in float32, not for"):
        pk.load("device=cpu", "device.dtype=bfloat16", "model.quantization=int8")


def test_without_the_private_operator_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qlinear_pointwise'")

    monkeypatch.setattr(Int8Linear, "forward", absent)
    with pytest.raises(
        ConfigError, match=r"model\.quantization: 'int8' needs products in int8, which torch does not have"
    ):
        pk.load("device=cpu", "model.quantization=int8")


def test_a_network_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "can_quantize", lambda: True)
    monkeypatch.setattr(Int8Linear, "forward", lambda self, rows: torch.zeros(*rows.shape[:-1], self.out_features) + 9)
    with pytest.raises(ConfigError, match=r"its answers change too much"):
        pk.load("device=cpu", "model.quantization=int8")
