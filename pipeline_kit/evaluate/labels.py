"""Which label a value in a file means."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline_kit.contract.fields import texts_of
from pipeline_kit.errors import ExampleError, InputError, StageError, UsageError, closest_match, for_message
from pipeline_kit.files.json_text import parse_json

SHOWN = 12


class LabelSet(Protocol):
    """Labels that are known by their number."""

    @property
    def names(self) -> Sequence[str]:
        """The labels, by their number."""

    @property
    def note(self) -> str | None:
        """What a reader must know of how labels were read."""

    def gold(self, value: Any, example: Mapping[str, Any]) -> int:
        """Return the number of the label that the value of a row means."""

    def predicted(self, name: Any) -> int:
        """Return the number of a label that the pipeline returned."""


class Labels:
    """The labels that a row may have.

    A value means, in this order: what the user's map has for it; the label of that name (the same in any
    Unicode normalization); the label of that number.
    """

    def __init__(
        self, names: Sequence[str], mapping: Mapping[str, str] | None = None, whose: str = "checkpoint's"
    ) -> None:
        """Know `names`, which are `whose`, by number; `mapping`: what a value stands for, a label or its number."""
        self.names = tuple(names)
        self._whose = whose
        self._exact = {name: number for number, name in reversed(list(enumerate(names)))}
        self._numbers = {_folded(name): number for number, name in reversed(list(enumerate(names)))}
        self._mapping = {_folded(value): target for value, target in (mapping or {}).items()}
        self.by_number = False

    def check_map(self) -> None:
        """Raise UsageError for the first target of the map that is not a label."""
        for value, target in self._mapping.items():
            if self._find(target) is None:
                near = _nearest(target, self.names)
                raise UsageError(
                    f"--labels-map {for_message(f'{value}={target}', 80)}: the {self._whose} labels are "
                    f"{listed(self.names)}." + (f" Did you mean '{value}={near}'?" if near else "")
                )

    def find(self, value: Any) -> int:
        """Return the number of the label that `value` means; raise InputError with those there are and the closest."""
        text = text_of_label(value)
        mapped = self._mapping.get(_folded(text))
        found = self._find(text if mapped is None else mapped)
        if found is None:
            near = _nearest(text, self.names)
            raise InputError(
                f"the label '{for_message(text, 80)}' is none of the {self._whose}: {listed(self.names)}."
                + (f" Did you mean '{for_message(near, 80)}'?" if near else "")
                + f" To map it: --labels-map '{for_message(text, 40)}={for_message(near or 'NAME', 40)}'"
            )
        self.by_number |= mapped is None and _folded(text) not in self._numbers
        return found

    def gold(self, value: Any, example: Mapping[str, Any]) -> int:
        """Return the number of the label that `value` means, whatever its example; see :meth:`find`."""
        return self.find(value)

    def predicted(self, name: Any) -> int:
        """Return the number of a label that the pipeline returned; raise StageError if there is none."""
        found = self._exact.get(name)
        if found is None:
            raise StageError(
                f"the postprocessor returned the label '{for_message(name, 80)}', which is none of the {self._whose}: "
                f"{listed(self.names)}; only those can be compared with a file's labels"
            )
        return found

    @property
    def note(self) -> str | None:
        """Describe how numbers were read, if there were any."""
        if not self.by_number:
            return None
        pairs = [f"{number}={name}" for number, name in enumerate(self.names)]
        return f"the labels are numbers and were read as the {self._whose} own: {listed(pairs)}"

    def _find(self, text: str) -> int | None:
        found = self._numbers.get(_folded(text))
        if found is None and text.isascii() and text.isdigit() and len(text) <= 7 and int(text) < len(self.names):
            return int(text)
        return found


def text_of_label(value: Any) -> str:
    """Return a string, a whole number, or true and false as a text; raise InputError for another label."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError("the label is empty; leave rows without a label out of the file")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"a label is a text or a whole number, not {for_message(json.dumps(value, default=str), 80)}")
    return value.strip()


def texts_of_row(example: Mapping[str, Any], name: str, least: int = 1) -> list[str]:
    """Return the list of texts in a field of a labelled row; raise InputError if it is none."""
    try:
        return texts_of(example.get(name), name, least=least)
    except ExampleError as error:
        raise InputError(str(error)) from error


def listed(names: Sequence[str]) -> str:
    """Name labels for a message, the first ones of many."""
    shown = ", ".join(for_message(name, 60) for name in names[:SHOWN])
    return f"{shown}, … ({len(names):,})" if len(names) > SHOWN else shown


def parse_labels_map(values: Sequence[str]) -> dict[str, str]:
    """Read ``--labels-map``: ``neg=NEGATIVE,pos=POSITIVE``, or the same as JSON; raise UsageError for anything else."""
    found: dict[str, str] = {}
    for text in values:
        for value, target in _pairs(text):
            if found.setdefault(value, target) != target:
                raise UsageError(
                    f"--labels-map: '{for_message(value, 40)}' stands for '{for_message(found[value], 40)}' "
                    f"and for '{for_message(target, 40)}'; pass one"
                )
    return found


def _pairs(text: str) -> list[tuple[str, str]]:
    form = "write LABEL=NAME, such as neg=NEGATIVE,pos=POSITIVE, or a JSON object"
    if text.lstrip().startswith("{"):
        try:
            return [(name, text_of_label(target)) for name, target in parse_json(text).items()]
        except InputError as error:
            raise UsageError(f"--labels-map {for_message(text, 80)}: {error}; {form}") from error
    pairs = []
    for pair in text.split(","):
        value, equals, target = (part.strip() for part in pair.partition("="))
        if not value or not equals or not target:
            raise UsageError(f"--labels-map {for_message(pair, 80)}: {form}")
        pairs.append((value, target))
    return pairs


def _nearest(text: str, names: Sequence[str]) -> str | None:
    """Return the only name that `text` shortens, such as ``pos``, else the closest one."""
    begun = [name for name in names if name.casefold().startswith(text.casefold())]
    return begun[0] if len(begun) == 1 else closest_match(text, names)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def as_list(gold: Any) -> list[Any] | None:
    """Return a list of labels, also one that is written as JSON in a cell; None if it is none."""
    if isinstance(gold, str) and gold.lstrip().startswith("["):
        gold = parse_json(gold)
    return gold if isinstance(gold, list) else None
