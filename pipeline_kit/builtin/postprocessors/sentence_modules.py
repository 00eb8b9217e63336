"""What a sentence-transformers folder says about pooling: ``modules.json`` and ``*_Pooling/config.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline_kit.checkpoint_json import read_json
from pipeline_kit.errors import CheckpointError, shorten

__all__ = ["Mode", "SentenceModules", "read_sentence_modules"]

Mode = Literal["mean", "cls", "max", "last", "weighted_mean"]

# The names in sentence-transformers' configs: `pooling_mode` in newer folders, flags in older ones.
# https://github.com/huggingface/sentence-transformers/blob/main/sentence_transformers/sentence_transformer/modules/pooling.py
_MODES: dict[str, Mode] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceModules:
    """A folder's modules after the network itself.

    :param pooling: the names of its pooling modes, in sentence-transformers' words.
    :param normalize: whether it scales its vectors to length 1.
    :param others: further modules that change the vectors, such as ``Dense``.
    """

    path: Path
    pooling: tuple[str, ...] = ()
    normalize: bool = False
    others: tuple[str, ...] = ()

    def pooling_mode(self) -> Mode:
        """Give the one mode that makes this folder's vectors.

        :raises CheckpointError: if the folder does more than one supported mode and normalizing.
        """
        advice = f"set postprocessor.pooling to one of {', '.join(_MODES.values())} to embed in another way"
        if self.others:
            raise CheckpointError(
                f"'{self.path}' has the module(s) {shorten(', '.join(self.others))} after its network, "
                f"which pooling cannot apply; {advice}"
            )
        if len(self.pooling) != 1 or self.pooling[0] not in _MODES:
            found = shorten(" + ".join(self.pooling)) or "nothing"
            raise CheckpointError(f"'{self.path}' pools by {found}, which is not supported; {advice}")
        return _MODES[self.pooling[0]]


def read_sentence_modules(folder: Path) -> SentenceModules | None:
    """Read ``modules.json`` of a checkpoint's folder, None if it has none.

    :raises CheckpointError: if it is not what sentence-transformers writes, or names a path outside the
        folder.
    """
    file = folder / "modules.json"
    if not os.path.lexists(file):
        return None
    entries = read_json(file)
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise CheckpointError(f"'{file}' is not a list of modules")
    pooling: tuple[str, ...] = ()
    normalize = False
    others: list[str] = []
    for entry in entries:
        name = str(entry.get("type", "")).rpartition(".")[2]
        if name == "Pooling":
            pooling = _pooling(folder, str(entry.get("path", "")))
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer":
            others.append(name)
    return SentenceModules(folder, pooling, normalize, tuple(others))


def _pooling(folder: Path, path: str) -> tuple[str, ...]:
    file = folder / path / "config.json"
    # The files of a hub cache are links out of the folder, so the path is judged as it is written.
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"'{folder / 'modules.json'}' names a path outside the folder: {shorten(path)}")
    config = read_json(file)
    if not isinstance(config, Mapping):
        raise CheckpointError(f"'{file}' is not a mapping")
    mode = config.get("pooling_mode")
    if mode is None:
        return tuple(name for flag, name in _FLAGS.items() if config.get(flag) is True) or ("mean",)
    return tuple(str(item) for item in mode) if isinstance(mode, list) else (str(mode),)
