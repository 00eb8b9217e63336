"""What the built-in models tell of their networks, for ``pipeline-kit explain``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_kit.panels import Cell, Panel
from pipeline_kit.stages import Tokenizer
from pipeline_kit.types import ModelOutput

__all__ = ["network_panel", "written_panel"]

_SIZES = (
    ("layers", "num_hidden_layers"),
    ("decoder layers", "decoder_layers"),
    ("hidden size", "hidden_size"),
    ("attention heads", "num_attention_heads"),
    ("vocabulary", "vocab_size"),
    ("positions", "max_position_embeddings"),
)
"""What a size is called, and where transformers' configuration has it."""


def network_panel(network: Any, details: Mapping[str, Any]) -> Panel:
    """Say which network runs, how large it is, and on which kernels.

    :param details: of the model stage.
    """
    config = network.config
    text = config.get_text_config()
    rows: list[tuple[Cell, ...]] = [("class", type(network).__name__), ("model_type", str(config.model_type))]
    for shown, name in _SIZES:
        size = getattr(text, name, None)
        if isinstance(size, int):
            rows.append((shown, size))
    rows.append(("dtype", str(network.dtype).removeprefix("torch.")))
    kernels = {name: value for name, value in details.items() if isinstance(value, str | int | float)}
    rows += [(name.replace("_", " "), value) for name, value in kernels.items()]
    return Panel("the network", ("what", "value"), rows)


def written_panel(output: ModelOutput, tokenizer: Tokenizer | None) -> Panel:
    """List the ids that were written for each row, with their texts."""
    lengths = output["sequence_lengths"].tolist()
    rows: list[tuple[Cell, ...]] = []
    for row, (ids, length) in enumerate(zip(output["sequences"].tolist(), lengths, strict=True)):
        for step, id in enumerate(ids[:length], start=1):
            rows.append((row, step, id, "" if tokenizer is None else tokenizer.decode([id])))
    note = "the end token is not among them; each id was chosen with all ids before it in sight"
    return Panel("what was written", ("row", "step", "id", "text"), rows, note=note)
