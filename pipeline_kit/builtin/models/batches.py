"""What a network is given for a batch, and which rows it must not see together."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from pipeline_kit.types import TokenBatch

__all__ = ["Inputs", "groups_by_end", "groups_by_padding", "inputs_of", "narrow", "network_inputs"]


@dataclass(frozen=True)
class Inputs:
    """Which inputs a network takes.

    :param position_ids: whether it must be told the positions of left-padded rows.
    :param pad_token_id: the id by which the network itself tells padding from text, if it has one.
    """

    token_type_ids: bool
    position_ids: bool
    use_cache: bool
    pad_token_id: int | None


def inputs_of(network: Any) -> Inputs:
    """Find out what `network` takes.

    RoBERTa and its kin work out positions from the padding ids, so theirs must not be given.
    """
    taken = inspect.signature(network.forward).parameters
    finds_positions = any(
        hasattr(part, "create_position_ids_from_input_ids")
        or (hasattr(part, "padding_idx") and hasattr(part, "position_embeddings"))
        for part in network.modules()
    )
    return Inputs(
        token_type_ids="token_type_ids" in taken,
        position_ids="position_ids" in taken and not finds_positions,
        use_cache="use_cache" in taken,
        pad_token_id=network.config.get_text_config().pad_token_id,
    )


def network_inputs(batch: TokenBatch, takes: Inputs) -> dict[str, Any]:
    """Give the keyword arguments of a network's forward for `batch`.

    The mask is left out when there is no padding, which lets the faster attention kernels run.
    """
    given: dict[str, Any] = {"input_ids": batch.input_ids}
    if takes.use_cache:
        given["use_cache"] = False
    if takes.token_type_ids and batch.token_type_ids is not None:
        given["token_type_ids"] = batch.token_type_ids
    if batch.padded:
        given["attention_mask"] = batch.attention_mask
        if takes.pad_token_id is not None and takes.pad_token_id >= 0:
            given["input_ids"] = batch.input_ids.masked_fill(batch.attention_mask == 0, takes.pad_token_id)
        if takes.position_ids and batch.side == "left":
            given["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    return given


def groups_by_end(batch: TokenBatch, eos_token_id: int) -> list[torch.Tensor]:
    """Part the rows by how many end tokens they have.

    The sequence classifiers of BART and T5 read the last end token and refuse a batch in which the
    number of end tokens differs, as between a text and a pair.
    """
    counts = (batch.input_ids.eq(eos_token_id) & batch.attention_mask.bool()).sum(1)
    return [(counts == count).nonzero()[:, 0] for count in torch.unique(counts)]


def groups_by_padding(batch: TokenBatch, pad_token_id: int) -> list[torch.Tensor]:
    """Part rows that hold nothing but padding ids from the others, and from each other.

    A decoder's classifier reads the last token that is not the padding id. In a text of padding ids alone
    that is the first token, which left padding moves.
    """
    everything = torch.arange(len(batch.lengths), device=batch.input_ids.device)
    if not batch.padded or batch.side == "right":
        return [everything]
    hollow = (batch.input_ids.eq(pad_token_id) | batch.attention_mask.eq(0)).all(1)
    if not bool(hollow.any()):
        return [everything]
    full = everything[~hollow]
    return [*([full] if len(full) else []), *torch.split(everything[hollow], 1)]


def narrow(batch: TokenBatch, rows: torch.Tensor) -> TokenBatch:
    """Give some rows of `batch` as a batch of their own, without the columns that none of them needs."""
    lengths = batch.lengths[rows.cpu().numpy()]
    width, longest = batch.input_ids.shape[1], int(lengths.max())
    columns = slice(0, longest) if batch.side == "right" else slice(width - longest, width)
    types = batch.token_type_ids
    return TokenBatch(
        input_ids=batch.input_ids[rows, columns],
        attention_mask=batch.attention_mask[rows, columns],
        token_type_ids=None if types is None else types[rows, columns],
        lengths=lengths,
        side=batch.side,
        padded=bool((lengths != longest).any()),
    )
