"""The languages of a multilingual translator: which it has tokens for, and what to say of one it has not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline_kit.contract.stages import StageContext
from pipeline_kit.errors import ConfigError, Fault, closest_match, for_message

# NLLB: eng_Latn. mBART: en_XX. M2M100: __en__, called en.
_CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}|__([a-z]{2,3})__")


def languages_of(backend: Any) -> Mapping[str, int]:
    """Read the languages off the special tokens of a `tokenizers.Tokenizer`, in the order of their ids."""
    special = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
    matches = {text: _CODE.fullmatch(text) for text in sorted(special, key=special.__getitem__)}
    return {match[1] or text: special[text] for text, match in matches.items() if match}


def target_token(context: StageContext) -> int | None:
    """Return the id that the decoder's text has to begin with, None where no language was asked for or can be.

    :raises ConfigError: if the task is to translate and the checkpoint needs a language, or has no such one.
    """
    known = {} if context.tokenizer is None else context.tokenizer.languages
    if not known or (context.tgt_lang is None and context.task != "translation"):
        return None
    check_language("task.tgt_lang", context.tgt_lang, known, context)
    return known[str(context.tgt_lang)]


def check_language(key: str, value: str | None, known: Mapping[str, int], context: StageContext) -> None:
    """Raise ConfigError if `value` is missing or none of `known`, with the closest one."""
    if value in known:
        return
    codes, name = tuple(known), for_message(context.checkpoint.name)
    shown = codes if len(codes) <= 12 else (*codes[:12], f"and {len(codes) - 12} more")
    if value is None:
        example = f"for example: task.src_lang={codes[0]} task.tgt_lang={codes[-1]}"
        fault = Fault(key, f"is required: '{name}' knows {len(codes)} languages.", shown, hint=example)
    else:
        problem = f"'{for_message(value, 80)}' is not a language of '{name}'."
        fault = Fault(key, problem, shown, closest_match(value, codes))
    raise ConfigError([fault])


_TRANSLATION = "translation_"


def task_params(context: StageContext) -> Mapping[str, Any]:
    """Return the ``task_specific_params`` of the context's task, ``{}`` if there are none.

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
    """Return the pairs of languages, from and to, that ``task_specific_params`` names."""
    keys = [str(key).removeprefix(_TRANSLATION) for key in _table(context) if str(key).startswith(_TRANSLATION)]
    parts = [key.partition("_to_") for key in keys]
    return sorted((source, target) for source, middle, target in parts if middle)


def _table(context: StageContext) -> Mapping[str, Any]:
    found = context.checkpoint.config.get("task_specific_params")
    return found if isinstance(found, Mapping) else {}
