"""Which pipelines ``bench`` measures: the composed one, those of ``-m`` and ``--vs``, and transformers' own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline_kit.cli.selection import Selection
from pipeline_kit.errors import UsageError, closest, shorten
from pipeline_kit.redaction import without_secrets

if TYPE_CHECKING:
    from pipeline_kit.bench.sides import BenchSide, PipelineSide
    from pipeline_kit.pipeline_config import PipelineConfig

__all__ = ["Choice", "against_library", "choices"]

LIBRARY = "transformers"
_LIBRARY = re.compile(r"transformers(:(\d{1,6}))?")


@dataclass(frozen=True)
class Choice:
    """A pipeline of ours that is measured, under a name for the report."""

    name: str
    config: PipelineConfig

    def build(self) -> PipelineSide:
        """Load its model."""
        from pipeline_kit.bench.sides import PipelineSide
        from pipeline_kit.build import build

        return PipelineSide(self.name, build(self.config), self.config)


def choices(selection: Selection, others: Sequence[str]) -> list[Choice]:
    """Compose every pipeline before any is built, the first one as the flags say it.

    :param others: the values of ``--vs``.
    :raises UsageError: if a value is neither overrides nor a library, or the sides take other fields.
    :raises ConfigError: if one cannot be composed.
    """
    mine = [text for text in others if not text.startswith(LIBRARY)]
    words = [_words(text) for text in mine]
    for text in others:
        if text.startswith(LIBRARY):
            _batch_size(text)
    registry = selection.registry()
    if selection.multirun:
        if mine:
            raise UsageError("-m gives several pipelines already; leave --vs OVERRIDES out, or -m")
        found = [
            Choice(" ".join(without_secrets(job)) or "no overrides", config)
            for job, config in selection.compositions(registry)
        ]
    else:
        found = [Choice("as given", config) for _, config in selection.compositions(registry)]
    for more in words:
        varied = replace(selection, overrides=(*selection.overrides, *more))
        found += [
            Choice(" ".join(without_secrets(more)) or "the same again", config)
            for _, config in varied.compositions(registry)
        ]
    takes = found[0].config.task.takes
    for choice in found[1:]:
        if choice.config.task.takes != takes:
            raise UsageError(
                f"'{shorten(choice.name, 80)}' takes {', '.join(choice.config.task.takes)}, the first pipeline "
                f"{', '.join(takes)}: both have to take the same texts"
            )
    return _told_apart(found)


def against_library(first: PipelineSide, others: Sequence[str]) -> list[BenchSide]:
    """Load ``transformers.pipeline()`` for each ``--vs transformers``, on the checkpoint of the first pipeline.

    :raises UsageError: if it has no such task.
    """
    sizes = dict.fromkeys(_batch_size(text) for text in others if text.startswith(LIBRARY))
    if not sizes:
        return []
    from pipeline_kit.bench.against_transformers import TransformersSide

    return [TransformersSide(first.pipeline, first.config, size) for size in sizes]


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f'--vs "{shorten(text, 80)}": {error}; write overrides as behind a command') from error
    for word in words:
        if "=" not in word:
            near = closest(word, [LIBRARY])
            hint = f" Did you mean '{near}'?" if near else ""
            raise UsageError(
                f"--vs {shorten(word, 80)}: write overrides (key=value), {LIBRARY}, or {LIBRARY}:8 "
                f"for batches of 8.{hint}"
            )
    return words


def _batch_size(text: str) -> int:
    found = _LIBRARY.fullmatch(text)
    size = int(found[2] or 1) if found else 0
    if size < 1:
        raise UsageError(f"--vs {shorten(text, 80)}: write {LIBRARY}, or {LIBRARY}:8 for batches of 8")
    return size


def _told_apart(found: Sequence[Choice]) -> list[Choice]:
    """Put numbers behind the names that stand for several sides."""
    seen: dict[str, int] = {}
    named = []
    for choice in found:
        seen[choice.name] = seen.get(choice.name, 0) + 1
        number = seen[choice.name]
        named.append(choice if number == 1 else replace(choice, name=f"{choice.name} ({number})"))
    return named
