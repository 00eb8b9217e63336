"""BigBird's attention, which is sparse for long rows and full for short ones."""

from __future__ import annotations

from typing import Any

__all__ = ["set_attention", "sparse_part"]


def sparse_part(network: Any) -> Any:
    """Give the part of `network` whose attention depends on the length of a batch, None if there is none."""
    if getattr(network.config, "attention_type", None) != "block_sparse":
        return None
    return next((part for part in network.modules() if hasattr(part, "set_attention_type")), None)


def set_attention(part: Any, width: int) -> None:
    """Choose the attention for a batch of `width` tokens by the rule of transformers' BigBird.

    It applies the rule itself, but after the first short batch it stays with full attention for good, so
    that an answer would depend on what ran before.
    """
    config = part.config
    limit = (5 + 2 * config.num_random_blocks) * config.block_size
    part.set_attention_type("original_full" if width <= limit else "block_sparse")
