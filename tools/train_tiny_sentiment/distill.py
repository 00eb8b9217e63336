"""Teaching the small transformer to answer like the teacher."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers import BertForSequenceClassification

from tools.train_tiny_sentiment.batching import collate, token_batches
from tools.train_tiny_sentiment.corpus import NO_LABEL
from tools.train_tiny_sentiment.optimisation import WarmupAdamW
from tools.train_tiny_sentiment.settings import StudentSettings
from tools.train_tiny_sentiment.teacher import SoftLabels

logger = logging.getLogger(__name__)


def soft_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divergence from the teacher's softened answer (https://arxiv.org/abs/1503.02531), a scalar.

    Both logits are [rows, labels]; the squared temperature keeps the size of the gradient.
    """
    ours = functional.log_softmax(logits / temperature, dim=-1)
    theirs = functional.log_softmax(target / temperature, dim=-1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the rows that have a label, a scalar; 0 where none has."""
    total = functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
    return total / max(1, len(labels))


def train(
    student: BertForSequenceClassification,
    ids: list[list[int]],
    labels: list[int],
    soft: SoftLabels,
    settings: StudentSettings,
    seed: int,
) -> BertForSequenceClassification:
    """Distil on texts encoded with the student's word pieces, row for row the teacher's answers."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 4])
    student.train()
    lengths = [len(row) for row in ids]
    plans = [token_batches(lengths, settings.batch_tokens, rng) for _ in range(settings.epochs)]
    optimiser = WarmupAdamW(student, settings.learning_rate, sum(map(len, plans)), settings.warmup)
    for number, plan in enumerate(plans, start=1):
        started, total = time.monotonic(), 0.0
        for step, batch in enumerate(plan, start=1):
            loss = batch_loss(student, [ids[i] for i in batch], [labels[i] for i in batch], batch, soft, settings)
            optimiser.step(loss)
            total += loss.item()
            if step % 100 == 0:
                spent = time.monotonic() - started
                logger.info("student %d: %d/%d, loss %.3f, %.0f s", number, step, len(plan), total / step, spent)
    return student.eval()


def batch_loss(
    student: BertForSequenceClassification,
    ids: list[list[int]],
    labels: list[int],
    rows: Sequence[int],
    soft: SoftLabels,
    settings: StudentSettings,
) -> torch.Tensor:
    """Soft labels, the teacher's first-token state and hard labels, weighed into one scalar."""
    batch_ids, mask = collate(ids)
    states = student.bert(input_ids=batch_ids, attention_mask=mask)
    logits = student.classifier(student.dropout(states.pooler_output))
    index = torch.tensor(rows)
    hidden = functional.mse_loss(states.last_hidden_state[:, 0], soft.hidden[index])
    loss = soft_loss(logits, soft.logits[index], settings.temperature)
    return loss + settings.hidden_weight * hidden + settings.label_weight * label_loss(logits, torch.tensor(labels))
