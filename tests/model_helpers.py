"""What the tests of models share: tiny checkpoints, batches by hand, and the largest difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from pipeline_kit.builtin.models.hf.stage import HfModel
from pipeline_kit.builtin.models.options import HfModelConfig
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Device, Encoding, Side, TokenBatch
from pipeline_kit.runtime.padding import PaddingPolicy, collate, split_rows

ROWS: tuple[tuple[int, ...], ...] = ((40, 41, 42), (50,), (60, 61, 62, 63, 64, 65, 66, 67, 68), (70, 80, 90, 100))
SIDES: tuple[Side, ...] = ("right", "left")
HEAD = "sequence-classification"


def checkpoint_of(folder: Path) -> Checkpoint:
    return Checkpoint(folder, folder.name, json.loads((folder / "config.json").read_text(encoding="utf-8")))


def load(folder: Path, head: str = HEAD, dtype: str = "float32", **options: Any) -> HfModel:
    context = StageContext(checkpoint_of(folder), Device(dtype=dtype, threads=1), head)
    return HfModel(HfModelConfig(**options), context)


def change(folder: Path, target: Path, **settings: Any) -> Path:
    """Copy a checkpoint with other settings in its ``config.json``."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text(encoding="utf-8")) | settings
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def batch_of(rows: Sequence[Sequence[int]], side: Side = "right", pad: int = 0, width: int = 1) -> TokenBatch:
    policy = PaddingPolicy("max_length", side, pad, width)
    return collate([Encoding(row) for row in rows], policy, "cpu")


def rows_of(model: HfModel, batch: TokenBatch) -> list[np.ndarray[Any, Any]]:
    return [next(iter(row.values())) for row in split_rows(model.forward(batch), batch)]


def largest_difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(found, expected, strict=True))


def reference_states(folder: Path, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
    network = transformers.AutoModel.from_pretrained(folder).eval()
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    with torch.inference_mode():
        return [network(input_ids=torch.tensor([row])).last_hidden_state[0].numpy() for row in rows]
