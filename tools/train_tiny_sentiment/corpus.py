"""The text the students are distilled on, encoded once with the teacher's word pieces."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from tools.train_tiny_sentiment.batching import encode
from tools.train_tiny_sentiment.data import DataSets, Example
from tools.train_tiny_sentiment.everyday import Everyday
from tools.train_tiny_sentiment.long_texts import patchworks, review_crops
from tools.train_tiny_sentiment.settings import CorpusSettings

NO_LABEL = -100
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")


@dataclass(frozen=True)
class Corpus:
    """Texts as the teacher's ids, with the index of the label of each, or ``NO_LABEL``."""

    ids: list[list[int]]
    labels: list[int]


def build(data: DataSets, everyday: Everyday, tokenizer: Tokenizer, settings: CorpusSettings, seed: int) -> Corpus:
    """Draw every text a student sees."""
    rng = np.random.default_rng([seed, 2])
    picked = rng.choice(len(data.products), min(settings.product_rows, len(data.products)), replace=False)
    snippets = data.snippets[: settings.snippet_rows]
    rows = list(snippets)
    rows += [fragment(row, rng) for row in snippets for _ in range(settings.fragments_per_snippet)]
    rows += [sentence for review in data.reviews[: settings.snippet_rows] for sentence in sentences(review)]
    rows += [data.products[int(i)] for i in picked]
    rows += everyday.sample(settings.everyday_rows, rng)
    ids = encode(tokenizer, [row.text for row in rows])
    labels = [NO_LABEL if row.label is None else row.label for row in rows]
    crops = review_crops(data.reviews, tokenizer, settings.long_texts, rng)
    patches = patchworks(data.snippets, tokenizer, settings.long_texts, rng)
    return Corpus(ids + crops.ids + patches.ids, labels + crops.labels + patches.labels)


def fragment(row: Example, rng: np.random.Generator) -> Example:
    """Cut a run of words out of a snippet; whether the label still holds is for the teacher to say."""
    words = row.text.split()
    size = int(rng.integers(1, max(2, len(words))))
    start = int(rng.integers(0, len(words) - size + 1))
    return Example(" ".join(words[start : start + size]), None)


def sentences(review: Example) -> list[Example]:
    """Split a review into sentences, which carry no label of their own."""
    parts = [part.strip() for part in SENTENCE_END.split(review.text)]
    return [Example(part, None) for part in parts if len(part.split()) > 2]
