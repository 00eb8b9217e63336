"""Which number of the model's made a result: what an attribution explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from pipeline_kit.errors import UsageError, shorten
from pipeline_kit.explain.trace import RowTrace, SequenceTrace, Trace
from pipeline_kit.types import ModelOutput, TokenBatch

if TYPE_CHECKING:
    import torch

    from pipeline_kit.stages import Postprocessor

__all__ = ["Target", "raw_logits", "targets_of"]

Pick = Callable[[ModelOutput, TokenBatch], "torch.Tensor"]
"""Gives the number, ``[N]``, of what the model gives to N variants of one row."""


@dataclass(frozen=True)
class Target:
    """A number of the model's for one sequence of a row.

    :param name: in words, such as ``logit of 'POSITIVE'``.
    """

    sequence: int
    name: str
    pick: Pick


@runtime_checkable
class _Entails(Protocol):
    """A postprocessor that scores labels by whether the text entails a sentence with them."""

    def decisive(self, candidates: int) -> tuple[int, int | None]:
        """Give the label whose logit scores a candidate, among so many, and the one whose logit is taken off it."""
        ...


def targets_of(trace: Trace, row: RowTrace, postprocessor: Postprocessor) -> Sequence[Target]:
    """Find what made the result of `row`: of a classifier the label's logit, in each window of a long text.

    Of several texts a row was made into, one a label, a document or a choice, it is the one that won.

    :returns: nothing for a result that holds nothing, such as no entity.
    :raises UsageError: if the result is made of no logit of a class.
    """
    result = row.result
    if result is None or "logits" not in _outputs(trace, row):
        raise _no_class(trace)
    if isinstance(postprocessor, _Entails):
        return _hypothesis(trace, row, postprocessor)
    if "ranking" in result:
        return _document(trace, row, postprocessor)
    if "choice" in result and isinstance(result.get("scores"), list):
        best = int(np.argmax(result["scores"]))
        name = f"logit of the choice '{shorten(str(result['choice']), 60)}'"
        return [Target(number, name, _logit()) for number in _of_part(row, best)]
    if "entities" in result:
        return _entity(trace, row)
    if "label" in result or "logits" in result:
        return _label(trace, row)
    raise _no_class(trace)


def raw_logits(trace: Trace, row: RowTrace, number: int) -> np.ndarray[Any, Any]:
    """Give the logits that the model gave for a row's sequence, ``[L]``, ``[T, L]`` or one; none of them padding's."""
    place, line = row.places[number]
    batch = trace.batches[place]
    found = np.asarray(batch.outputs["logits"][line])
    return found[batch.attention_mask[line].astype(bool)] if "logits" in batch.per_token else found


def _label(trace: Trace, row: RowTrace) -> Sequence[Target]:
    logits = np.stack([raw_logits(trace, row, number) for number in range(len(row.sequences))])
    if logits.ndim != 2 or logits.shape[1] != len(trace.labels) or any(s.part for s in row.sequences):
        raise _no_class(trace)
    assert row.result is not None, "`targets_of` sees to it"
    named = [i for i, label in enumerate(trace.labels) if label == row.result.get("label")]
    best = max(named or range(len(trace.labels)), key=lambda i: float(logits[:, i].mean()))
    name = f"logit of {_quoted(trace.labels[best])}"
    return [Target(number, name, _logit(best)) for number in range(len(row.sequences))]


def _hypothesis(trace: Trace, row: RowTrace, postprocessor: Any) -> Sequence[Target]:
    assert row.result is not None, "`targets_of` sees to it"
    label = row.result["label"]
    text = row.example if isinstance(row.example, str) else row.example["text"]
    parts = postprocessor.prepare(row.example)
    # Beside another label, for a lone one may be refused.
    sentence = postprocessor.prepare({"text": text, "labels": [label, f"{label} "]})[0]["text_pair"]
    won = next(place for place, part in enumerate(parts) if part["text_pair"] == sentence)
    entailed, opposite = postprocessor.decisive(len(parts))
    name = f"logit of {_quoted(trace.labels[entailed])}"
    if opposite is not None:
        name += f" less that of {_quoted(trace.labels[opposite])}"
    name += f" for {_quoted(label)}"
    return [Target(number, name, _logit(entailed, less=opposite)) for number in _of_part(row, won)]


def _document(trace: Trace, row: RowTrace, postprocessor: Postprocessor) -> Sequence[Target]:
    assert row.result is not None, "`targets_of` sees to it"
    best = int(row.result["ranking"][0]["index"])

    def pick(output: ModelOutput, batch: TokenBatch) -> torch.Tensor:
        return postprocessor.reduce(output, batch)["value"][:, 0]

    if "value" not in trace.batches[row.places[0][0]].reduced:
        raise _no_class(trace)
    return [Target(number, f"value that ranks document {best}", pick) for number in _of_part(row, best)]


def _entity(trace: Trace, row: RowTrace) -> Sequence[Target]:
    """Take the first token of the entity with the highest score, in the window where most stands around it."""
    assert row.result is not None, "`targets_of` sees to it"
    entities = row.result["entities"]
    if not entities:
        return ()
    entity = max(entities, key=lambda found: float(found["score"]))
    held = [
        (min(place, len(sequence.tokens) - 1 - place), -number, place)
        for number, sequence in enumerate(row.sequences)
        for place in _first_inside(sequence, entity["start"], entity["end"])
    ]
    if not held:
        return ()
    _, negated, place = max(held)
    number = -negated
    logits = raw_logits(trace, row, number)
    if logits.shape[-1] != len(trace.labels):
        raise _no_class(trace)
    label = int(logits[place].argmax())
    token = row.sequences[number].tokens[place]
    name = f"logit of {_quoted(trace.labels[label])} at token {place}, {_quoted(token.text)}"
    return [Target(number, name, _logit(place, label))]


def _first_inside(sequence: SequenceTrace, start: int, end: int) -> list[int]:
    inside = [
        place
        for place, token in enumerate(sequence.tokens)
        if token.start is not None and token.end is not None and token.start < end and token.end > start
    ]
    return inside[:1]


def _logit(*place: int, less: int | None = None) -> Pick:
    """Pick a logit by its place in a row's, less another one of the same row."""

    def pick(output: ModelOutput, batch: TokenBatch) -> torch.Tensor:
        del batch
        logits = output["logits"]
        found = logits
        for number in place:
            found = found[:, number]
        return found if less is None else found - logits[:, less]

    return pick


def _of_part(row: RowTrace, part: int) -> list[int]:
    return [number for number, sequence in enumerate(row.sequences) if sequence.part == part]


def _outputs(trace: Trace, row: RowTrace) -> Any:
    return trace.batches[row.places[0][0]].outputs if row.places and row.places[0][0] >= 0 else {}


def _quoted(name: str) -> str:
    return f"'{shorten(name, 60)}'"


def _no_class(trace: Trace) -> UsageError:
    return UsageError(
        f"attribution explains the logit of a class, and task={shorten(trace.task, 60)} gives none. It is for "
        "text-classification, zero-shot-classification, text-ranking, multiple-choice and token-classification"
    )
