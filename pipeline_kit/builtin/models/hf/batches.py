"""What a network is given for a batch, and which rows it must not see together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline_kit.contract.types import Device, Encoding, ModelOutput, Side, TokenBatch
from pipeline_kit.runtime.padding import PaddingPolicy, collate


@dataclass(frozen=True)
class NetworkInputs:
    """Which inputs a network takes.

    :param position_ids: whether it must be told the positions of left-padded rows.
    :param pad_token_id: the id by which the network itself distinguishes padding from text, if it has one.
    """

    token_type_ids: bool
    position_ids: bool
    use_cache: bool
    pad_token_id: int | None


def inputs_of(network: Any) -> NetworkInputs:
    """Find out what `network` takes; RoBERTa and its kin work out positions from the padding ids, so they take none."""
    taken = inspect.signature(network.forward).parameters
    finds_positions = any(
        hasattr(part, "create_position_ids_from_input_ids")
        or (hasattr(part, "padding_idx") and hasattr(part, "position_embeddings"))
        for part in network.modules()
    )
    return NetworkInputs(
        token_type_ids="token_type_ids" in taken,
        position_ids="position_ids" in taken and not finds_positions,
        use_cache="use_cache" in taken,
        pad_token_id=network.config.get_text_config().pad_token_id,
    )


def network_inputs(batch: TokenBatch, takes: NetworkInputs, head: str = "") -> dict[str, Any]:
    """Return the keyword arguments of a network's forward for `batch`.

    The mask is left out when there is no padding, which lets the faster attention kernels run.

    :param head: for ``multiple-choice`` each row becomes an example of one choice: a choice's logit knows no other.
    """
    given: dict[str, Any] = {"input_ids": batch.input_ids}
    if takes.use_cache:
        given["use_cache"] = False
    if takes.token_type_ids and batch.token_type_ids is not None:
        given["token_type_ids"] = batch.token_type_ids
    if batch.has_padding:
        given["attention_mask"] = batch.attention_mask
        if takes.pad_token_id is not None and takes.pad_token_id >= 0:
            given["input_ids"] = batch.input_ids.masked_fill(batch.attention_mask == 0, takes.pad_token_id)
        if takes.position_ids and batch.side == "left":
            given["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    if head == "multiple-choice":
        return {name: value[:, None] if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    return given


def row_groups(batch: TokenBatch, head: str, end: int | None, pad_token_id: int | None) -> list[torch.Tensor]:
    """Return the rows that a network with `head` may see together, group by group; one group or none: all of them.

    The sequence classifiers of BART and T5 read the last end token and refuse a batch in which the number of end
    tokens differs, as between a text and a pair. A decoder's classifier reads the last token that is not the padding
    id: in a text of padding ids alone that is the first token, which left padding moves, so such rows run alone.

    :param end: the token that the classifier of an encoder-decoder reads, None for all others.
    """
    if head != "sequence-classification":
        return []
    if end is not None:
        counts = (batch.input_ids.eq(end) & batch.attention_mask.bool()).sum(1)
        return [(counts == count).nonzero()[:, 0] for count in torch.unique(counts)]
    if pad_token_id is None or not batch.has_padding or batch.side == "right":
        return []
    hollow = (batch.input_ids.eq(pad_token_id) | batch.attention_mask.eq(0)).all(1)
    if not bool(hollow.any()):
        return []
    everything = torch.arange(len(batch.lengths), device=batch.input_ids.device)
    full = everything[~hollow]
    return [*([full] if len(full) else []), *torch.split(everything[hollow], 1)]


def forward_in_groups(
    batch: TokenBatch, groups: list[torch.Tensor], run: Callable[[TokenBatch], ModelOutput]
) -> ModelOutput:
    """Run each of `groups` of rows apart, and put their logits in the order of `batch`."""
    if len(groups) < 2:
        return run(batch)
    parts = torch.cat([run(select_rows(batch, rows))["logits"] for rows in groups])
    return ModelOutput({"logits": parts[torch.cat(groups).argsort()]})


def select_rows(batch: TokenBatch, rows: torch.Tensor) -> TokenBatch:
    """Return some rows of `batch` as a batch of their own, without the columns that none of them needs."""
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
        has_padding=bool((lengths != longest).any()),
    )


RIGHT: frozenset[Side] = frozenset({"right"})
BOTH: frozenset[Side] = frozenset({"right", "left"})
SIDES: tuple[Literal["right"], Literal["left"]] = ("right", "left")

# A classifier on an encoder reads its first position, which left padding takes away from it.
KNOWN_FAMILIES = frozenset(
    {"albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"}
    | {"xlm-roberta"}
)

# An architecture that joins neighbouring tokens meets even and odd lengths, and rows that are too short for it.
_LENGTHS = (5, 4, 11, 3, 2, 1)
_SHORT = 3


def known_sides(config: Any, head: str) -> frozenset[Side] | None:
    """Return the safe sides of the commonest families, by the network's `config`; None for all others."""
    if config.model_type not in KNOWN_FAMILIES or getattr(config, "is_decoder", False):
        return None
    return RIGHT if head in ("sequence-classification", "multiple-choice") else BOTH


