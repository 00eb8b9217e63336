"""The stages that come with the package."""

from __future__ import annotations

from typing import Any

from pipeline_kit.builtin.models import configs as models
from pipeline_kit.builtin.postprocessors import configs as postprocessors
from pipeline_kit.builtin.tokenizers import configs as tokenizers
from pipeline_kit.registry import Kind, Registry

__all__ = ["register"]

# Kind, name, target below this package, options, summary.
_STAGES: tuple[tuple[Kind, str, str, type[Any], str], ...] = (
    (
        "tokenizer",
        "hf",
        "hf:HfTokenizer",
        tokenizers.HfTokenizerConfig,
        "the checkpoint's fast tokenizer, through transformers' AutoTokenizer",
    ),
    (
        "tokenizer",
        "tokenizers_json",
        "tokenizers_json:TokenizersJson",
        tokenizers.TokenizersJsonConfig,
        "a tokenizer.json read by the tokenizers library alone, without transformers",
    ),
    (
        "model",
        "hf",
        "hf:HfModel",
        models.HfModelConfig,
        "a transformers model with the task's head, from safetensors",
    ),
    (
        "model",
        "static",
        "static:StaticModel",
        models.StaticModelConfig,
        "static token embeddings, averaged, with a linear head; no transformers, very fast",
    ),
    (
        "model",
        "generate",
        "generate:GenerateModel",
        models.GenerateModelConfig,
        "a transformers model that writes text: causal or encoder-decoder",
    ),
    (
        "postprocessor",
        "classification",
        "classification:Classification",
        postprocessors.ClassificationConfig,
        "logits to labels and scores",
    ),
    (
        "postprocessor",
        "pooling",
        "pooling:Pooling",
        postprocessors.PoolingConfig,
        "token vectors to one vector per text",
    ),
    (
        "postprocessor",
        "features",
        "features:Features",
        postprocessors.FeaturesConfig,
        "the token vectors themselves, without padding",
    ),
    (
        "postprocessor",
        "logits",
        "logits:Logits",
        postprocessors.LogitsConfig,
        "the raw logits with their label names",
    ),
    (
        "postprocessor",
        "entities",
        "entities:Entities",
        postprocessors.EntitiesConfig,
        "a label for each token to entities with their places in the text",
    ),
    (
        "postprocessor",
        "answers",
        "answers:Answers",
        postprocessors.AnswersConfig,
        "start and end logits to the best spans of the context",
    ),
    (
        "postprocessor",
        "fill_mask",
        "fill_mask:FillMask",
        postprocessors.FillMaskConfig,
        "the likeliest tokens for each mask",
    ),
    (
        "postprocessor",
        "zero_shot",
        "zero_shot:ZeroShot",
        postprocessors.ZeroShotConfig,
        "entailment logits to scores of any labels",
    ),
    (
        "postprocessor",
        "ranking",
        "ranking:Ranking",
        postprocessors.RankingConfig,
        "a score for each document, sorted",
    ),
    (
        "postprocessor",
        "choice",
        "choice:Choice",
        postprocessors.ChoiceConfig,
        "the best of several choices",
    ),
    (
        "postprocessor",
        "generated_text",
        "generated_text:GeneratedText",
        postprocessors.GeneratedTextConfig,
        "generated ids to text",
    ),
)


def register(registry: Registry) -> None:
    """Add every built-in stage."""
    for kind, name, target, config, summary in _STAGES:
        registry.add(kind, name, f"pipeline_kit.builtin.{kind}s.{target}", config, summary)
