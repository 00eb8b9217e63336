"""What a model folder's safetensors hold, read from their headers alone and checked before anything loads them."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline_kit.checkpoint.json import open_file, read_json
from pipeline_kit.errors import CheckpointError, for_message

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 32 << 20
MAX_DIMENSIONS = 64

_PLAIN = (
    ("header too small", "it is too short to have a header"),
    ("header too large", "it claims a header of over 100 MB"),
    ("invalid header length", "it ends inside its header"),
    ("invalid JSON in header", "its header is not JSON that describes tensors"),
    ("not fully covered", "it is cut off, or has stray bytes"),
)
"""What safetensors says, and what that means."""

_DISGUISES = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the weights; run 'git lfs pull' in its folder"),
    (b"PK\x03\x04", "is a zip archive (as torch.save writes them), not safetensors; convert it, do not rename it"),
    (b"\x80", "looks like a pickle, not safetensors; convert it, do not rename it"),
    (b"GGUF", "is a GGUF file, not safetensors; use the original checkpoint"),
    (b"\x89HDF", "is an HDF5 file, not safetensors; convert it, do not rename it"),
)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the safetensors files that hold the model: one file, or the shards of an index.

    :raises CheckpointError: if the index is broken or a shard is missing or outside the folder. An
        empty tuple means that the folder has neither file.
    """
    if os.path.lexists(folder / WEIGHTS_NAME):
        return (folder / WEIGHTS_NAME,)
    index = folder / INDEX_NAME
    if not os.path.lexists(index):
        return ()
    content = read_json(index, MAX_INDEX_BYTES)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index} has no 'weight_map' from tensor names to files; download it again")
    return tuple(_shard(folder, index, name) for name in sorted(set(shards.values())))


def _shard(folder: Path, index: Path, name: str) -> Path:
    if not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{index} names '{for_message(name)}', which is not a .safetensors file; nothing else is loaded"
        )
    if PurePosixPath(name).name != name or {"\\", ":", "\0"} & {*name}:
        raise CheckpointError(
            f"{index} names '{for_message(name)}', which lies outside the folder; shards stand beside it"
        )
    if not os.path.lexists(folder / name):
        raise CheckpointError(f"{folder} lacks the shard '{name}' that {INDEX_NAME} names; download or copy it too")
    return folder / name


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tensors of a safetensors file by name, each with ``dtype`` and ``shape``.

    :raises CheckpointError: if the file is truncated, has an oversized or broken header, or is
        something else under this name.
    """
    with open_file(path) as file:  # a regular file, or an error
        start = file.read(64)
    for magic, meaning in _DISGUISES:
        # A header length may begin with byte 0x80 by chance, but a header opens with a brace.
        if start.startswith(magic) and start[8:9] != b"{":
            raise CheckpointError(f"{path} {meaning}")
    try:
        with safe_open(path, "numpy") as weights:
            parts = {name: weights.get_slice(name) for name in sorted(weights.keys())}
            header = {name: {"dtype": part.get_dtype(), "shape": part.get_shape()} for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        said = str(error).removeprefix("Error while deserializing header: ")
        reason = next((plain for words, plain in _PLAIN if words in said), for_message(said, 200))
        raise CheckpointError(_broken(path, reason)) from error
    for name, entry in header.items():
        if len(entry["shape"]) > MAX_DIMENSIONS:  # more than torch can have
            raise CheckpointError(_broken(path, f"the tensor '{for_message(name)}' has too many dimensions"))
    return header


def _broken(path: Path, why: str) -> str:
    return f"{path} is not a usable safetensors file: {why}; download or copy it again"
