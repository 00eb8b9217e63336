"""A sentence-transformers folder: what its ``modules.json`` lists, and where in it the network's own files stand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline_kit.checkpoint.json import read_json
from pipeline_kit.errors import CheckpointError, for_message

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
    """Read ``modules.json`` of a folder, None if it has none.

    :raises CheckpointError: if it is not what sentence-transformers writes, or names a path outside the folder.
    """
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
