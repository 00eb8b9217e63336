"""A seeded generator of everyday sentences whose labels hold by construction.

The sentences come from a context-free grammar in the text files under ``grammar``: ``[name]`` opens a
section, each line below is one way to write it, ``{name}`` stands for a section and ``{a|b|}`` for one
of the words listed. The sections ``positive`` and ``negative`` are where a sentence starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources

import numpy as np

from tools.train_tiny_sentiment.data import Example, normalise
from tools.train_tiny_sentiment.settings import LABELS

SLOT = re.compile(r"\{([^{}]*)\}")
ARTICLE = re.compile(r"\b([Aa]) (?=(?:[aeio]|u(?!s[eu]|ni))(?!ne\b))")


def read_grammar() -> dict[str, list[str]]:
    """Read every grammar file into section name -> ways to write it."""
    sections: dict[str, list[str]] = {}
    folder = resources.files(__package__).joinpath("grammar")
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        current: list[str] = []
        for line in file.read_text("utf-8").splitlines():
            text = line.strip()
            if text.startswith("[") and text.endswith("]"):
                current = sections.setdefault(text[1:-1], [])
            elif text and not text.startswith("#"):
                current.append(text)
    return sections


class Everyday:
    """Draws everyday sentences, never one whose words equal a sentence kept for measuring."""

    def __init__(self, forbidden: Iterable[str]) -> None:
        """Read the grammar; ``forbidden`` are the texts that must not be produced."""
        self._sections = read_grammar()
        self._forbidden = {normalise(text) for text in forbidden}

    def sample(self, count: int, rng: np.random.Generator) -> list[Example]:
        """Draw ``count`` sentences, the labels taking turns."""
        rows: list[Example] = []
        while len(rows) < count:
            label = len(rows) % len(LABELS)
            text = self.sentence(LABELS[label].lower(), rng)
            if normalise(text) not in self._forbidden:
                rows.append(Example(text, label))
        return rows

    def sentence(self, start: str, rng: np.random.Generator) -> str:
        """Expand one start section and roughen the result the way people type."""
        text = self._expand(start, rng)
        text = ARTICLE.sub(r"\1n ", re.sub(r"\s+([,.!?])", r"\1", " ".join(text.split())))
        return roughen(text, rng)

    def _expand(self, start: str, rng: np.random.Generator) -> str:
        """Replace the innermost slots until none is left."""

        def choose(match: re.Match[str]) -> str:
            name = match.group(1)
            options = name.split("|") if "|" in name else self._sections[name]
            return options[int(rng.integers(len(options)))]

        text = f"{{{start}}}"
        while "{" in text:
            text = SLOT.sub(choose, text)
        return text


def roughen(text: str, rng: np.random.Generator) -> str:
    """Capitalise, or drop full stops and apostrophes, or shout, each now and then."""
    dice = rng.random(4)
    text = text[0].upper() + text[1:]
    if dice[0] < 0.3:
        text = text.rstrip(".")
    if dice[1] < 0.12:
        text = text.replace("'", "")
    if dice[2] < 0.12:
        text = text.rstrip(".! ") + "!" * int(rng.integers(1, 4))
    if dice[3] < 0.05:
        return text.upper()
    return text.lower() if dice[3] < 0.25 else text
