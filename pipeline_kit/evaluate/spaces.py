"""The labels of a whole evaluation: those of the checkpoint, or the candidates that rows bring themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

from pipeline_kit.builtin.postprocessors.hypotheses import candidates
from pipeline_kit.errors import ExampleError, InputError, StageError, UsageError, shorten
from pipeline_kit.evaluate.base import Setting
from pipeline_kit.evaluate.labels import Labels, listed

__all__ = ["CandidateSpace", "CheckpointSpace", "Space"]


class Space(ABC):
    """Numbers for the labels that occur."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The labels by their number."""

    @property
    @abstractmethod
    def note(self) -> str | None:
        """What to know of how labels were read."""

    @abstractmethod
    def gold(self, value: Any, example: Mapping[str, Any]) -> int:
        """Give the number of a row's label; raises InputError if it can be none."""

    @abstractmethod
    def predicted(self, name: Any) -> int:
        """Give the number of a label that the pipeline gave; raises StageError if there is none."""


@final
class CheckpointSpace(Space):
    """The labels of the checkpoint."""

    def __init__(self, setting: Setting) -> None:
        """Take them, and check the user's map against them."""
        self._labels = Labels(setting.labels, setting.labels_map)
        self._labels.check_map()
        self._numbers = {name: number for number, name in reversed(list(enumerate(setting.labels)))}

    @property
    def names(self) -> Sequence[str]:
        """See :class:`Space`."""
        return self._labels.names

    @property
    def note(self) -> str | None:
        """See :class:`Space`."""
        return self._labels.note

    def gold(self, value: Any, example: Mapping[str, Any]) -> int:
        """See :class:`Space`."""
        del example
        return self._labels.find(value)

    def predicted(self, name: Any) -> int:
        """See :class:`Space`."""
        found = self._numbers.get(name)
        if found is None:
            raise StageError(
                f"the postprocessor gave the label '{shorten(name, 80)}', which is none of the checkpoint's: "
                f"{listed(self._labels.names)}; only those can be held against a file's labels"
            )
        return found


@final
class CandidateSpace(Space):
    """The candidate labels of a row where it has its own, else those of the config."""

    def __init__(self, setting: Setting) -> None:
        """Take the config's, which may be none."""
        self._mapping = setting.labels_map
        self._own = Labels(getattr(setting.options, "labels", ()), self._mapping, "candidates")
        if self._own.names:
            self._own.check_map()
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        for name in self._own.names:
            self._number(name)
        self._last = self._own
        self._by_number: Labels | None = None

    @property
    def names(self) -> Sequence[str]:
        """See :class:`Space`."""
        return self._names

    @property
    def note(self) -> str | None:
        """See :class:`Space`."""
        return None if self._by_number is None else self._by_number.note

    def gold(self, value: Any, example: Mapping[str, Any]) -> int:
        """See :class:`Space`."""
        labels = self._labels(example.get("labels"))
        name = labels.names[labels.find(value)]
        if labels.by_number:
            self._by_number = labels
        return self._number(name)

    def predicted(self, name: Any) -> int:
        """See :class:`Space`."""
        return self._number(name)

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name]

    def _labels(self, own: Any) -> Labels:
        if own is None or (isinstance(own, str) and not own.strip()):
            if not self._own.names:
                raise UsageError(
                    "there are no candidate labels: set postprocessor.labels=[sport,politics], say, or give every "
                    "row a field 'labels'"
                )
            return self._own
        try:
            names = tuple(candidates(own, "labels"))
        except ExampleError as error:
            raise InputError(str(error)) from error
        if names != self._last.names:
            self._last = Labels(names, self._mapping, "candidates")
        return self._last
