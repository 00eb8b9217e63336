"""Which labels of a checkpoint for natural language inference mean entailment and its opposite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_kit.errors import CheckpointError, ConfigError, Fault, closest, shorten

__all__ = ["Entailment", "find_entailment"]

_ENTAILED = re.compile(r"entail", re.IGNORECASE)
_OPPOSITE = re.compile(r"contradict|(not|non|no)[\s_-]*entail", re.IGNORECASE)


@dataclass(frozen=True)
class Entailment:
    """Places in a checkpoint's labels.

    :param entailed: the label for "the hypothesis follows from the text".
    :param opposite: the label for its contradiction, None if no label says so.
    """

    entailed: int
    opposite: int | None


def find_entailment(
    labels: Sequence[str], checkpoint: str, entailment: str | None = None, contradiction: str | None = None
) -> Entailment:
    """Find the two labels by the beginning of their names in any case, or by the user's word.

    Of two labels the one that is not entailment is its opposite, whatever its name.

    :param checkpoint: its name, for the messages.
    :param entailment: what the user names, None to look for it; likewise `contradiction`.
    :raises ConfigError: if the user names a label that is not there, or the same one twice.
    :raises CheckpointError: if no label, or more than one, is found to mean entailment.
    """
    _check_named(labels, entailment, contradiction)
    named = None if entailment is None else labels.index(entailment)
    entailed = _find_entailed(labels, checkpoint, contradiction) if named is None else named
    if contradiction is not None:
        return Entailment(entailed, labels.index(contradiction))
    found = [i for i, label in enumerate(labels) if i != entailed and _OPPOSITE.match(label.strip())]
    if not found and len(labels) == 2:
        found = [1 - entailed]
    return Entailment(entailed, found[0] if len(found) == 1 else None)


def _check_named(labels: Sequence[str], entailment: str | None, contradiction: str | None) -> None:
    faults = [
        Fault(f"postprocessor.{option}", f"the checkpoint has no label '{shorten(name)}'.", _few(labels), near)
        for option, name in (("entailment_label", entailment), ("contradiction_label", contradiction))
        if name is not None and name not in labels
        for near in [closest(name, labels)]
    ]
    if not faults and entailment is not None and entailment == contradiction:
        problem = f"'{shorten(entailment)}' is postprocessor.entailment_label already."
        others = [label for label in labels if label != entailment]
        faults.append(Fault("postprocessor.contradiction_label", problem, _few(others)))
    if faults:
        raise ConfigError(faults)


def _find_entailed(labels: Sequence[str], checkpoint: str, contradiction: str | None) -> int:
    found = [i for i, label in enumerate(labels) if _ENTAILED.match(label.strip()) and label != contradiction]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"'{label}'" for label in _few(labels))
    if found:
        problem = f"has more than one label for entailment among {listed}"
    else:
        problem = f"has no label for entailment among {listed}"
    raise CheckpointError(
        f"'{checkpoint}' {problem}; this task needs a checkpoint trained on natural language inference (NLI). "
        "If this one is, name its labels: postprocessor.entailment_label=… postprocessor.contradiction_label=…"
    )


def _few(labels: Sequence[str], limit: int = 12) -> tuple[str, ...]:
    shown = tuple([shorten(label, 80) for label in labels[:limit]])
    return shown if len(labels) <= limit else (*shown, f"and {len(labels) - limit} more")
