"""Tiny model folders made by hand, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save, save_file

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
}
TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "bert.embeddings.word_embeddings.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "classifier.bias": np.zeros(2, dtype=np.float16),
}


def files(config: Mapping[str, Any] | None = None, **more: bytes) -> dict[str, bytes]:
    """Return a model folder's files by name; `more` adds files, ``__`` in a name standing for a dot."""
    named = {
        "config.json": json.dumps(CONFIG if config is None else config).encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "BertTokenizerFast"}).encode(),
        "tokenizer.json": b'{"model": {"vocab": {"auto_map": 0}}}',
        "vocab.txt": b"[PAD]\n[UNK]\n",
        "model.safetensors": save(TENSORS),
    }
    return {**named, **{name.replace("__", "."): data for name, data in more.items()}}


def write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Write `contents` into `folder` and give it back."""
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def make(folder: Path, config: Mapping[str, Any] | None = None, **more: bytes) -> Path:
    """Write a sound model folder."""
    return write(folder, files(config, **more))


def shard(folder: Path) -> Path:
    """Turn a folder's weights into two shards with an index."""
    (folder / "model.safetensors").unlink()
    names = sorted(TENSORS)
    shards = {name: f"model-0000{i + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for name, file in shards.items():
        save_file({name: TENSORS[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder
