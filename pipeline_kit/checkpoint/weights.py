"""Where in a model folder the weights are, and what they hold, read from their headers before anything loads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
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
"""Words of errors of safetensors, and what they mean."""

_DISGUISES = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the weights; run 'git lfs pull' in its folder"),
    (b"PK\x03\x04", "is a zip archive (as torch.save writes them), not safetensors; convert it, do not rename it"),
    (b"\x80", "looks like a pickle, not safetensors; convert it, do not rename it"),
    (b"GGUF", "is a GGUF file, not safetensors; use the original checkpoint"),
    (b"\x89HDF", "is an HDF5 file, not safetensors; convert it, do not rename it"),
)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the safetensors files that hold the model: one file, the shards of an index, or none.

    :raises CheckpointError: if the index is broken or a shard is missing or outside the folder.
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
        raise CheckpointError(f"{folder} lacks the shard '{for_message(name)}' that {INDEX_NAME} names; copy it too")
    return folder / name


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return ``dtype`` and ``shape`` of a safetensors file's tensors by name; raise CheckpointError if it is broken."""
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


MODULES_NAME = "modules.json"
MODULE_WEIGHTS = "[0-9]*_*/model*.safetensors"
"""Where the modules behind the network keep their weights: ``2_Dense/model.safetensors``."""


@dataclass(frozen=True)
class ModuleEntry:
    """One module.

    :param type: the dotted name of its class, which is read as a word and never imported.
    :param path: its folder inside the checkpoint's, empty for the checkpoint's own.
    """

    type: str
    path: str

    @property
    def kind(self) -> str:
        """The class's name alone: ``Pooling``."""
        return self.type.rpartition(".")[2]


def read_modules(folder: Path) -> tuple[ModuleEntry, ...] | None:
    """Read a folder's ``modules.json``, None if it has none; raise CheckpointError if it is wrong or leads out."""
    file = folder / MODULES_NAME
    if not os.path.lexists(file):
        return None
    entries = read_json(file)
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise CheckpointError(f"'{file}' is not a list of modules")
    found = tuple(ModuleEntry(str(entry.get("type", "")), str(entry.get("path", ""))) for entry in entries)
    for entry in found:
        # The files of a hub cache are links out of the folder, so the path is judged as it is written.
        if Path(entry.path).is_absolute() or ".." in Path(entry.path).parts or {"\\", "\0"} & {*entry.path}:
            raise CheckpointError(f"'{file}' names a path outside the folder: {for_message(entry.path)}")
    return found


def network_folder(folder: Path) -> Path:
    """Return the folder that holds the network's ``config.json``: `folder`, or the one its ``modules.json`` names.

    Folders written before 2021 have the network in ``0_Transformer``.

    :returns: `folder` itself where neither has a ``config.json``.
    :raises CheckpointError: if there is no ``config.json`` in `folder` and its ``modules.json`` is broken.
    """
    if os.path.lexists(folder / "config.json"):
        return folder
    for entry in read_modules(folder) or ():
        if entry.kind == "Transformer" and os.path.lexists(folder / entry.path / "config.json"):
            return folder / entry.path
    return folder
