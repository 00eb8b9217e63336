"""Fitting the student's classifier once more, on whole reviews that no earlier step saw.

The student leans to one label on long texts that it was not trained on; on those it was trained on, that cannot be
seen. So the layers stay and two numbers per unit of the classifier move, held to the earlier answers on short texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import BertForSequenceClassification

from tools.train_tiny_sentiment.batching import collate, encode, random_crop, token_batches
from tools.train_tiny_sentiment.data import Example
from tools.train_tiny_sentiment.evaluate import BATCH_TOKENS, Accuracy, mean_per_text, score, windows
from tools.train_tiny_sentiment.settings import RefitSettings


@dataclass(frozen=True)
class Pooled:
    """What the classifier reads of each text, float64 [texts, width], and which review each was cut from."""

    states: torch.Tensor
    owners: torch.Tensor


@dataclass(frozen=True)
class Material:
    """All that is read, computed once: the whole windows of the reviews, crops of them, and short texts."""

    reviews: list[Example]
    windows: Pooled
    crops: Pooled
    short: torch.Tensor


@torch.no_grad()
def pooled(student: BertForSequenceClassification, ids: list[list[int]]) -> torch.Tensor:
    """Compute the input of the classifier: float64 [texts, width]."""
    states = torch.zeros(len(ids), student.config.hidden_size, dtype=torch.float64)
    for batch in token_batches([len(row) for row in ids], BATCH_TOKENS):
        rows, mask = collate([ids[i] for i in batch])
        states[torch.tensor(batch)] = student.bert(input_ids=rows, attention_mask=mask).pooler_output.double()
    return states


def gather(
    student: BertForSequenceClassification,
    tokenizer: Tokenizer,
    reviews: list[Example],
    short: list[Example],
    settings: RefitSettings,
    seed: int,
) -> Material:
    """Read the reviews, which no earlier step may have seen, and the short texts."""
    rng = np.random.default_rng([seed, 6])
    whole, owners = windows(tokenizer, reviews)
    encoded = encode(tokenizer, [row.text for row in reviews], limit=10**6)
    drawn = [number for number in range(len(reviews)) for _ in range(settings.crops_per_review)]
    crops = [random_crop(encoded[number], settings.crop_tokens, rng) for number in drawn]
    return Material(
        reviews,
        Pooled(pooled(student, whole), torch.tensor(owners)),
        Pooled(pooled(student, crops), torch.tensor(drawn)),
        pooled(student, encode(tokenizer, [row.text for row in short])),
    )


def fit(
    weight: torch.Tensor, bias: torch.Tensor, found: Material, chosen: torch.Tensor, settings: RefitSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a classifier, [labels, width] and [labels], on the reviews whose numbers are in ``chosen``.

    The loss is a cross-entropy with the labels of windows and crops, both labels counting alike, a weighted one with
    the given classifier's answers on the short texts, both at the settings' temperature, and a decay of the change.
    """
    labels = torch.tensor([row.label or 0 for row in found.reviews])
    parts = [
        (part.states, labels[part.owners], torch.isin(part.owners, chosen)) for part in (found.windows, found.crops)
    ]
    states = torch.cat([part[kept] for part, _, kept in parts])
    wanted = torch.cat([label[kept] for _, label, kept in parts])
    balance = len(wanted) / (2 * torch.bincount(wanted, minlength=2).double())
    answers = (functional.linear(found.short, weight, bias) / settings.temperature).softmax(dim=-1)
    change = torch.zeros(len(bias), weight.shape[1] + 1, dtype=torch.float64, requires_grad=True)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        return functional.linear(rows, weight + change[:, :-1], bias + change[:, -1]) / settings.temperature

    optimiser = torch.optim.LBFGS([change], max_iter=settings.steps, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        total = functional.cross_entropy(logits(states), wanted, weight=balance)
        total = total + settings.answers_weight * functional.cross_entropy(logits(found.short), answers)
        total = total + settings.decay * change.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight + change[:, :-1].detach(), bias + change[:, -1].detach()


def cross_validated(
    student: BertForSequenceClassification, found: Material, settings: RefitSettings, seed: int
) -> dict[str, Accuracy]:
    """Judge each review by a classifier that was fitted without it and its fold.

    Return the accuracy by the first window and by the mean of all windows of a review.
    """
    weight, bias = parameters(student)
    order = torch.from_numpy(np.random.default_rng([seed, 7]).permutation(len(found.reviews)))
    logits = torch.zeros(len(found.windows.owners), len(bias), dtype=torch.float64)
    for fold in range(settings.folds):
        left_out = torch.isin(order, order[fold :: settings.folds])
        fitted = fit(weight, bias, found, order[~left_out], settings)
        judged = torch.isin(found.windows.owners, order[left_out])
        logits[judged] = functional.linear(found.windows.states[judged], *fitted)
    owners = found.windows.owners
    first = logits[torch.searchsorted(owners, torch.arange(len(found.reviews)))]
    return {
        "movie_reviews_held_out": score(first, found.reviews),
        "movie_reviews_held_out_windows": score(mean_per_text(logits, owners, len(found.reviews)), found.reviews),
    }


def parameters(student: BertForSequenceClassification) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the classifier as it is: float64 [labels, width] and [labels]."""
    return student.classifier.weight.detach().double(), student.classifier.bias.detach().double()


def refit(student: BertForSequenceClassification, found: Material, settings: RefitSettings) -> None:
    """Fit the classifier of ``student`` on all reviews of ``found``, in place."""
    weight, bias = fit(*parameters(student), found, torch.arange(len(found.reviews)), settings)
    with torch.no_grad():
        student.classifier.weight.copy_(weight)
        student.classifier.bias.copy_(bias)
