"""Writing a trained student in the layout that the Hugging Face libraries load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification

from tools.train_tiny_sentiment.settings import LABELS, MAX_TOKENS
from tools.train_tiny_sentiment.static import StaticClassifier

STATIC_MAX_TOKENS = 4096
READABLE = 0o644


def save_transformer(model: BertForSequenceClassification, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, tokenizer and half-precision weights of the small transformer."""
    config = model.config.to_diff_dict()
    config.update(architectures=["BertForSequenceClassification"], model_type="bert", **label_maps())
    # The weights are stored in half precision but computed in single: on a CPU that is several times faster.
    config["dtype"] = "float32"
    for name in ("_name_or_path", "problem_type"):
        config.pop(name, None)
    write(folder, config, tokenizer, model.state_dict())
    settings = {
        "clean_up_tokenization_spaces": False,
        "cls_token": "[CLS]",
        "do_lower_case": True,
        "mask_token": "[MASK]",
        "model_max_length": MAX_TOKENS,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
    }
    write_json(folder / "tokenizer_config.json", settings)


def save_static(model: StaticClassifier, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, tokenizer and half-precision weights of the bag-of-tokens student."""
    pieces, width = model.embeddings.weight.shape
    config = {
        "model_type": "static",
        "architectures": ["StaticForSequenceClassification"],
        "vocab_size": pieces,
        "hidden_size": width,
        **label_maps(),
        "max_position_embeddings": STATIC_MAX_TOKENS,
        "pad_token_id": tokenizer.token_to_id("[PAD]"),
        "dtype": "float32",
    }
    write(folder, config, tokenizer, model.state_dict())


def label_maps() -> dict[str, Any]:
    """Spell the label names the way a Hugging Face config does."""
    return {
        "id2label": {str(index): name for index, name in enumerate(LABELS)},
        "label2id": {name: index for index, name in enumerate(LABELS)},
    }


def write(folder: Path, config: dict[str, Any], tokenizer: Tokenizer, state: dict[str, torch.Tensor]) -> None:
    """Write the three files both kinds have."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    halves = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in state.items()}
    weights = folder / "model.safetensors"
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(READABLE)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON whose bytes depend on nothing but the value."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
