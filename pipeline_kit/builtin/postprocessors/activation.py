"""How a cross-encoder's logits become scores, read off its folder as data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline_kit.builtin.postprocessors.classification import score_function
from pipeline_kit.checkpoint_json import read_json
from pipeline_kit.errors import CheckpointError, shorten
from pipeline_kit.types import Checkpoint

__all__ = ["Function", "ranking_function"]

Function = Literal["softmax", "sigmoid", "none"]

_CLASSES: Mapping[str, Function] = {"Identity": "none", "Sigmoid": "sigmoid"}


def ranking_function(checkpoint: Checkpoint) -> Function:
    """Decide how the logits of `checkpoint` become scores.

    Of one label: by the torch class that its sentence-transformers configuration names, as ``CrossEncoder``
    does; else as task=text-classification. Of several that name says nothing, since ``CrossEncoder`` gives
    their logits as they are and ranks by none of them.

    :raises CheckpointError: if it names another class than the ones known here.
    """
    name = _named(checkpoint) if len(checkpoint.labels) == 1 else None
    if name is None:
        return score_function(checkpoint.config, len(checkpoint.labels))
    package, _, last = name.rpartition(".")
    if last not in _CLASSES or package.partition(".")[0] != "torch":
        raise CheckpointError(
            f"'{checkpoint.name}' names the activation '{shorten(name)}', which is none that ranking knows "
            "(torch's Identity and Sigmoid); nothing that a checkpoint names is imported. "
            "Set postprocessor.function to sigmoid or none"
        )
    return _CLASSES[last]


def _named(checkpoint: Checkpoint) -> str | None:
    """Find the dotted name of the activation, in the order in which sentence-transformers 6 looks for it.

    https://github.com/huggingface/sentence-transformers/blob/main/sentence_transformers/cross_encoder/model.py

    :raises CheckpointError: if a place for it holds anything but a name.
    """
    inner = checkpoint.config.get("sentence_transformers")
    places = (
        _own_config(checkpoint.root or checkpoint.path).get("activation_fn"),
        inner.get("activation_fn") if isinstance(inner, Mapping) else None,
        checkpoint.config.get("sbert_ce_default_activation_function"),  # before version 4
    )
    name = next((place for place in places if place is not None), None)
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"'{checkpoint.name}' names its activation as {type(name).__name__}, not as a text")
    return name


def _own_config(folder: Path) -> Mapping[str, Any]:
    """Read what ``CrossEncoder`` writes beside its modules; that of another kind of model says nothing of scores."""
    file = folder / "config_sentence_transformers.json"
    if not os.path.lexists(file) or not os.path.lexists(folder / "modules.json"):
        return {}
    found = read_json(file)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"'{file}' is not a mapping")
    return found if found.get("model_type") == "CrossEncoder" else {}
