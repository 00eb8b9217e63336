"""A tokenizer that cleans social and web text before the checkpoint's own one sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit import Registry, option
from pipeline_kit.kit import HfTokenizerConfig


@dataclass
class CleanConfig(HfTokenizerConfig):
    """Options of ``tokenizer=clean``: those of ``tokenizer=hf``, and what to clean."""

    html: bool = option(True, "drop tags, comments, scripts and styles; turn entities such as &amp; into characters")
    unicode: Literal["NFC", "NFKC"] | None = option(
        "NFC", "normal form; NFKC also replaces look-alikes such as full-width letters; null: leave as it is"
    )
    mentions: str | None = option(None, "what to write for @somebody, such as '@user'; null: leave as it is")
    urls: str | None = option(None, "what to write for a web address, such as 'http'; null: leave as it is")
    whole_words: bool = option(
        False, "mentions and urls are whole words that begin with @ or http, punctuation included"
    )
    whitespace: bool = option(True, "one space for any run of white space, none at the ends")


def register(registry: Registry) -> None:
    """Add ``tokenizer=clean`` and its presets."""
    registry.tokenizer(
        "clean",
        "pk_clean.stage:CleanTokenizer",
        CleanConfig,
        summary="cleans social and web text, then does what hf does; offsets stay those of the source",
    )
    registry.conf("pkg://pk_clean.conf")
