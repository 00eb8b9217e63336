"""What a step of a pipeline runs on: paths to values of an example and of earlier steps' results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline_kit.contract.types import Example

EACH = "*"
MOST_WORDS = 16


@dataclass(frozen=True)
class FieldPath:
    """Where a value stands: a field of the example or an earlier step's name, then keys and places in lists.

    ``ner.entities.0.text``; ``*`` stands for each item of a list, ``sentences.*.text``.
    """

    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: Any) -> FieldPath:
        """Read a path.

        :raises ValueError: saying what is wrong with it.
        """
        words = tuple(text.split(".")) if isinstance(text, str) else ()
        good = all(word == EACH or re.fullmatch(r"[\w-]+", word) for word in words)
        if not good or not 0 < len(words) <= MOST_WORDS or words[0] == EACH:
            raise ValueError("is not a path; write words with points between them, such as text or ner.entities.0.text")
        if words.count(EACH) > 1:
            raise ValueError(f"has several {EACH}; one list can be gone through, not lists of lists")
        return cls(words)

    def __str__(self) -> str:
        return ".".join(self.words)

    @property
    def each(self) -> FieldPath | None:
        """The path of the list whose items are gone through; None if there is none."""
        return FieldPath(self.words[: self.words.index(EACH)]) if EACH in self.words else None

    def find(self, values: Mapping[str, Any], item: int = 0) -> Any:
        """Return the value in `values`; null if there is null on the way.

        :param item: the place that ``*`` stands for.
        :raises LookupError: if there is no such key or place.
        """
        found: Any = values
        for number, word in enumerate(self.words):
            place = item if word == EACH else int(word) if word.isdecimal() and len(word) < 10 else None
            if isinstance(found, Mapping) and word in found:
                found = found[word]
            elif isinstance(found, list | tuple) and place is not None and place < len(found):
                found = found[place]
            else:
                holder = f"'{'.'.join(self.words[:number])}'" if number else "the example"
                raise LookupError(f"'{self}': {holder} has no '{item if word == EACH else word}'")
            if found is None:
                return None
        return found


@dataclass(frozen=True)
class Wiring:
    """What a step runs on.

    :param take: for each field of its examples, where its value stands.
    :param when: it runs where each path holds one of the values; null where nothing stands; None: anything but null.
    :param earlier: the names of the steps before it.
    """

    take: Mapping[str, FieldPath]
    when: Mapping[FieldPath, Sequence[Any] | None] = field(default_factory=dict)
    earlier: frozenset[str] = frozenset()

    @property
    def each(self) -> tuple[FieldPath, ...]:
        """The lists whose items it runs on, one item of each at a time; none if it runs once a row."""
        return tuple(path.each for path in (*self.take.values(), *self.when) if path.each is not None)

    def inputs(self, values: Mapping[str, Any]) -> list[Example | None] | None:
        """Return the step's examples for one row: one, or one for each item; None in the place of what it leaves out.

        :returns: None if it is to run on items of a step that did not run.
        :raises LookupError: if a field to take is not there, or lists differ in their lengths.
        """
        lists = {path: path.find(values) for path in self.each}
        if any(found is None for found in lists.values()):
            return None
        for path, found in lists.items():
            if not isinstance(found, list | tuple):
                raise LookupError(f"'{path}' is not a list")
        if len({len(found) for found in lists.values()}) > 1:
            counts = ", ".join(f"'{path}' {len(found)}" for path, found in lists.items())
            raise LookupError(f"the lists have different numbers of items: {counts}")
        return [self._input(values, item) for item in range(len(next(iter(lists.values()))) if lists else 1)]

    def _input(self, values: Mapping[str, Any], item: int) -> Example | None:
        for path, allowed in self.when.items():
            try:
                found = path.find(values, item)
            except LookupError:
                found = None
            same = (found == value and isinstance(found, bool) == isinstance(value, bool) for value in allowed or ())
            if not (found is not None if allowed is None else any(same)):
                return None
        example = {name: path.find(values, item) for name, path in self.take.items()}
        # Where an earlier step did not run, neither does one that needs its result.
        gone = any(example[name] is None and path.words[0] in self.earlier for name, path in self.take.items())
        return None if gone else example
