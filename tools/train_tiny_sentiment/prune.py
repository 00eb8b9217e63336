"""Cutting the teacher down to the shape of the student."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tools.train_tiny_sentiment.batching import collate, token_batches
from tools.train_tiny_sentiment.corpus import NO_LABEL, Corpus
from tools.train_tiny_sentiment.settings import StudentSettings


def unit_importance(
    teacher: BertForSequenceClassification, corpus: Corpus, settings: StudentSettings, seed: int
) -> list[torch.Tensor]:
    """Estimate how much each feed-forward unit of the kept layers matters: float32 [units] per layer.

    The first-order Taylor estimate of what removing a unit does to the loss: the sum of
    |activation x gradient| over training text (https://arxiv.org/abs/1905.10650).
    """
    rng = np.random.default_rng([seed, 3])
    labelled = [i for i, label in enumerate(corpus.labels) if label != NO_LABEL]
    plan = token_batches([len(corpus.ids[i]) for i in labelled], settings.batch_tokens, rng)
    modules = [teacher.bert.encoder.layer[layer].intermediate for layer in settings.layers]
    scores = [torch.zeros(module.dense.out_features) for module in modules]
    outputs: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    for batch in plan[: settings.importance_batches]:
        outputs.clear()
        rows = [labelled[i] for i in batch]
        ids, mask = collate([corpus.ids[i] for i in rows])
        target = torch.tensor([corpus.labels[i] for i in rows])
        teacher(input_ids=ids, attention_mask=mask, labels=target).loss.backward()
        for score, output in zip(scores, outputs, strict=True):
            if output.grad is not None:
                score += (output.detach() * output.grad).abs().sum(dim=(0, 1))
        teacher.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    return scores


def student_from(
    teacher: BertForSequenceClassification,
    old_ids: torch.Tensor,
    importance: Sequence[torch.Tensor],
    settings: StudentSettings,
) -> BertForSequenceClassification:
    """Copy the kept word pieces, layers and feed-forward units of the teacher into a small model."""
    values = teacher.config.to_dict()
    values.update(
        vocab_size=len(old_ids),
        num_hidden_layers=len(settings.layers),
        intermediate_size=settings.feed_forward,
    )
    # No dropout on attention probabilities: it would rule out the fast attention kernel.
    values.update(attention_probs_dropout_prob=0.0, dtype="float32")
    student = BertForSequenceClassification(BertConfig(**values))
    source = teacher.state_dict()
    state = {name: tensor for name, tensor in source.items() if ".encoder." not in name}
    words = "bert.embeddings.word_embeddings.weight"
    state[words] = source[words][old_ids]
    for new, (old, scores) in enumerate(zip(settings.layers, importance, strict=True)):
        units = torch.topk(scores, settings.feed_forward).indices.sort().values
        prefix = f"bert.encoder.layer.{old}."
        for name in (key for key in source if key.startswith(prefix)):
            tail = name.removeprefix(prefix)
            state[f"bert.encoder.layer.{new}.{tail}"] = keep_units(tail, source[name], units)
    student.load_state_dict(state)
    return student


def keep_units(name: str, tensor: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Cut one tensor of a layer to the kept feed-forward units, if it has them at all."""
    if name.startswith("intermediate.dense"):
        return tensor[units]
    return tensor[:, units] if name == "output.dense.weight" else tensor