def probe_sides(
    forward: Callable[[TokenBatch], ModelOutput], config: Any, device: Device, pad_token_id: int | None
) -> frozenset[Side]:
    """Run a few rows alone and beside a longer one, padded on each side; keep the sides that change nothing.

    :param pad_token_id: what fills padding in the batches that will come.
    :returns: empty if padding leaks into the answer on both sides, or if a short row runs only beside others.
    """
    filler = config.pad_token_id if config.pad_token_id is not None and config.pad_token_id >= 0 else pad_token_id
    rows = sorted(_rows(config, filler), key=len)
    alone = []
    for row in rows[:-1]:
        try:
            alone.append(forward(_batch([row], "right", filler or 0, device)))
        except (RuntimeError, ValueError, IndexError, TypeError):
            if len(row) > _SHORT:
                raise
            return frozenset()  # so that it fails in any company, as it does alone
    found: set[Side] = set()
    for side in SIDES:
        batch = _batch(rows, side, filler or 0, device)
        with suppress(RuntimeError, ValueError, IndexError, TypeError):  # one that cannot run such a batch gets none
            if _answers_as_alone(forward(batch), batch, alone, noise_of("padded", device)):
                found.add(side)
    return frozenset(found)


def sample_batch(config: Any, device: Device) -> TokenBatch:
    """Return two rows of equal length, made of ordinary ids, for a trial run of a network with this configuration."""
    row = max(_rows(config, config.get_text_config().pad_token_id), key=len)
    return _batch([row, row], "right", 0, device)


def _answers_as_alone(together: ModelOutput, batch: TokenBatch, alone: Sequence[ModelOutput], noise: float) -> bool:
    tokens = batch.attention_mask.bool()
    for place, expected in enumerate(alone):
        for name, value in expected.tensors.items():
            found = together[name][place]
            if not is_close(found[tokens[place]] if name in together.per_token else found, value[0], noise):
                return False
    return True


def _rows(config: Any, filler: int | None) -> list[list[int]]:
    """Make rows of ordinary ids, spread over the vocabulary, that end as the checkpoint's texts do."""
    text = config.get_text_config()
    size = int(text.vocab_size)
    named = [getattr(text, f"{role}_token_id", None) for role in ("bos", "eos", "cls", "sep")]
    special = {filler, *(token for ids in named for token in (ids if isinstance(ids, list) else [ids]))}
    ordinary = [token for token in range(size // 3, size) if token not in special] or [0]
    rows = [[ordinary[(7 + 31 * row + 13 * i) % len(ordinary)] for i in range(n)] for row, n in enumerate(_LENGTHS)]
    end = getattr(text, "eos_token_id", None)
    end = end[0] if isinstance(end, list) and end else end
    if config.is_encoder_decoder and isinstance(end, int):
        rows = [[*row[:-1], end] for row in rows]
    if config.model_type == "longformer":  # with some heads it runs only on pairs, which have three of these
        sep = config.sep_token_id
        rows = [[row[0], sep, *row[2:-2], sep, sep] for row in rows if len(row) > _SHORT]
    return rows


def _batch(rows: Sequence[Sequence[int]], side: Side, filler: int, device: Device) -> TokenBatch:
    return collate([Encoding(row) for row in rows], PaddingPolicy("longest", side, filler), device.name)


TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-1, "float16": 2e-2}
"""By dtype: how far logits and states of order 10 may be from those in float32."""

Change = Literal["padded", "compiled", "packed", "int8", "graph"]

_NOISE: Mapping[Change, Mapping[str, float]] = {
    "padded": {"float32": 2e-5, "bfloat16": 5e-2, "float16": 1e-2},
    "compiled": {"float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2},
    "packed": {"float32": 3e-6, "bfloat16": 5e-2},
    "int8": {"float32": 0.5},
    "graph": {"float32": 1e-4},
}
"""By what was changed and by dtype: how far equal answers may be apart, as a share of the largest number in them.

The same arithmetic in another order stays below these. A leak of padding, or a length that a graph takes for a
constant, is some hundred times above them.
"""
_NOISE_ON_GPU = 2e-4  # a GPU may round the factors of a float32 product


def noise_of(change: Change, device: Device) -> float:
    """Return how far equal answers may be apart on `device`, as a share of the largest number in them."""
    noise = _NOISE[change][device.dtype]
    return noise if device.kind == "cpu" else max(noise, _NOISE_ON_GPU)


def is_close(found: torch.Tensor, expected: torch.Tensor, noise: float) -> bool:
    """Return whether two tensors are equal: numbers up to 1 may differ by `noise`, larger ones by that share of the
    largest; NaN equals NaN.
    """
    one, other = found.float(), expected.float()
    finite = other[other.isfinite()]
    largest = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=noise * largest, equal_nan=True)


def are_close(found: ModelOutput, expected: ModelOutput, batch: TokenBatch, noise: float) -> bool:
    """Return whether two outputs for `batch` are equal, as in :func:`is_close`, but for padding, which nobody reads."""
    tokens = batch.attention_mask.bool()
    return all(
        is_close(found[name][tokens], value[tokens], noise)
        if name in expected.per_token
        else is_close(found[name], value, noise)
        for name, value in expected.tensors.items()
    )
