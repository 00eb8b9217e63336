"""From the words that a user wants scored to the ids of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from pipeline_kit.builtin.postprocessors.mask_text import Setting
from pipeline_kit.builtin.postprocessors.mask_tokens import Specials, glued, ids_of
from pipeline_kit.errors import ConfigError, Fault, shorten
from pipeline_kit.stages import Tokenizer

__all__ = ["Targets", "find_targets"]

Ints = np.ndarray[Any, np.dtype[np.int64]]

_KEY = "postprocessor.targets"
_HINT = "a target is one token, written as in a text: good, not Ġgood, ▁good or ##good"


@dataclass(frozen=True)
class Targets:
    """The tokens that are scored.

    :param ids: all of them, each once, in ascending order.
    :param columns: by what stands before a mask: which of `ids` the targets are there, in ascending order.
    """

    ids: Ints
    columns: Mapping[Setting, Ints]


def find_targets(targets: Sequence[str], tokenizer: Tokenizer, specials: Specials, checkpoint: str) -> Targets:
    """Find the token of each target as it would be written in the place of a mask.

    ``good`` behind a space is another token than at the beginning of a text, or at the end of a word, in
    vocabularies that write the first one ``Ġgood``. Where there is no token for a target in one of these
    places, the one from another of them is taken. A target that begins with a space is always the first one.

    :param checkpoint: its name, for messages.
    :raises ConfigError: with a fault for each target that is no token, or several, wherever it stands.
    """
    found: dict[Setting, set[int]] = {setting: set() for setting in get_args(Setting)}
    faults: list[Fault] = []
    for target in targets:
        forms = _forms(target, tokenizer) if target.strip() else {}
        tokens = {
            setting: ids[0]
            for setting, ids in forms.items()
            if len(ids) == 1 and (ids[0] not in specials.unknown or specials.names.get(ids[0]) == target)
        }
        if not tokens:
            problem = _problem(target, ids_of(tokenizer, target), tokenizer, specials, checkpoint)
            faults.append(Fault(_KEY, problem, hint=_HINT))
            continue
        other = next(iter(tokens.values()))
        for setting, chosen in found.items():
            chosen.add(tokens.get(setting, other))
    if faults:
        raise ConfigError(faults)
    ids = np.unique(np.array([token for chosen in found.values() for token in chosen], dtype=np.int64))
    columns = {
        setting: np.searchsorted(ids, np.array(sorted(chosen), dtype=np.int64)) for setting, chosen in found.items()
    }
    return Targets(ids, columns)


def _forms(target: str, tokenizer: Tokenizer) -> dict[Setting, list[int]]:
    """Give the ids of `target` in each place, in the order in which one stands in for another."""
    word = target.lstrip()
    spaced = ids_of(tokenizer, f" {word}")
    if word != target:
        return {"spaced": spaced}
    return {"spaced": spaced, "start": ids_of(tokenizer, word), "glued": glued(tokenizer, word)}


def _problem(target: str, ids: Sequence[int], tokenizer: Tokenizer, specials: Specials, checkpoint: str) -> str:
    shown = shorten(target, 80)
    if not target.strip():
        return f"'{shown}' is empty."
    if not ids or set(ids) & specials.unknown:
        return f"'{shown}' is unknown to the tokenizer of '{checkpoint}'."
    texts = [specials.names.get(token) or tokenizer.decode([token]) for token in ids[:12]]
    pieces = ", ".join(f"'{shorten(text, 40)}'" for text in texts)
    return f"'{shown}' is {len(ids)} tokens of '{checkpoint}', not one: {pieces}{', …' * (len(ids) > 12)}."
