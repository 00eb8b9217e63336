"""Reading what a generator is to write to: a text, or a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_kit.errors import ExampleError, closest, shorten
from pipeline_kit.fields import read_fields, text_of
from pipeline_kit.types import Example

__all__ = ["messages_of", "text_or_messages"]


def text_or_messages(example: Example) -> str | list[Mapping[str, Any]]:
    """Give the field ``text``, or the list in the field ``messages``.

    :raises ExampleError: if both are there or none, or one is not what it has to be.
    """
    if isinstance(example, str) or not hasattr(example, "keys"):
        return text_of(read_fields(example, ("text",))["text"], "text", empty=False)
    found = {key: value for key, value in example.items() if key not in ("text", "messages") or value not in (None, "")}
    if "messages" not in found:
        return text_of(read_fields(example, ("text",), ("messages",))["text"], "text", empty=False)
    if "text" in found:
        raise ExampleError("an example has either a 'text' or 'messages', not both")
    read_fields(found, ("messages",), ("text",))
    return messages_of(found["messages"])


def messages_of(value: object) -> list[Mapping[str, Any]]:
    """Give the messages of a conversation; a string may hold them as JSON, as in a CSV cell.

    :raises ExampleError: if it is no list of mappings with a ``role`` and a ``content``, both strings.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ExampleError(f"the field 'messages' is no JSON list of messages: {shorten(str(error))}") from error
    if not isinstance(value, Sequence):
        raise ExampleError(f"the field 'messages' is {type(value).__name__}, not a list of messages: {shorten(value)}")
    if not value:
        raise ExampleError("the field 'messages' is empty; it needs at least one message")
    return [_message(item, f"messages[{place}]") for place, item in enumerate(value)]


def _message(item: object, where: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        example = '{"role": "user", "content": "Hello"}'
        raise ExampleError(f"{where} is {type(item).__name__}, not a message such as {example}: {shorten(item)}")
    for name in ("role", "content"):
        if name not in item:
            near = closest(name, [str(key) for key in item])
            hint = f". Is '{shorten(near)}' meant to be it?" if near else ""
            raise ExampleError(
                f"{where} lacks '{name}'; it has: {shorten(', '.join(map(str, item)) or 'nothing')}{hint}"
            )
        text_of(item[name], f"{where}.{name}", empty=name == "content")
    return item
