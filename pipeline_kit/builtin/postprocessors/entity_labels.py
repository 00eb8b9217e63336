"""What the names of a tagger's labels say: the tag, and whether an entity begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_kit.errors import ConfigError, Fault, closest, shorten

__all__ = ["LabelTable", "label_table"]

OUTSIDE = "O"

# The other letters of the schemes IOBES and BILOU: last token of an entity, and the only one of it.
_LAST, _ONLY = ("E-", "L-"), ("S-", "U-")


@dataclass(frozen=True)
class LabelTable:
    """What is known of each label of a checkpoint, ``L`` of them.

    :param names: what a result calls it: with an aggregation the tag, else the whole label.
    :param tags: the number of its tag ``[L]``; labels that differ in their prefix alone have the same.
    :param begins: whether a new entity begins at a token of this label ``[L]``.
    :param ignored: whether it is left out ``[L]``.
    """

    names: tuple[str, ...]
    tags: np.ndarray[Any, np.dtype[np.int64]]
    begins: np.ndarray[Any, np.dtype[np.bool_]]
    ignored: np.ndarray[Any, np.dtype[np.bool_]]


def label_table(labels: Sequence[str], ignore: Sequence[str], *, aggregated: bool) -> LabelTable:
    """Read the prefixes of `labels`.

    ``B-`` begins an entity, ``I-`` goes on with one, and so does a label without a prefix, as in transformers:
    https://github.com/huggingface/transformers/blob/main/src/transformers/pipelines/token_classification.py
    Where a tag has a ``B-`` label, ``S-`` and ``U-`` begin too, ``E-`` and ``L-`` go on.

    :param ignore: tags to leave out; without an aggregation whole labels too.
    :raises ConfigError: if `ignore` names what the checkpoint does not have, ``O`` apart.
    """
    parts = [_split(label, labels) for label in labels]
    tags = [tag for _, tag in parts]
    numbers = {tag: i for i, tag in enumerate(dict.fromkeys(tags))}
    known = dict.fromkeys(tags if aggregated else [*labels, *tags])
    unknown = [name for name in ignore if name not in known and name != OUTSIDE]
    if unknown:
        raise ConfigError([_fault(name, labels, tuple(known), aggregated) for name in unknown])
    names = tuple(tags if aggregated else labels)
    return LabelTable(
        names,
        np.array([numbers[tag] for tag in tags], dtype=np.int64),
        np.array([prefix in ("B-", *_ONLY) for prefix, _ in parts], dtype=bool),
        np.array([tag in ignore or name in ignore for tag, name in zip(tags, names, strict=True)], dtype=bool),
    )


def _split(label: str, labels: Sequence[str]) -> tuple[str, str]:
    prefix, tag = label[:2], label[2:]
    if prefix in ("B-", "I-") or (prefix in (*_LAST, *_ONLY) and f"B-{tag}" in labels):
        return prefix, tag
    return "", label


def _fault(name: str, labels: Sequence[str], known: tuple[str, ...], aggregated: bool) -> Fault:
    key = "postprocessor.ignore_labels"
    if aggregated and name in labels:
        tag = _split(name, labels)[1]
        problem = f"'{shorten(name, 80)}' has a prefix, which an aggregation drops."
        return Fault(key, problem, known, tag, "or keep prefixes: postprocessor.aggregation=none")
    return Fault(key, f"the checkpoint has no label '{shorten(name, 80)}'.", known, closest(name, known))
