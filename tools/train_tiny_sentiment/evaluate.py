"""Measuring a saved model on texts that training never saw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from tools.train_tiny_sentiment.batching import collate, encode, token_batches
from tools.train_tiny_sentiment.data import Example
from tools.train_tiny_sentiment.settings import LABELS, MAX_TOKENS

BATCH_TOKENS = 4096

Classifier = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps ids and attention mask, int64 [rows, tokens], to logits, float32 [rows, labels]."""


@dataclass(frozen=True)
class Accuracy:
    """The share of rows answered right, how many rows, and how those of each label fared."""

    right: float
    rows: int
    by_label: tuple[float, ...]

    @property
    def standard_error(self) -> float:
        """The standard error of the share."""
        return math.sqrt(self.right * (1 - self.right) / self.rows)


@torch.inference_mode()
def logits_of(classify: Classifier, ids: list[list[int]]) -> torch.Tensor:
    """Classify encoded texts: float32 [texts, labels]."""
    logits = torch.zeros(len(ids), len(LABELS))
    for batch in token_batches([len(row) for row in ids], BATCH_TOKENS):
        logits[torch.tensor(batch)] = classify(*collate([ids[i] for i in batch]))
    return logits


def score(logits: torch.Tensor, rows: list[Example]) -> Accuracy:
    """Compare logits [rows, labels] with the labels of the rows."""
    labels = torch.tensor([row.label for row in rows])
    right = (logits.argmax(dim=-1) == labels).to(torch.float64)
    by_label = tuple(float(right[labels == k].mean()) for k in range(len(LABELS)))
    return Accuracy(float(right.mean()), len(rows), by_label)


def first_window(classify: Classifier, tokenizer: Tokenizer, rows: list[Example], limit: int) -> Accuracy:
    """Judge each text by its first ``limit`` tokens."""
    return score(logits_of(classify, encode(tokenizer, [row.text for row in rows], limit)), rows)


def windows(tokenizer: Tokenizer, rows: list[Example]) -> tuple[list[list[int]], list[int]]:
    """Cut each text into windows of 512 tokens, so that none of it is lost: their ids, and the row of each."""
    found: list[list[int]] = []
    owners: list[int] = []
    for owner, ids in enumerate(encode(tokenizer, [row.text for row in rows], limit=10**6)):
        size = MAX_TOKENS - 2
        for start in range(1, len(ids) - 1, size):
            found.append([ids[0], *ids[start : min(start + size, len(ids) - 1)], ids[-1]])
            owners.append(owner)
    return found, owners


def mean_per_text(logits: torch.Tensor, owners: torch.Tensor, texts: int) -> torch.Tensor:
    """Average the logits [windows, labels] of the windows of each text: [texts, labels]."""
    sums = torch.zeros(texts, logits.shape[1], dtype=logits.dtype).index_add(0, owners, logits)
    return sums / torch.bincount(owners).unsqueeze(-1)


def mean_of_windows(classify: Classifier, tokenizer: Tokenizer, rows: list[Example]) -> Accuracy:
    """Judge each text by the mean of the logits of all its windows."""
    ids, owners = windows(tokenizer, rows)
    return score(mean_per_text(logits_of(classify, ids), torch.tensor(owners), len(rows)), rows)


def measure(
    classify: Classifier, tokenizer: Tokenizer, measured: dict[str, list[Example]], limit: int = MAX_TOKENS
) -> dict[str, Accuracy]:
    """Measure on every set kept apart, the whole reviews in both ways."""
    found = {name: first_window(classify, tokenizer, rows, limit) for name, rows in measured.items()}
    if limit <= MAX_TOKENS:
        reviews = measured["movie_reviews_held_out"]
        found["movie_reviews_held_out_windows"] = mean_of_windows(classify, tokenizer, reviews)
    return found


def answers(classify: Classifier, tokenizer: Tokenizer, rows: list[Example]) -> list[tuple[Example, str, float]]:
    """For each text the label answered and its probability."""
    probabilities = logits_of(classify, encode(tokenizer, [row.text for row in rows])).softmax(dim=-1)
    best = probabilities.max(dim=-1)
    return [
        (row, LABELS[int(label)], float(value))
        for row, label, value in zip(rows, best.indices, best.values, strict=True)
    ]
