"""What tests of parity share: a checkpoint, how the results of a task are compared, and every way to batch."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import transformers
from harness import builtins, checkpoint, pipeline_of, task_of, with_files

from pipeline_kit import Pipeline
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.options import parse_options
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Side
from pipeline_kit.errors import Fault
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy

TOLERANCE = 1e-5
MAX_LENGTH = 48
RIGHT: frozenset[Side] = frozenset({"right"})
LEFT: frozenset[Side] = frozenset({"left"})
BOTH: frozenset[Side] = RIGHT | LEFT
NEITHER: frozenset[Side] = frozenset()


@dataclass(frozen=True)
class Case:
    """A checkpoint: the arguments of ``tiny_checkpoint``, and on which sides it may be padded.

    :param files: keys of JSON files that are put into the folder.
    :param generation: options of generation, for both.
    """

    parity: Parity
    architecture: str
    sides: frozenset[Side]
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        named = {**self.options, **self.files, **self.generation}
        said = (f"{key}={value}".replace("torch.nn.modules.", "") for key, value in named.items())
        return "-".join([self.parity.task, self.architecture, *said])

    def folder(self, place: Path) -> Path:
        """Return the checkpoint; one with files of its own is a copy in `place`."""
        head = task_of(self.parity.task).head
        found = checkpoint(self.architecture, head=head, **self.parity.sizes, **self.options)
        if self.files:
            found = shutil.copytree(found, place / "checkpoint")
            self.parity.prepare(self, found)
            with_files(found, **self.files)
        return found


Variant = tuple[Mapping[str, Any], Mapping[str, Any], Sequence[Any]]
"""Our options of the postprocessor, the options of the reference, and the examples for both."""


class Parity:
    """How the results of a task are compared."""

    task: ClassVar[str]
    examples: ClassVar[Sequence[Any]]
    ours: ClassVar[Mapping[str, Any]] = {}
    theirs: ClassVar[Mapping[str, Any]] = {}
    model: ClassVar[Mapping[str, Any]] = {}
    sizes: ClassVar[Mapping[str, Any]] = {"max_positions": MAX_LENGTH}

    def prepare(self, case: Case, folder: Path) -> None:
        """Change a copy of the checkpoint before its `files` are written."""

    def pipe(self, case: Case, folder: Path, **ours: Any) -> Pipeline:
        return pipeline_of(self.task, folder, model=self.model, **ours)

    def reference(self, case: Case, folder: Path) -> Any:
        return transformers.pipeline(self.task, model=str(folder), device="cpu")

    def texts(self, case: Case) -> Sequence[Any]:
        return self.examples

    def expected(self, reference: Any, example: Any, **theirs: Any) -> Any:
        """Return the reference's answer to one example, in the form that `read` makes of ours."""
        raise NotImplementedError

    def read(self, result: Mapping[str, Any]) -> Any:
        """Return what is compared, after checking what a result says twice."""
        raise NotImplementedError

    def close(self, found: Any, wanted: Any) -> bool:
        """Return whether two answers are equal to the tolerance."""
        raise NotImplementedError

    def differ(self, wanted: Sequence[Any]) -> bool:
        """Return whether the answers differ enough from example to example for the comparison to be of use."""
        raise NotImplementedError

    def variants(self, case: Case, reference: Any) -> Iterator[Variant]:
        """Yield the options to compare besides `ours` and `theirs`."""
        yield from ()

    def check(self, example: Any, result: Mapping[str, Any]) -> None:
        """Check what holds for every result of `example`."""

    def check_more(self, case: Case, pipe: Pipeline, wanted: Sequence[Any]) -> None:
        """Check what only this task has."""


def ways(pipe: Pipeline) -> Iterator[Pipeline]:
    """Yield the pipeline with every padding policy and three batchings, on the sides that are safe by turns."""
    pad, limit = pipe.padding.pad_token_id, pipe.tokenizer.max_length or 64
    policies = [PaddingPolicy("none", "right", pad)]
    sides = sorted(pipe.model.safe_padding_sides, reverse=True) if pipe.tokenizer.pad_token_id is not None else []
    if sides:
        policies += [PaddingPolicy("longest", sides[0], pad, limit), PaddingPolicy("max_length", sides[-1], pad, limit)]
        policies += [PaddingPolicy("multiple_of", sides[0], pad, limit, multiple_of=7)]
    batchings = (BatchingPolicy(), BatchingPolicy(max_tokens=90), BatchingPolicy(False, None, 3, 4))
    for place, policy in enumerate(policies):
        yield replace(pipe, padding=policy, batching=batchings[place % 3])


def check_any_order(
    pipe: Pipeline, examples: Sequence[Any], wanted: Sequence[Any], close: Callable[[Mapping[str, Any], Any], bool]
) -> None:
    """Check that the results of every way to batch are `wanted`, whatever the order."""
    order, chance = list(range(len(examples))), random.Random(7)
    for way in ways(pipe):
        chance.shuffle(order)
        for place, result in zip(order, way([examples[place] for place in order]), strict=True):
            assert close(result, wanted[place]), (way.padding, way.batching, examples[place], result, wanted[place])


def with_options(task: str, pipe: Pipeline, folder: Path, **options: Any) -> Pipeline:
    """Return `pipe` with other options of the task's postprocessor; its tokenizer and its model stay."""
    head, stage = task_of(task).head, builtins().get("postprocessor", task_of(task).postprocessor)
    found = resolve_checkpoint(CheckpointConfig(path=str(folder)))
    context = StageContext(found, pipe.device, head, task=task, tokenizer=pipe.tokenizer, model=pipe.model)
    faults: list[Fault] = []
    config = parse_options(stage.config, options, "postprocessor", faults)
    assert faults == []
    return replace(pipe, postprocessor=stage.load()(config, context))


def near(found: Mapping[Any, float], wanted: Mapping[Any, float]) -> bool:
    """Return whether two mappings have the same keys, and numbers that are equal to the tolerance."""
    return found.keys() == wanted.keys() and all(abs(found[key] - wanted[key]) <= TOLERANCE for key in wanted)
