"""The bag-of-tokens student: a mean of learned vectors under a linear classifier."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import nn

from tools.train_tiny_sentiment.batching import collate, token_batches
from tools.train_tiny_sentiment.distill import label_loss, soft_loss
from tools.train_tiny_sentiment.settings import LABELS, StaticSettings
from tools.train_tiny_sentiment.teacher import SoftLabels

logger = logging.getLogger(__name__)


class StaticClassifier(nn.Module):
    """Classifies by the mean vector of the attended tokens, special tokens included."""

    def __init__(self, vectors: torch.Tensor) -> None:
        """Start from one vector per word piece, float32 [pieces, width]."""
        super().__init__()
        self.embeddings = nn.Embedding(vectors.shape[0], vectors.shape[1], _weight=vectors.clone())
        self.classifier = nn.Linear(vectors.shape[1], len(LABELS))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map ids and mask, int64 [rows, tokens], to logits, float32 [rows, labels]."""
        weights = mask.unsqueeze(-1).to(torch.float32)
        mean = (self.embeddings(ids) * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
        logits: torch.Tensor = self.classifier(mean)
        return logits


def compressed_vectors(embeddings: torch.Tensor, width: int) -> torch.Tensor:
    """Project word embeddings on their first principal directions: float32 [pieces, width].

    Pieces that training rarely sees thereby start close to pieces of like meaning.
    """
    centred = embeddings - embeddings.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    projected: torch.Tensor = centred @ directions[:width].T
    return projected / projected.std()


def train(
    vectors: torch.Tensor,
    ids: list[list[int]],
    labels: list[int],
    soft: SoftLabels,
    settings: StaticSettings,
    seed: int,
) -> StaticClassifier:
    """Distil on texts encoded with the student's word pieces, row for row the teacher's answers."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 5])
    model = StaticClassifier(vectors)
    lengths = [len(row) for row in ids]
    plans = [token_batches(lengths, settings.batch_tokens, rng) for _ in range(settings.epochs)]
    steps = sum(map(len, plans))
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for number, plan in enumerate(plans, start=1):
        total = 0.0
        for batch in plan:
            batch_ids, mask = collate([ids[i] for i in batch])
            kept = mask * (torch.rand(mask.shape) >= settings.piece_dropout)
            logits = model(batch_ids, kept)
            loss = soft_loss(logits, soft.logits[torch.tensor(batch)], settings.temperature)
            loss = loss + settings.label_weight * label_loss(logits, torch.tensor([labels[i] for i in batch]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item()
        logger.info("static %d: loss %.3f", number, total / len(plan))
    return model.eval()
