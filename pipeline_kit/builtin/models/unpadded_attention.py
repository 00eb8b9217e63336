"""Attention within each row of a packed batch, registered with transformers under a name of its own."""

from __future__ import annotations

import inspect
from typing import Any, final

import torch

from pipeline_kit.builtin.models.unpadded_rows import RUNNING, NotUnpaddableError, Rows, Varlen
from pipeline_kit.types import Device

__all__ = ["NAME", "RowMasks", "register", "varlen_kernel"]

NAME = "pipeline_kit_unpadded"
"""What ``config._attn_implementation`` says."""


@final
class RowMasks:
    """Stands for a mask until an attention layer asks for that of a row of some length.

    A network hands it on to its layers as it would a mask, so each gets the pattern that transformers means for
    it: full, causal, or within a window.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        """Keep what transformers' ``sdpa_mask`` was `asked` for."""
        self._asked = asked
        self._made: dict[int, torch.Tensor | None] = {}

    def of(self, length: int) -> torch.Tensor | None:
        """Give the mask ``[1, 1, length, length]``, bool; None where none is needed."""
        from transformers.masking_utils import sdpa_mask

        if length not in self._made:
            row = {"batch_size": 1, "q_length": length, "kv_length": length, "attention_mask": None}
            self._made[length] = sdpa_mask(**(self._asked | row))
        return self._made[length]


def register() -> None:
    """Make the name known to transformers; without a packed batch it means ``sdpa``."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)


def varlen_kernel(device: Device) -> Varlen | None:
    """Give torch's kernel for rows of any lengths, None where it does not run: it is for a GPU in half precision."""
    if device.kind != "cuda" or device.dtype == "float32":
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= set(known) else None


def _mask(*args: Any, **asked: Any) -> Any:
    from transformers.masking_utils import sdpa_mask

    if RUNNING.get() is None:
        return sdpa_mask(*args, **asked)
    if args or "q_length" not in asked:
        raise NotUnpaddableError("this version of transformers asks for masks in another way")
    return RowMasks(asked)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row: ``[1, heads, N, D]`` to ``[1, N, heads, D]``."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = RUNNING.get()
    if rows is None:
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return done
    if not isinstance(attention_mask, RowMasks):
        raise NotUnpaddableError("it makes its attention mask by itself")
    if {len(rows.places)} != {query.shape[2], key.shape[2]} or query.shape[0] != 1:
        raise NotUnpaddableError(f"its attention gets queries of shape {list(query.shape)}")
    rows.attended += 1
    result = _at_once(module, query, key, value, attention_mask, rows, given)
    if result is None:
        result = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        for start, count, length in rows.groups:
            own = slice(start, start + count * length)
            parts = (_by_row(tensor[0, :, own], count, length) for tensor in (query, key, value))
            found, _ = sdpa_attention_forward(module, *parts, attention_mask.of(length), **given)
            result[own] = found.flatten(0, 1)
    return result[None], None


def _by_row(packed: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """See ``[heads, count * length, D]`` as ``[count, heads, length, D]``."""
    return packed.view(packed.shape[0], count, length, packed.shape[2]).transpose(0, 1)


def _at_once(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    masks: RowMasks,
    rows: Rows,
    given: dict[str, Any],
) -> torch.Tensor | None:
    """Run all rows in one kernel, ``[N, heads, D]``; None where there is none or it has not the pattern."""
    if rows.varlen is None or given.get("softcap") is not None or given.get("position_bias") is not None:
        return None
    causal = given.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    behind = -1
    if masks.of(rows.longest) is not None:
        if not given.get("sliding_window"):
            return None
        behind = int(given["sliding_window"]) - 1  # transformers counts the token itself, the kernel does not
    packed = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    result: torch.Tensor = rows.varlen(
        *packed,
        rows.ends,
        rows.ends,
        rows.longest,
        rows.longest,
        scale=given.get("scaling"),
        window_size=(behind, 0 if causal else behind),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result
