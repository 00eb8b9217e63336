"""Texts to measure on where a user passes none: sentences put together by rule, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Literal, get_args

from pipeline_kit.contract.types import Example
from pipeline_kit.errors import UsageError

SampleName = Literal["short", "mixed", "long"]
SAMPLES: tuple[SampleName, ...] = get_args(SampleName)
LABELS = ("travel", "food", "music", "business")

_ROWS = {"short": 256, "mixed": 128, "long": 32}
# By sample: how often a text has how many words. mixed is what breaks a fixed batch size: some long among many short.
_WORDS: dict[str, tuple[tuple[float, int, int], ...]] = {
    "short": ((1.0, 5, 30),),
    "mixed": ((0.80, 5, 30), (0.14, 40, 120), (0.06, 200, 400)),
    "long": ((1.0, 200, 400),),
}
_WHO = ("the guide", "our neighbour", "a young singer", "the whole crew", "my sister", "the owner", "the last guest")
_DID = ("praised", "forgot", "painted", "returned", "tasted", "repaired", "described", "missed", "carried home")
_HOW = ("slow", "bright", "clumsy", "wonderful", "cold", "honest", "noisy", "careful", "tired", "ordinary", "splendid")
_WHAT = ("soup", "bridge", "concert", "report", "garden", "ticket", "melody", "window", "market", "letter", "kitchen")
_WHERE = ("near the harbour", "in the old town", "after the storm", "on the first evening", "without a word")
_THEN = ("and nobody complained", "but it rained all day", "so we stayed longer", "and I would go again")


def sample_rows(name: SampleName) -> int:
    """Describe how many texts a sample has unless another number is asked for."""
    return _ROWS[name]


def sample_examples(
    name: SampleName, rows: int, takes: Sequence[str], mask: str | None = None, labels: bool = False
) -> list[Example]:
    """Make `rows` examples for a task; the same arguments make the same examples.

    :param takes: the task's fields, see :class:`~pipeline_kit.compose.schema.TaskConfig`; a field that may be left
        out is left out, unless no other is there.
    :param mask: put in the place of a word of each text, for a task that fills it.
    :param labels: whether the examples bring `LABELS` along.
    :raises UsageError: for a task with a field that no sample is made for.
    """
    wanted = [field for field in takes if not field.endswith("?")] or [takes[0].rstrip("?")]
    unknown = [field for field in wanted if field not in _FIELDS]
    if unknown:
        raise UsageError(f"there is no sample for the field '{unknown[0]}'; pass rows with --json or --input")
    random = Random(0)  # noqa: S311 - sentences, not secrets
    return [_example(name, wanted, mask, labels, random) for _ in range(rows)]


def _example(name: SampleName, wanted: Sequence[str], mask: str | None, labels: bool, random: Random) -> Example:
    example = {field: _FIELDS[field](_text(name, random), random) for field in wanted}
    if mask is not None:
        words = example["text"].split(" ")
        words[_below(random, min(len(words), 5))] = mask  # early, so that no truncation cuts it off
        example["text"] = " ".join(words)
    if labels:
        example["labels"] = list(LABELS)
    return str(example["text"]) if list(example) == ["text"] else example


_FIELDS: dict[str, Any] = {
    "text": lambda text, random: text,
    "text_pair": lambda text, random: _sentence(random),
    "context": lambda text, random: text,
    "question": lambda text, random: f"What was {_one(_HOW, random)} {_one(_WHERE, random)}?",
    "query": lambda text, random: f"{_one(_HOW, random)} {_one(_WHAT, random)}",
    "documents": lambda text, random: [text, *(_sentence(random) for _ in range(3))],
    "choices": lambda text, random: [_sentence(random) for _ in range(3)],
    "labels": lambda text, random: list(LABELS),
}


def _text(name: SampleName, random: Random) -> str:
    point, words = random.random(), 0
    for share, least, most in _WORDS[name]:
        words = least + _below(random, most - least + 1)
        point -= share
        if point < 0:
            break
    found: list[str] = []
    while len(found) < words:
        found += _sentence(random).split(" ")
    return " ".join(found[:words])


def _sentence(random: Random) -> str:
    parts = [
        _one(_WHO, random),
        _one(_DID, random),
        "the",
        _one(_HOW, random),
        _one(_WHAT, random),
        _one(_WHERE, random),
    ]
    if random.random() < 0.5:
        parts[-1] += ","
        parts.append(_one(_THEN, random))
    text = " ".join(parts)
    return text[0].upper() + text[1:] + "."


def _one(words: Sequence[str], random: Random) -> str:
    return words[_below(random, len(words))]


def _below(random: Random, limit: int) -> int:
    """Draw with ``random()`` alone, whose numbers are the same in every version of Python."""
    return int(random.random() * limit)
