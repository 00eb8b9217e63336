"""The labels of a whole evaluation: those of the checkpoint, or the candidates that rows bring themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

from pipeline_kit.contract.evaluator import EvaluationContext
from pipeline_kit.errors import StageError, for_message
from pipeline_kit.evaluate.labels import Labels, listed


class LabelSet(ABC):
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
        """Return the number of a row's label; raises InputError if it can be none."""

    @abstractmethod
    def predicted(self, name: Any) -> int:
        """Return the number of a label that the pipeline returned; raises StageError if there is none."""


@final
class CheckpointLabels(LabelSet):
    """The labels of the checkpoint."""

    def __init__(self, setting: EvaluationContext) -> None:
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
                f"the postprocessor returned the label '{for_message(name, 80)}', which is none of the checkpoint's: "
                f"{listed(self._labels.names)}; only those can be compared with a file's labels"
            )
        return found
