"""Conversations as text, by the checkpoint's chat template.

A template is a program in Jinja that comes with the checkpoint. transformers runs it in Jinja's
``ImmutableSandboxedEnvironment``, which has no access to Python: https://jinja.palletsprojects.com/en/stable/sandbox/.
What the sandbox does not bound is time and memory; :mod:`~pipeline_kit.builtin.tokenizers.chat_limits` does.

A rendered conversation holds its special tokens already, so it must be encoded without adding them once more.
:class:`Rendered` says so. It never leaves the tokenizer that made it: what ``Tokenizer.render_chat`` returns is for the
same tokenizer's ``encode``, so other tokenizers need not know of it, and no text of a user can pretend to be one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_kit.builtin.config_json import check_language
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.errors import ConfigError, ExampleError, Fault, for_message


class Rendered(str):
    """A text that holds its special tokens already."""

    __slots__ = ()


def render(loaded: Any, checkpoint: str, messages: Sequence[Mapping[str, Any]]) -> Rendered:
    """Write `messages` by the template of `loaded`, one of transformers' tokenizers.

    The answer is to follow: a template that has a prompt for it writes it. Where the last message is already the
    assistant's it is carried on instead, as in transformers.

    :raises ExampleError: if there is no template, it does not take these messages, or it does not come to an end.
    """
    if not getattr(loaded, "chat_template", None):
        raise ExampleError(
            f"the checkpoint '{for_message(checkpoint)}' has no chat template, so it was not trained on conversations; "
            "pass the field 'text' instead of 'messages'"
        )
    from pipeline_kit.builtin.tokenizers.chat_limits import LimitError, limited

    begun = messages[-1].get("role") == "assistant"
    try:
        with quiet(), limited(messages):
            text = loaded.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
            )
    except LimitError as error:
        raise ExampleError(f"the chat template of '{for_message(checkpoint)}' was ended: {error}") from error
    except Exception as error:  # whatever a template does wrong, it does so with these messages
        raise ExampleError(
            f"the chat template of '{for_message(checkpoint)}' does not take these messages: "
            f"{type(error).__name__}: {for_message(str(error), 300)}"
        ) from error
    if not isinstance(text, str):
        raise ExampleError(
            f"the chat template of '{for_message(checkpoint)}' returned {type(text).__name__}, not a text"
        )
    return Rendered(text)


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
    """Return the fault of a tokenizer that cannot put a language to a text."""
    hint = "use tokenizer=hf, and a tokenizer_class in tokenizer_config.json that does, such as NllbTokenizer"
    return Fault("task.src_lang", f"{name} does not know where in a text the token of its language stands.", hint=hint)
