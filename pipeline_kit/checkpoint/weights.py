"""What a model folder's safetensors hold, read from their headers alone and checked before anything loads them.

The format: 8 bytes little-endian header length, a JSON header, the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from pipeline_kit.checkpoint.json import open_file, read_json
from pipeline_kit.errors import CheckpointError, for_message

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 32 << 20
MAX_DIMENSIONS = 64

_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
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


def read_header(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file by name, each with ``dtype``, ``shape``, ``data_offsets``.

    :raises CheckpointError: if the file is truncated, has an oversized or broken header, or is
        something else under this name.
    """
    with open_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            length = _header_length(path, file.read(64), size)
            file.seek(8)
            raw = file.read(length)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(_broken(path, "its header is not JSON")) from error
    if not isinstance(header, dict):
        raise CheckpointError(_broken(path, "its header is not a JSON object"))
    header.pop("__metadata__", None)
    _check_offsets(path, header, size - 8 - length)
    return header


def _header_length(path: Path, start: bytes, size: int) -> int:
    for magic, meaning in _DISGUISES:
        # A header length may begin with byte 0x80 by chance, but a header opens with a brace.
        if start.startswith(magic) and start[8:9] != b"{":
            raise CheckpointError(f"{path} {meaning}")
    if size < 8:
        raise CheckpointError(_broken(path, f"it has {size} bytes" if size else "it is empty"))
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            _broken(path, f"it claims a header of {length} bytes, over the {MAX_HEADER_BYTES} allowed")
        )
    if 8 + length > size:
        raise CheckpointError(_broken(path, f"it ends inside its header, after {size} of {8 + length} bytes"))
    return length


def _check_offsets(path: Path, header: Mapping[str, Any], size: int) -> None:
    """Hold the tensors against the file: they must fill its `size` data bytes, in order, without gaps."""
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        shape, span = (entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) else (None, None)
        if not _is_counts(shape, MAX_DIMENSIONS) or not _is_counts(span, 2) or len(span) != 2:
            raise CheckpointError(_broken(path, f"its header does not describe the tensor '{for_message(name)}'"))
        begin, end = span
        bits = _BITS.get(str(entry.get("dtype")))
        if end < begin or (bits is not None and math.prod(shape) * bits != (end - begin) * 8):
            raise CheckpointError(_broken(path, f"the tensor '{for_message(name)}' does not fit its shape"))
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise CheckpointError(_broken(path, f"the tensor '{for_message(name)}' overlaps another or leaves a gap"))
        reached = end
    if reached != size:
        missing = f"it is cut off: {size} of {reached} data bytes are there" if reached > size else "it has stray bytes"
        raise CheckpointError(_broken(path, missing))


def _is_counts(value: Any, most: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= most and all(type(item) is int and item >= 0 for item in value)


def _broken(path: Path, why: str) -> str:
    return f"{path} is not a usable safetensors file: {why}; download or copy it again"
