"""Long training texts: windows of whole reviews, and patchworks of many snippets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from tools.train_tiny_sentiment.batching import encode, random_crop
from tools.train_tiny_sentiment.data import Example
from tools.train_tiny_sentiment.settings import LABELS, MAX_TOKENS, LongTextSettings

UNCUT = 10**6


@dataclass(frozen=True)
class Encoded:
    """Encoded texts, the index of the label of each, and how much each counts."""

    ids: list[list[int]]
    labels: list[int]
    weights: list[float]

    def __add__(self, other: Encoded) -> Encoded:
        """Put the rows of another set below these."""
        return Encoded(self.ids + other.ids, self.labels + other.labels, self.weights + other.weights)


def review_crops(
    reviews: list[Example], tokenizer: Tokenizer, settings: LongTextSettings, rng: np.random.Generator
) -> Encoded:
    """Cut random windows, as many of either label, whatever the balance of the reviews."""
    encoded = encode(tokenizer, [row.text for row in reviews], limit=UNCUT)
    by_label = [[ids for ids, row in zip(encoded, reviews, strict=True) if row.label == k] for k in range(2)]
    labels = [i % len(LABELS) for i in range(settings.crops)]
    ids = []
    for label in labels:
        review = by_label[label][int(rng.integers(len(by_label[label])))]
        ids.append(random_crop(review, settings.crop_tokens, rng))
    return Encoded(ids, labels, [1.0] * len(ids))


def patchworks(
    snippets: list[Example], tokenizer: Tokenizer, settings: LongTextSettings, rng: np.random.Generator
) -> Encoded:
    """Join snippets most of which share a label into texts as long as a review.

    A hundred reviews are too few to learn from how praise and blame weigh up over a long text.
    """
    encoded = encode(tokenizer, [row.text for row in snippets])
    by_label = [[ids for ids, row in zip(encoded, snippets, strict=True) if row.label == k] for k in range(2)]
    first, last = encoded[0][0], encoded[0][-1]
    labels = [i % len(LABELS) for i in range(settings.patchworks)]
    texts = []
    for label in labels:
        size = int(rng.integers(settings.patches[0], settings.patches[1] + 1))
        share = rng.uniform(settings.agreement, 1.0)
        body: list[int] = []
        for agrees in rng.random(size) < share:
            pool = by_label[label if agrees else 1 - label]
            chosen = pool[int(rng.integers(len(pool)))]
            body += chosen[1:-1]
        texts.append([first, *body[: MAX_TOKENS - 2], last])
    return Encoded(texts, labels, [1.0] * len(texts))
