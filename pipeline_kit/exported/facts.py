"""What a graph needs and gives, kept beside it so that a later start needs neither network nor transformers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline_kit.builtin.models.batches import Inputs, network_inputs
from pipeline_kit.types import Side, TokenBatch

__all__ = ["OUTPUTS", "PER_TOKEN", "Facts", "feed"]

PER_TOKEN = frozenset({"base", "token-classification", "question-answering", "masked-lm"})
"""The heads that answer for each token; the others answer for a row."""

OUTPUTS = {"base": ("last_hidden_state",), "question-answering": ("start_logits", "end_logits")}
"""By head: what a graph gives, by transformers' names; of the others it is ``logits``."""


@dataclass(frozen=True)
class Facts:
    """What is known of a graph.

    :param takes: the inputs of its network; ``token_type_ids`` only if the tokenizer gives them.
    :param sides: on which padding may stand.
    :param end: the token that the classifier of an encoder-decoder reads, None for all others.
    """

    head: str
    takes: Inputs
    sides: frozenset[Side]
    end: int | None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs."""
        return OUTPUTS.get(self.head, ("logits",))

    def to_json(self) -> dict[str, Any]:
        """Give the facts as JSON values."""
        return {**asdict(self), "sides": sorted(self.sides)}

    @classmethod
    def from_json(cls, found: Any) -> Facts:
        """Read what `to_json` gave.

        :raises KeyError: or TypeError, if `found` is something else.
        """
        return cls(found["head"], Inputs(**found["takes"]), frozenset(found["sides"]), found["end"])


def feed(batch: TokenBatch, head: str, takes: Inputs) -> dict[str, torch.Tensor]:
    """Give a graph's inputs for `batch`: all of them, each time.

    They are those of ``model=hf``, and where it leaves one out, what the network then takes for it.
    """
    given = network_inputs(batch, takes)
    given.pop("use_cache", None)
    given.setdefault("attention_mask", batch.attention_mask)
    if takes.token_type_ids and "token_type_ids" not in given:
        raise ValueError("this graph was exported with token_type_ids, and the tokenizer gave none")
    if takes.position_ids and "position_ids" not in given:
        width = batch.input_ids.shape[1]
        places = torch.arange(width, device=batch.input_ids.device)
        given["position_ids"] = places.expand(batch.input_ids.shape)
    if head == "multiple-choice":  # each row is an example of one choice
        given = {name: value[:, None] for name, value in given.items()}
    return given
