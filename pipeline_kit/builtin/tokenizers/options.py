"""Options of the built-in tokenizers; importing them loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit.contract.options import option


@dataclass
class HfTokenizerConfig:
    """Options of ``tokenizer=hf``."""

    max_length: int | None = option(
        None, "tokens of an encoding, special ones included; null: the checkpoint's own", minimum=1, maximum=2**24
    )
    overflow: Literal["truncate", "error", "window"] | None = option(
        None,
        "a longer text: cut it and say so, fail its row, or split it into overlapping windows; null: as the task "
        "is best served, window for token-classification and question-answering, else truncate",
    )
    overlap: int | None = option(
        None,
        "tokens that neighbouring windows share; null: 128, or half of a window's text if that is less",
        minimum=0,
        maximum=2**24,
    )
    max_chars: int | None = option(
        None,
        "characters of a text that are tokenized; null: 16000, or 8 per token of max_length if that is more, and "
        "up to 250 per token where those give too few tokens; no limit for windows",
        minimum=1,
    )
    add_special_tokens: bool = option(True, "add the tokens the checkpoint was trained with, such as [CLS]")


@dataclass
class TokenizersJsonConfig(HfTokenizerConfig):
    """Options of ``tokenizer=tokenizers_json``."""

    file: str = option("tokenizer.json", "the tokenizer's file, inside the checkpoint's folder")
    pad_token: str | None = option(None, "the padding token; null: the file's or the checkpoint's own", secret=False)
