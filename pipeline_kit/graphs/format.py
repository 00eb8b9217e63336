"""What a runtime's plugin brings: a graph that runs, and how one is written and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from pipeline_kit.builtin.models.hf.batches import NetworkInputs, network_inputs
from pipeline_kit.contract.types import Device, Side, TokenBatch


class Graph(ABC):
    """A graph that is loaded."""

    @abstractmethod
    def __call__(self, given: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Run the graph.

        :param given: its inputs by name, and perhaps more than it has; int64.
        :param names: the outputs to give.
        :returns: float tensors on the device of the inputs, in memory of their own.
        :raises RuntimeError: whatever the runtime reports, lack of memory in torch's words.
        """


class GraphFormat(ABC):
    """How a network becomes a graph in a folder.

    :cvar name: what messages call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def trace(self, network: Any, inputs: Mapping[str, Any], shapes: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        """Return the graph of `network` in float32, in the runtime's own form.

        Any exception but lack of memory means that the exporter cannot express the network. What is printed or
        logged meanwhile is hidden.

        :param inputs: a trial batch by the names of the network's inputs, and perhaps ``use_cache``.
        :param shapes: the dimensions of those tensors that vary, for ``torch.export``.
        :param outputs: the tensors to keep, by transformers' names; what only other ones need should go.
        """

    @abstractmethod
    def save(self, program: Any, folder: Path) -> None:
        """Write what `trace` returned into an empty folder."""

    @abstractmethod
    def load(self, folder: Path, device: Device) -> Graph:
        """Load what `save` wrote.

        :raises RuntimeError: if the runtime cannot.
        """


PER_TOKEN = frozenset({"base", "token-classification", "question-answering", "masked-lm"})
"""The heads that answer for each token; the others answer for a row."""

OUTPUTS = {"base": ("last_hidden_state",), "question-answering": ("start_logits", "end_logits")}
"""By head: what a graph returns, by transformers' names; of the others it is ``logits``."""


@dataclass(frozen=True)
class GraphInfo:
    """What is known of a graph.

    :param takes: the inputs of its network; ``token_type_ids`` only if the tokenizer returns them.
    :param sides: on which padding may stand.
    :param end: the token that the classifier of an encoder-decoder reads, None for all others.
    """

    head: str
    takes: NetworkInputs
    sides: frozenset[Side]
    end: int | None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs."""
        return OUTPUTS.get(self.head, ("logits",))

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return {**asdict(self), "sides": sorted(self.sides)}

    @classmethod
    def from_json(cls, found: Any) -> GraphInfo:
        """Read what `to_json` returned.

        :raises KeyError: or TypeError, if `found` is something else.
        """
        return cls(found["head"], NetworkInputs(**found["takes"]), frozenset(found["sides"]), found["end"])


def graph_inputs(batch: TokenBatch, head: str, takes: NetworkInputs) -> dict[str, torch.Tensor]:
    """Return a graph's inputs for `batch`: all of them, each time.

    They are those of ``model=hf``, and where it leaves one out, what the network then takes for it.
    """
    given = network_inputs(batch, takes)
    given.pop("use_cache", None)
    given.setdefault("attention_mask", batch.attention_mask)
    if takes.token_type_ids and "token_type_ids" not in given:
        raise ValueError("this graph was exported with token_type_ids, and the tokenizer returned none")
    if takes.position_ids and "position_ids" not in given:
        width = batch.input_ids.shape[1]
        places = torch.arange(width, device=batch.input_ids.device)
        given["position_ids"] = places.expand(batch.input_ids.shape)
    if head == "multiple-choice":  # each row is an example of one choice
        given = {name: value[:, None] for name, value in given.items()}
    return given
