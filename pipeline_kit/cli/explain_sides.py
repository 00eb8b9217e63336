"""Which pipelines ``explain`` shows: the composed one, and that of ``--vs``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline_kit.cli.selection import Selection
from pipeline_kit.errors import UsageError, shorten
from pipeline_kit.redaction import without_secrets

if TYPE_CHECKING:
    from pipeline_kit.pipeline import Pipeline
    from pipeline_kit.pipeline_config import PipelineConfig

__all__ = ["Side", "sides"]


@dataclass(frozen=True)
class Side:
    """One pipeline, under a name for the comparison."""

    name: str
    config: PipelineConfig

    def build(self) -> Pipeline:
        """Load its model."""
        from pipeline_kit.build import build

        return build(self.config)


def sides(selection: Selection, other: str | None) -> list[Side]:
    """Compose the pipelines before any is built.

    :param other: the value of ``--vs``.
    :raises UsageError: if it is no list of overrides, or the two take other fields.
    :raises ConfigError: if one cannot be composed.
    """
    if selection.multirun:
        raise UsageError("explain shows one pipeline, or two with --vs OVERRIDES; leave -m out")
    more = None if other is None else _words(other)
    registry = selection.registry()
    found = [Side("as given", config) for _, config in selection.compositions(registry)]
    if more is None:
        return found
    varied = replace(selection, overrides=(*selection.overrides, *more))
    found += [
        Side(" ".join(without_secrets(more)) or "the same again", config) for _, config in varied.compositions(registry)
    ]
    first, second = (side.config.task.takes for side in found)
    if first != second:
        raise UsageError(
            f"--vs: the second pipeline takes {', '.join(second)}, the first {', '.join(first)}: both have to take "
            "the same texts"
        )
    return found


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f'--vs "{shorten(text, 80)}": {error}; write overrides as behind a command') from error
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise UsageError(f"--vs {shorten(word, 80)}: write overrides (key=value), all of them in one quoted string")
    return words
