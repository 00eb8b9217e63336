"""The texts that ``bench`` and ``tune`` measure on: the user's, or a sample made by rule, the same on every machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline_kit.cli.inputs import Inputs
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import RowFailure, UsageError, for_message

if TYPE_CHECKING:
    from pipeline_kit.bench.sides import PipelineSide
    from pipeline_kit.compose.schema import PipelineConfig

GIVEN_ROWS = 512
MOST_ROWS = 1_000_000
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


def add_text_flags(group: argparse._ActionsContainer) -> None:
    """Add ``--sample`` and ``--rows``."""
    group.add_argument(
        "--sample", metavar="|".join(SAMPLES), choices=SAMPLES, help="texts that are built in; default: short"
    )
    group.add_argument(
        "--rows",
        metavar="N",
        type=int,
        help=f"how many texts; default: the sample's own, of a file the first {GIVEN_ROWS}",
    )


@dataclass(frozen=True)
class BenchTexts:
    """What to measure on.

    :param given: the user's rows; None for a sample.
    """

    given: Inputs | None
    sample: SampleName
    rows: int | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> BenchTexts:
        """Read parsed flags.

        :raises UsageError: for an unknown sample, or flags that contradict each other.
        """
        if args.rows is not None and not 1 <= args.rows <= MOST_ROWS:
            raise UsageError(f"--rows {args.rows}: pass 1 to {MOST_ROWS:,} texts")
        given = bool(args.text or args.json_rows or args.input)
        if given and args.sample is not None:
            raise UsageError("--sample is for want of texts; leave it out, or --text, --json and --input")
        if not given and (args.fields or args.input_format):
            raise UsageError("--fields and --input-format say how to read --input FILE, which is not there")
        return cls(Inputs.of(args) if given else None, args.sample or "short", args.rows)

    @property
    def files(self) -> list[str]:
        """The files that are read."""
        return [] if self.given is None else self.given.files

    @property
    def source(self) -> str:
        """The sample's name, or ``given``."""
        return self.sample if self.given is None else "given"

    def check(self, config: PipelineConfig) -> None:
        """Check what can be checked before a model is loaded.

        :raises UsageError: if there is no sample for the task, or a ``--fields`` it has not.
        :raises InputError: if a file cannot be read.
        """
        if self.given is None:
            sample_examples(self.sample, 1, config.task.takes)
        else:
            self.given.records(config.input, config.task.takes)

    def examples(self, first: PipelineSide) -> tuple[list[Example], list[str]]:
        """Return the examples for the task of `first`, and what to note about them.

        :raises UsageError: if there is none.
        """
        takes = first.config.task.takes
        if self.given is None:
            options = first.config.postprocessor.options
            mask = _mask(first) if hasattr(options, "mask_token") else None
            labels = "labels?" in takes and not getattr(options, "labels", None)
            return sample_examples(self.sample, self.rows or sample_rows(self.sample), takes, mask, labels), []
        limit = self.rows or GIVEN_ROWS
        records = self.given.first(first.config.input, takes, limit + 1)
        notes = []
        if len(records) > limit and self.rows is None:
            notes.append(f"the first {limit} rows of the input were taken; --rows N takes others")
        broken = [record for record in records[:limit] if isinstance(record, RowFailure)]
        found: list[Example] = [record for record in records[:limit] if not isinstance(record, RowFailure)]
        if broken:
            notes.append(f"{len(broken)} rows could not be read, such as row {broken[0].index}: {broken[0].message}")
        if not found:
            raise UsageError(f"the input has no row to measure on{': ' + broken[0].message if broken else ''}")
        return found, notes


def _mask(first: PipelineSide) -> str:
    """Return how a mask is written for the checkpoint."""
    from pipeline_kit.compose.build import checkpoint_of

    named: Any = getattr(first.config.postprocessor.options, "mask_token", None)
    named = named or checkpoint_of(first.config).tokenizer_config.get("mask_token")
    text = named.get("content") if isinstance(named, dict) else named
    if not isinstance(text, str):
        name = Path(str(first.description["checkpoint"]["name"])).name
        raise UsageError(
            f"'{for_message(name, 80)}' names no mask_token, which a sample would need; pass texts with --text"
        )
    return text


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
        raise UsageError(f"bench has no sample for the field '{unknown[0]}'; pass rows with --json or --input")
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
    who, did, how, what, where = (_one(words, random) for words in (_WHO, _DID, _HOW, _WHAT, _WHERE))
    text = f"{who} {did} the {how} {what} {where}"
    if random.random() < 0.5:
        text += f", {_one(_THEN, random)}"
    return text[0].upper() + text[1:] + "."


def _one(words: Sequence[str], random: Random) -> str:
    return words[_below(random, len(words))]


def _below(random: Random, limit: int) -> int:
    """Draw with ``random()`` alone, whose numbers are the same in every version of Python."""
    return int(random.random() * limit)
