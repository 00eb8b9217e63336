"""The numbers that a result depends on, as stages name them: targets, and a network with gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_kit.contract.types import ModelOutput, TokenBatch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Target:
    """A number of the model's that made a result, for views that ask what it depends on.

    :param encoding: the place, among those of the example, of the encoding that it was computed from.
    :param name: what it is, in words: ``logit of 'POSITIVE'``.
    :param value: returns it, ``[N]``, from the model's outputs for N variants of that encoding; keeps gradients.
    """

    encoding: int
    name: str
    value: Callable[[ModelOutput, TokenBatch], torch.Tensor]

    @classmethod
    def logit(cls, encoding: int, name: str, *place: int, less: int | None = None) -> Target:
        """Return the target at `place` in an encoding's ``logits``, less the logit of the label `less`."""

        def value(output: ModelOutput, batch: TokenBatch) -> torch.Tensor:
            found = output["logits"]
            for number in place:
                found = found[:, number]
            return found if less is None else found - output["logits"][:, less]

        return cls(encoding, name, value)


@dataclass(frozen=True, slots=True)
class Differentiable:
    """A network with gradients, in float32.

    :param network: torch's module; its ``get_input_embeddings()`` is the table that token ids are looked up in.
    :param forward: runs it on a batch with gradients, and returns what the stage's ``forward`` returns.
    :param note: which network it is, in a few words for people, such as ``the network itself``.
    """

    network: torch.nn.Module
    forward: Callable[[TokenBatch], ModelOutput]
    note: str
