"""The model ``ensemble``: several networks on the same tokens, and the mean of what they return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, final

import torch

from pipeline_kit import Model, ModelOutput, StageContext, TokenBatch
from pipeline_kit.kit import (
    Checkpoint,
    CheckpointError,
    ConfigError,
    Fault,
    HfModel,
    Panel,
    Side,
    for_message,
    positions,
    read_json,
)

from . import EnsembleConfig

_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_NOT_COMPARED = frozenset({"padding", "truncation", "version"})
"""Parts of a tokenizer.json that no encoding here depends on."""


@final
class EnsembleModel(Model):
    """The mean of the logits that the checkpoint's network and those of `members` return for the same tokens.

    All share the tokenizer of ``checkpoint.path``, so they need its vocabulary, and its labels in the same order. The
    outputs are those of ``model=hf`` for the head; ``base`` is refused, since states of two networks have no mean.
    """

    deterministic = True

    def __init__(self, config: EnsembleConfig, context: StageContext) -> None:
        """Compare the checkpoints, then load their networks.

        :raises CheckpointError: if labels or tokenizers differ, or one lacks the head.
        :raises ConfigError: for the head ``base``.
        """
        if (config.head or context.head) == "base":
            problem = "'ensemble' averages logits, and states of different networks have no mean."
            raise ConfigError([Fault("model", problem, hint="use a task with labels, such as text-classification")])
        everyone = (context.checkpoint, *context.others)
        for other in context.others:
            _check_same(context.checkpoint, other)
        self._names = [checkpoint.name for checkpoint in everyone]
        self._members: list[HfModel] = []
        for checkpoint in everyone:
            member = HfModel(config, replace(context, checkpoint=checkpoint, others=()))
            config = replace(config, **member.pinned_options)  # what the first one measured holds for all
            self._members.append(member)

    @classmethod
    def other_checkpoints(cls, config: EnsembleConfig) -> Sequence[str]:
        """Return the members."""
        return config.members

    @classmethod
    def reserved_positions(cls, config: EnsembleConfig, context: StageContext) -> int:
        """As many as the checkpoint has more than the network with the fewest, so that a text fits into each."""
        del config
        own, *others = (positions(found.config) for found in (context.checkpoint, *context.others))
        least = min((count for count in others if count is not None), default=own)
        return max(0, own - least) if own is not None and least is not None else 0

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """Those of all networks."""
        return reduce(frozenset.intersection, (member.safe_padding_sides for member in self._members))

    @property
    def tolerance(self) -> float:
        """The largest of the networks', since a mean is no further off."""
        return max(member.tolerance for member in self._members)

    @property
    def runtime_info(self) -> Mapping[str, Any]:
        """The checkpoints, and how the first network is run."""
        return {"members": self._names, **self._members[0].runtime_info}

    @property
    def pinned_options(self) -> Mapping[str, Any]:
        """See :class:`~pipeline_kit.Model`; those of the first network, which the others follow."""
        return self._members[0].pinned_options

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Return the mean of what the networks return, in float32."""
        found = [member.forward(batch) for member in self._members]
        tensors = {name: _mean([output[name] for output in found]) for name in found[0].tensors}
        return ModelOutput(tensors, found[0].per_token)

    def panels(self, batch: TokenBatch, output: ModelOutput) -> Sequence[Panel]:
        """Show each network's own logits of the first row beside their mean, where a row has one list of them."""
        if set(output.tensors) != {"logits"} or output.per_token or output["logits"].dim() != 2:
            return ()
        columns = [*(member.forward(batch)["logits"][0].float() for member in self._members), output["logits"][0]]
        names = [Path(name).name or name for name in self._names]
        heads = [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, 1)]
        rows = [[place, *values] for place, values in enumerate(torch.stack(columns, dim=1).tolist())]
        return (Panel("logits of each checkpoint", ("label", *heads, "mean"), rows, bar="mean"),)


@torch.inference_mode()
def _mean(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([part.float() for part in parts]).mean(dim=0)


def _check_same(first: Checkpoint, other: Checkpoint) -> None:
    """Refuse a member whose labels or tokenizer are not those of the first checkpoint.

    :raises CheckpointError: naming both, and what differs.
    """
    names = f"'{for_message(first.name)}' and '{for_message(other.name)}'"
    if first.labels != other.labels:
        raise CheckpointError(
            f"{names} have other labels, or in another order: {_shown(first.labels)} and {_shown(other.labels)}. "
            "model=ensemble takes checkpoints with equal ones"
        )
    different = next(_differences(first.path, other.path), None)
    if different is not None:
        raise CheckpointError(
            f"{names} have different tokenizers: {different}. model=ensemble runs all networks on the tokens of "
            "checkpoint.path, so take checkpoints that were trained from one base model"
        )


def _differences(first: Path, other: Path) -> Iterator[str]:
    """Name what differs between the tokenizers in two folders."""
    pairs = [(first / name, other / name) for name in ("tokenizer.json", *_VOCABULARIES)]
    there = [(one, two) for one, two in pairs if one.is_file() and two.is_file()]
    if not there:
        yield "they have no file of a tokenizer in common, such as tokenizer.json"
    for one, two in there:
        if one.read_bytes() == two.read_bytes():
            continue
        if one.suffix != ".json":
            yield one.name
            continue
        left, right = (read_json(path, 256 << 20) for path in (one, two))
        parts = sorted(key for key in {*left, *right} - _NOT_COMPARED if left.get(key) != right.get(key))
        if one.name == "tokenizer.json" and parts:
            yield f"'{for_message(parts[0], 60)}' in {one.name}"
        elif parts:
            yield one.name


def _shown(labels: Sequence[str]) -> str:
    return for_message(", ".join(labels[:8]), 200) + (" …" if labels[8:] else "")
