"""Fine-tuning the sentence encoder into the teacher, and asking it for soft labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import BertForSequenceClassification

from tools.train_tiny_sentiment.batching import collate, encode, token_batches
from tools.train_tiny_sentiment.data import DataSets
from tools.train_tiny_sentiment.everyday import Everyday
from tools.train_tiny_sentiment.long_texts import Encoded, patchworks, review_crops
from tools.train_tiny_sentiment.optimisation import WarmupAdamW
from tools.train_tiny_sentiment.settings import LABELS, TeacherSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SoftLabels:
    """What the teacher says: logits [rows, labels] and first-token states [rows, width], float32."""

    logits: torch.Tensor
    hidden: torch.Tensor


def base_model(folder: Path) -> BertForSequenceClassification:
    """Load the sentence encoder under a fresh classifier, with its word embeddings frozen."""
    names = dict(enumerate(LABELS))
    # No dropout on attention probabilities: it would rule out the fast attention kernel.
    model = BertForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(LABELS),
        id2label=names,
        label2id={v: k for k, v in names.items()},
        attention_probs_dropout_prob=0.0,
    )
    # Frozen, so that the pieces no training text holds keep meaning what their neighbours mean.
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    return model


def epoch_rows(
    data: DataSets,
    everyday: Everyday,
    tokenizer: Tokenizer,
    settings: TeacherSettings,
    rng: np.random.Generator,
) -> Encoded:
    """Draw one epoch: all snippets, some products, fresh everyday sentences, fresh review crops."""
    picked = rng.choice(len(data.products), min(settings.product_rows, len(data.products)), replace=False)
    rows = [(row, 1.0) for row in data.snippets[: settings.snippet_rows]]
    rows += [(data.products[int(i)], settings.product_weight) for i in picked]
    rows += [(row, 1.0) for row in everyday.sample(settings.everyday_rows, rng)]
    short = Encoded(
        encode(tokenizer, [row.text for row, _ in rows]),
        [int(row.label or 0) for row, _ in rows],
        [weight for _, weight in rows],
    )
    crops = review_crops(data.reviews, tokenizer, settings.long_texts, rng)
    return short + crops + patchworks(data.snippets, tokenizer, settings.long_texts, rng)


def train(
    base: Path, data: DataSets, everyday: Everyday, tokenizer: Tokenizer, settings: TeacherSettings, seed: int
) -> BertForSequenceClassification:
    """Fine-tune the encoder in ``base`` on everything that may be trained on."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    model = base_model(base).train()
    epochs = [epoch_rows(data, everyday, tokenizer, settings, rng) for _ in range(settings.epochs)]
    plans = [token_batches([len(row) for row in rows.ids], settings.batch_tokens, rng) for rows in epochs]
    optimiser = WarmupAdamW(model, settings.learning_rate, sum(map(len, plans)), settings.warmup)
    for number, (rows, plan) in enumerate(zip(epochs, plans, strict=True), start=1):
        started, total = time.monotonic(), 0.0
        for step, batch in enumerate(plan, start=1):
            loss = batch_loss(model, rows, batch)
            optimiser.step(loss)
            total += loss.item()
            if step % 100 == 0:
                spent = time.monotonic() - started
                logger.info("teacher %d: %d/%d, loss %.3f, %.0f s", number, step, len(plan), total / step, spent)
    return model.eval()


def batch_loss(model: BertForSequenceClassification, rows: Encoded, batch: Sequence[int]) -> torch.Tensor:
    """Weighted cross-entropy of one batch, a scalar."""
    ids, mask = collate([rows.ids[i] for i in batch])
    labels = torch.tensor([rows.labels[i] for i in batch])
    weights = torch.tensor([rows.weights[i] for i in batch])
    logits = model(input_ids=ids, attention_mask=mask).logits
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum()


@torch.inference_mode()
def soft_labels(model: BertForSequenceClassification, ids: list[list[int]], budget: int = 4096) -> SoftLabels:
    """Ask the teacher about encoded texts."""
    logits = torch.zeros(len(ids), len(LABELS))
    hidden = torch.zeros(len(ids), model.config.hidden_size)
    plan = token_batches([len(row) for row in ids], budget)
    for step, batch in enumerate(plan, start=1):
        batch_ids, mask = collate([ids[i] for i in batch])
        states = model.bert(input_ids=batch_ids, attention_mask=mask)
        rows = torch.tensor(batch)
        hidden[rows] = states.last_hidden_state[:, 0]
        logits[rows] = model.classifier(states.pooler_output)
        if step % 50 == 0:
            logger.info("soft labels: batch %d of %d", step, len(plan))
    return SoftLabels(logits, hidden)
