"""Reading the named fields of an example, with errors that name the field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from pipeline_kit.contract.types import Example
from pipeline_kit.errors import ExampleError, closest_match, did_you_mean, for_message


def is_missing(value: object) -> bool:
    """Return whether a column has no value in a row: None, NaN, or the ``NA`` and ``NaT`` of pandas."""
    if isinstance(value, str):
        return False
    nan = isinstance(value, Real) and value != value
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def lacks_value(example: object, takes: Sequence[str]) -> bool:
    """Return whether an example has no value: it is missing, or a mapping where a field that the task needs is.

    :param takes: the task's fields, a ``?`` behind one that may be left out.
    """
    if not isinstance(example, Mapping):
        return is_missing(example)
    null = {name: is_missing(value) for name, value in example.items()}
    known = any(name.removesuffix("?") in null for name in takes)
    return any(null.get(name, False) for name in takes) or (known and all(null.values()))


def read_fields(example: Example, required: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, Any]:
    """Return the fields of `example`; a string stands for the first required one, where that one is enough.

    :raises ExampleError: if it is neither a string nor a mapping, lacks a required field or has an unknown one.
    """
    known = (*required, *optional)
    wanted = " and ".join(f"'{name}'" for name in required)
    if isinstance(example, str):
        if len(required) == 1:
            return {required[0]: example}
        raise ExampleError(f"an example is a mapping with the fields {wanted}, not a text: {for_message(example)}")
    if not hasattr(example, "keys"):
        first = "a text or " if len(required) == 1 else ""
        raise ExampleError(
            f"an example is {first}a mapping with the field{'s' * (len(required) > 1)} {wanted}, "
            f"not {type(example).__name__}: {for_message(example)}"
        )
    missing = [name for name in required if name not in example]
    unknown = [str(key) for key in example if key not in known]
    if missing:
        found = for_message(", ".join(map(str, example)) or "no field")
        near = closest_match(missing[0], unknown)
        hint = f". Is '{for_message(near)}' meant to be it?" if near else ""
        raise ExampleError(f"the field '{missing[0]}' is missing; found: {found}{hint}")
    if unknown:
        listed = ", ".join(f"'{name}'" for name in known[:-1]) + f" and '{known[-1]}'" if len(known) > 1 else wanted
        verb = "fields are" if len(known) > 1 else "only field is"
        raise ExampleError(
            f"unknown field '{for_message(unknown[0])}'; the {verb} {listed}.{did_you_mean(unknown[0], known)}"
        )
    return example


def text_of(value: object, name: str, *, empty: bool = True) -> str:
    """Return the text in the field `name`.

    :param empty: whether a text of nothing but white space will do.
    :raises ExampleError: if it is not a string, holds a lone surrogate, which no encoder can represent, or is empty
        where it may not be.
    """
    if not isinstance(value, str):
        raise ExampleError(f"the field '{name}' is {type(value).__name__}, not a string: {for_message(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ExampleError(f"the field '{name}' has a lone surrogate at character {error.start}") from error
    if not empty and not value.strip():
        raise ExampleError(f"the field '{name}' is empty")
    return value


def texts_of(value: object, name: str, *, least: int = 1) -> list[str]:
    """Return the list of texts in the field `name`; a string may hold such a list as JSON, as in a CSV cell.

    :raises ExampleError: if it is not a list of strings, or has fewer than `least` of them.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ExampleError(f"the field '{name}' is not a JSON list of texts: {for_message(str(error))}") from error
    if not isinstance(value, list | tuple):
        raise ExampleError(
            f"the field '{name}' is {type(value).__name__}, not a list of texts: {for_message(value)}; "
            'in CSV write it as JSON: ["one", "two"]'
        )
    if len(value) < least:
        count = f"{len(value)} text{'s' * (len(value) != 1)}"
        raise ExampleError(f"the field '{name}' has {count}; it needs at least {least}")
    return [text_of(item, f"{name}[{place}]") for place, item in enumerate(value)]


def text_and_pair(example: Example) -> tuple[str, str | None]:
    """Read the fields ``text`` and ``text_pair`` of an example, as most tokenizers need them.

    :raises ExampleError: if it is neither a string nor a mapping with a ``text``, if it has other
        fields, or if a text holds a lone surrogate, which no encoder can represent.
    """
    if isinstance(example, str):
        return text_of(example, "text"), None
    fields = read_fields(example, ("text",), ("text_pair",))
    pair = fields.get("text_pair")
    return text_of(fields["text"], "text"), None if pair is None else text_of(pair, "text_pair")
