"""What a checkpoint's ``config.json`` says about one task: T5 and its kin keep prefixes and settings there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_kit.stages import StageContext

__all__ = ["task_params", "translation_pairs"]

_TRANSLATION = "translation_"


def task_params(context: StageContext) -> Mapping[str, Any]:
    """Give the ``task_specific_params`` of the context's task, ``{}`` if there are none.

    For translation they go by a pair of languages, as in ``translation_en_to_de``; it is the one that the context
    names, or the only one there is.
    """
    table = _table(context)
    name = context.task
    if name == "translation":
        pairs = translation_pairs(context)
        pair = (context.src_lang, context.tgt_lang)
        if pair == (None, None) and len(pairs) == 1:
            pair = pairs[0]
        name = f"{_TRANSLATION}{pair[0]}_to_{pair[1]}"
    found = table.get(name)
    return found if isinstance(found, Mapping) else {}


def translation_pairs(context: StageContext) -> list[tuple[str, str]]:
    """Give the pairs of languages, from and to, that ``task_specific_params`` names."""
    keys = [str(key).removeprefix(_TRANSLATION) for key in _table(context) if str(key).startswith(_TRANSLATION)]
    parts = [key.partition("_to_") for key in keys]
    return sorted((source, target) for source, middle, target in parts if middle)


def _table(context: StageContext) -> Mapping[str, Any]:
    found = context.checkpoint.config.get("task_specific_params")
    return found if isinstance(found, Mapping) else {}
