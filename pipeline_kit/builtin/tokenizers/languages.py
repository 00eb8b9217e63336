"""Framing a text with the token of its language, as multilingual translators were trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_kit.builtin.languages import check_language
from pipeline_kit.errors import ConfigError, Fault
from pipeline_kit.stages import StageContext

__all__ = ["frame_source", "unframed"]


def frame_source(loaded: Any, known: Mapping[str, int], context: StageContext) -> None:
    """Make `loaded`, one of transformers' tokenizers, frame texts as ``task.src_lang`` asks.

    :param known: the languages it has tokens for; without any nothing is done.
    :raises ConfigError: if the task is to translate and the language is missing or unknown, or if its class does
        not know how texts are framed.
    """
    if not known or (context.src_lang is None and context.task != "translation"):
        return
    check_language("task.src_lang", context.src_lang, known, context)
    if not hasattr(loaded, "set_src_lang_special_tokens"):
        raise ConfigError([unframed(type(loaded).__name__)])
    loaded.src_lang = context.src_lang


def unframed(name: str) -> Fault:
    """Say that the tokenizer cannot put a language to a text."""
    hint = "use tokenizer=hf, and a tokenizer_class in tokenizer_config.json that does, such as NllbTokenizer"
    return Fault("task.src_lang", f"{name} does not know where in a text the token of its language stands.", hint=hint)
