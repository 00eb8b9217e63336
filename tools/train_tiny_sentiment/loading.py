"""Reading a written checkpoint back, so that what is measured is what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from tools.train_tiny_sentiment.evaluate import Classifier
from tools.train_tiny_sentiment.settings import MAX_TOKENS
from tools.train_tiny_sentiment.static import StaticClassifier
from tools.train_tiny_sentiment.vocabulary import open_tokenizer


def classifier_of(model: BertForSequenceClassification) -> Classifier:
    """Wrap a transformer as a function from ids and mask to logits."""

    def classify(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
        return logits

    return classify


def load(folder: Path) -> tuple[Classifier, Tokenizer, int]:
    """Load either kind of checkpoint: how it classifies, its tokenizer, the most tokens it takes."""
    tokenizer = open_tokenizer(folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config["model_type"] != "static":
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        return classifier_of(model), tokenizer, MAX_TOKENS
    state = {name: tensor.to(torch.float32) for name, tensor in load_file(folder / "model.safetensors").items()}
    static = StaticClassifier(state["embeddings.weight"])
    static.load_state_dict(state)
    return static.eval(), tokenizer, int(config["max_position_embeddings"])
