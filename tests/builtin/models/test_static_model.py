"""``model=static``: the mean of token vectors and a linear head, without transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline_kit.builtin.models.options import StaticModelConfig
from pipeline_kit.builtin.models.static import StaticModel
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Device, Encoding, Side, TokenBatch
from pipeline_kit.errors import CheckpointError, ConfigError
from pipeline_kit.runtime.padding import PaddingPolicy, collate

HEAD = "sequence-classification"
ROWS = ((3, 4, 5), (6,), (7, 8, 9, 10, 11), (12, 12))
WEIGHTS = {
    "embeddings.weight": torch.randn(30, 6, generator=torch.Generator().manual_seed(0)),
    "classifier.weight": torch.randn(2, 6, generator=torch.Generator().manual_seed(1)),
    "classifier.bias": torch.tensor([0.5, -0.5]),
}


def write(folder: Path, weights: dict[str, torch.Tensor] = WEIGHTS, model_type: str = "static") -> Path:
    folder.mkdir(exist_ok=True)
    config = {"model_type": model_type, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    return folder


def load(folder: Path, head: str = HEAD, dtype: str = "float32") -> StaticModel:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    context = StageContext(
        Checkpoint(folder, "my-model", config), Device(dtype=dtype, threads=torch.get_num_threads()), head
    )
    return StaticModel(StaticModelConfig(), context)


def batch_of(side: Side, width: int = 1) -> TokenBatch:
    return collate([Encoding(row) for row in ROWS], PaddingPolicy("max_length", side, 0, width), "cpu")


def expected() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    table, weight, bias = (WEIGHTS[name].double().numpy() for name in WEIGHTS)
    return np.stack([table[list(row)].mean(0) @ weight.T + bias for row in ROWS])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("width", [1, 12])
def test_logits_are_the_head_on_the_mean(tmp_path: Path, side: Side, width: int) -> None:
    model = load(write(tmp_path))
    assert model.safe_padding_sides == {"right", "left"}
    found = model.forward(batch_of(side, width))["logits"]
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), expected(), atol=model.tolerance)
    alone = collate([Encoding(ROWS[2])], PaddingPolicy("longest"), "cpu")
    np.testing.assert_allclose(model.forward(alone)["logits"][0].numpy(), expected()[2], atol=model.tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    halves = {name: weight.half() for name, weight in WEIGHTS.items()}
    model = load(write(tmp_path, halves), dtype=dtype)
    found = model.forward(batch_of("right"))["logits"]
    assert found.dtype == getattr(torch, dtype)
    np.testing.assert_allclose(found.float().numpy(), expected(), atol=model.tolerance)


def test_base_gives_the_vectors(tmp_path: Path) -> None:
    folder = write(tmp_path, {"embeddings.weight": WEIGHTS["embeddings.weight"]})
    output = load(folder, "base").forward(batch_of("right"))
    assert output.per_token == {"last_hidden_state"}
    assert torch.equal(output["last_hidden_state"][2], WEIGHTS["embeddings.weight"][7:12])


def test_an_id_that_is_not_there_fails(tmp_path: Path) -> None:
    model = load(write(tmp_path))
    for row in ([3, 30], [-1, 3]):
        with pytest.raises((IndexError, RuntimeError)):
            model.forward(collate([Encoding(row)], PaddingPolicy("longest"), "cpu"))


@pytest.mark.parametrize(
    ("name", "weight", "words"),
    [
        ("classifier.weight", torch.zeros(3, 6), ["classifier.weight", "[3, 6]", "[2, 6]", "2 labels"]),
        ("classifier.weight", torch.zeros(2, 5), ["[2, 5]", "[2, 6]"]),
        ("classifier.bias", torch.zeros(3), ["classifier.bias", "[3]", "[2]"]),
        ("embeddings.weight", torch.zeros(30), ["embeddings.weight", "[30]"]),
        ("embeddings.weight", torch.zeros(30, 6, dtype=torch.int64), ["int64", "expected floats"]),
    ],
)
def test_shapes_are_checked(tmp_path: Path, name: str, weight: torch.Tensor, words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(write(tmp_path, {**WEIGHTS, name: weight}))
    assert [word for word in ["my-model", *words] if word not in str(caught.value)] == []


def test_missing_weights(tmp_path: Path) -> None:
    folder = write(tmp_path, {"embeddings.weight": WEIGHTS["embeddings.weight"]})
    with pytest.raises(CheckpointError, match=r"classifier\.weight, classifier\.bias.*task=sentence-embedding"):
        load(folder)
    with pytest.raises(CheckpointError, match=r"lacks the weights embeddings\.weight\.$"):
        load(write(tmp_path / "other", {"classifier.weight": torch.zeros(2, 6)}), "base")


def test_another_kind_of_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'bert', not 'static'; use model=hf"):
        load(write(tmp_path, model_type="bert"))


def test_a_broken_file(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(folder)


def test_an_unknown_head(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token-classification"):
        load(write(tmp_path), "token-classification")


def test_transformers_is_not_imported(tmp_path: Path) -> None:
    program = """
import json, sys
from pathlib import Path
from pipeline_kit.builtin.models.options import StaticModelConfig
from pipeline_kit.builtin.models.static import StaticModel
from pipeline_kit.runtime.padding import PaddingPolicy, collate
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Device, Encoding
folder = Path(sys.argv[1])
checkpoint = Checkpoint(folder, "x", json.loads((folder / "config.json").read_text()))
model = StaticModel(StaticModelConfig(), StageContext(checkpoint, Device(), "sequence-classification"))
print(model.forward(collate([Encoding([3, 4])], PaddingPolicy("longest"), "cpu"))["logits"].shape)
assert "transformers" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(write(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 2])"
